"""The aggregate prior in the loop of training."""

from pathlib import Path

import pyro
import pytest
import tiny
import torch
from pyro import poutine
from tolerances import FLOAT32, assert_close

from psa.errors import ConfigError
from psa.inference.autoencoder import build_autoencoder
from psa.inference.objectives import held_out_objective, objective
from psa.inference.scene_priors import slot_aggregate
from psa.inference.training import seed_everything

IN_THE_LOOP = ("objective.prior=aggregate", "objective.prior_components=4", "objective.prior_refresh=5")


def test_the_prior_is_the_gaussian_until_it_is_refreshed():
    run = tiny.tiny_autoencoder(tiny.WITH_KL, *IN_THE_LOOP).eval()
    slots = torch.randn(6, 8)
    gaussian = tiny.tiny_autoencoder(tiny.WITH_KL).model
    assert_close(run.model.slot_prior.log_prob(slots), gaussian.slot_prior.log_prob(slots), FLOAT32)
    prior = slot_aggregate(run, tiny.tiny_images(10), 3, limit=10)
    run.model.refresh_prior(prior)
    assert_close(run.model.slot_prior.log_prob(slots), prior.log_prob(slots), FLOAT32)


def test_a_smaller_mixture_leaves_nothing_of_a_larger_one():
    run = tiny.tiny_autoencoder(tiny.WITH_KL, *IN_THE_LOOP).eval()
    for number in (4, 2):
        run.model.refresh_prior(slot_aggregate(run, tiny.tiny_images(10), number, limit=10))
    assert int((run.model.component_weights > 0).sum()) <= 2
    assert_close(float(run.model.component_weights.sum()), 1.0, FLOAT32)


def test_the_objective_is_the_elbo_with_the_mixture():
    """log p(x | s) + sum_k log p(s_k) - sum_k log q(s_k | x) at the guide's own draw."""
    run = tiny.tiny_autoencoder(tiny.WITH_KL, *IN_THE_LOOP).eval()
    prior = slot_aggregate(run, tiny.tiny_images(10), 3, limit=10)
    run.model.refresh_prior(prior)
    images = tiny.tiny_images(4).batch(slice(None))
    seed_everything(7)
    loss = objective(run)(images)
    seed_everything(7)
    slots = poutine.trace(run.guide).get_trace(images).nodes["slot"]["value"]
    posterior = run.guide.posterior(images)
    with torch.no_grad():
        q = run.guide.slot_distribution(posterior).log_prob(slots).sum()
        likelihood = run.model.observation(run.model.decoder(slots)).log_prob(images).sum()
        expected = -(likelihood + prior.log_prob(slots).sum() - q)
    assert_close(loss, expected, FLOAT32)


def test_the_held_out_objective_is_the_same_at_every_call():
    run = tiny.tiny_autoencoder(tiny.WITH_KL, *IN_THE_LOOP).eval()
    run.model.refresh_prior(slot_aggregate(run, tiny.tiny_images(10), 3, limit=10))
    images = tiny.tiny_images(4).batch(slice(None))
    assert held_out_objective(run, images) == held_out_objective(run, images)


def test_one_component_with_the_gaussians_moments_gives_its_objective():
    """An estimate against the closed form: their mean difference over many draws is 0."""
    gaussian, mixed = (tiny.tiny_autoencoder(tiny.WITH_KL, *more).eval() for more in ((), IN_THE_LOOP))
    mixed.load_state_dict(gaussian.state_dict(), strict=False)
    with torch.no_grad():
        mixed.model.component_weights[0] = 1.0
        mixed.model.component_loc[0] = gaussian.model.prior_loc
        mixed.model.component_var[0] = (2 * gaussian.model.prior_log_scale).exp()
    images = tiny.tiny_images(4).batch(slice(None))
    differences = []
    for seed in range(80):
        values = []
        for run in (gaussian, mixed):
            seed_everything(seed)
            values.append(float(objective(run)(images)))
        differences.append(values[0] - values[1])
    found = torch.tensor(differences)
    assert float(found.std()) > 0
    assert abs(float(found.mean())) < 6 * float(found.std()) / 80**0.5


def test_training_refreshes_on_its_schedule_and_lowers_the_loss():
    trainer = tiny.tiny_trainer(tiny.WITH_KL, *IN_THE_LOOP, "training.steps=30")
    weights = trainer.autoencoder.model.component_weights
    seen = []
    trainer.progress = lambda step, row: seen.append(weights.clone())
    trainer.fit()
    changed = [
        step
        for step, (one, other) in enumerate(zip([torch.zeros(4), *seen], seen, strict=False), start=1)
        if not torch.equal(one, other)
    ]
    assert set(changed) <= {6, 11, 16, 21, 26}  # the step after each fifth
    assert changed[0] == 6
    assert trainer.history[-1]["held_out"] < trainer.history[0]["held_out"]


def test_a_resumed_run_ends_with_the_same_prior(tmp_path: Path):
    whole = tiny.tiny_trainer(tiny.WITH_KL, *IN_THE_LOOP, path=tmp_path / "whole")
    whole.fit()
    part = tiny.tiny_trainer(tiny.WITH_KL, *IN_THE_LOOP, path=tmp_path / "part")
    part.fit(until=13)
    part.save()
    resumed = tiny.tiny_trainer(tiny.WITH_KL, *IN_THE_LOOP, path=tmp_path / "part")
    resumed.resume()
    resumed.fit()
    assert tiny.same_weights(whole.autoencoder, resumed.autoencoder)
    assert bool(whole.autoencoder.model.component_weights.any())


def test_without_a_kl_an_aggregate_prior_is_refused():
    config = tiny.tiny_config(tiny.WITHOUT_KL, "objective.prior=aggregate")
    with pytest.raises(ConfigError, match="expected kl_weight above 0"):
        build_autoencoder(config, (16, 16))


def test_the_program_samples_slots_from_the_mixture():
    run = tiny.tiny_autoencoder(tiny.WITH_KL, *IN_THE_LOOP).eval()
    far = slot_aggregate(run, tiny.tiny_images(10), 1, limit=10)
    far.loc.add_(100.0)
    run.model.refresh_prior(far)
    pyro.set_rng_seed(0)
    slots = poutine.trace(run.model).get_trace(torch.zeros(2, 3, 16, 16)).nodes["slot"]["value"]
    assert slots.shape == (2, 3, 8)
    assert bool((slots > 50).all())
