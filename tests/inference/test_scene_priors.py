"""The prior over scenes that is built from a run, and what the run does with it."""

from pathlib import Path

import pytest
import tiny
import torch
from tolerances import FLOAT32, assert_close

from psa.errors import RunError
from psa.inference.autoencoder import SlotAutoencoder, load_run
from psa.inference.roles import find_roles
from psa.inference.scene_priors import build_scene_prior, slot_aggregate, slot_posteriors
from psa.models.scene_prior import BACKGROUND, OBJECT, ScenePrior

CONFIGS = pytest.mark.parametrize("values", [tiny.WITH_KL, tiny.WITHOUT_KL], ids=["sampled", "points"])


def trained(values: dict, steps: int = 20) -> SlotAutoencoder:
    trainer = tiny.tiny_trainer(values, f"training.steps={steps}")
    trainer.fit()
    return trainer.autoencoder.eval()


def vivid(run: SlotAutoencoder) -> SlotAutoencoder:
    """A run of few steps paints slots alike; here their pictures and masks differ, so that there are objects."""
    with torch.no_grad():
        list(run.model.decoder.parameters())[-2].mul_(6.0)
    return run


@CONFIGS
def test_the_aggregate_has_the_moments_of_all_slots(values: dict):
    """Each role conserves mean and variances, so the union does: sum_g w_g m_g = mean of all slots, and so on."""
    run, images = vivid(trained(values)), tiny.tiny_images(70)
    prior = build_scene_prior(run, images, num_components=6).aggregate
    with torch.no_grad():
        slots, _ = slot_posteriors(run, images.batch(slice(None)))
    loc, var = slots.loc.flatten(0, 1), slots.var.flatten(0, 1)
    assert_close(prior.mean, loc.mean(0), FLOAT32)
    least = 1e-6 * loc.var(0, correction=0).mean()  # of a point's variance, which may not be 0
    assert_close(prior.variance, loc.var(0, correction=0) + var.clamp(min=least).mean(0), FLOAT32)
    assert prior.num_images == 70


@CONFIGS
def test_counts_and_shares_are_those_of_the_roles_found(values: dict):
    run, images = vivid(trained(values)), tiny.tiny_images(70)
    prior = build_scene_prior(run, images, num_components=8, seed=5)
    found = find_roles(run.decode(run.encode(images.images)[1]))
    assert_close(prior.counts, torch.bincount(found.num_objects, minlength=3) / 70, FLOAT32)
    assert_close(prior.share(BACKGROUND), 1 / 3, FLOAT32)
    assert 0.34 < prior.share(OBJECT) < 0.6  # not a third: roles of equal weight would pass
    assert_close(prior.share(OBJECT), float(found.objects.double().mean()), FLOAT32)


def test_equal_seeds_build_equal_priors_and_leave_the_global_generator_alone():
    run, images = trained(tiny.WITH_KL), tiny.tiny_images(20)
    before = torch.random.get_rng_state()
    one, other = (build_scene_prior(run, images, 4, seed=2) for _ in range(2))
    assert torch.equal(one.aggregate.loc, other.aggregate.loc)
    assert torch.equal(before, torch.random.get_rng_state())


def test_progress_counts_images():
    done: list[int] = []
    build_scene_prior(trained(tiny.WITH_KL), tiny.tiny_images(70), 4, progress=done.append)
    assert done == [64, 70]


def test_the_aggregate_of_some_images_reads_no_others():
    run = trained(tiny.WITH_KL)
    few, many = tiny.tiny_images(12), tiny.tiny_images(20)
    one, other = slot_aggregate(run, few, 4, limit=12), slot_aggregate(run, many, 4, limit=12)
    assert torch.equal(one.loc, other.loc)
    assert one.num_images == 12


def test_a_run_that_uses_a_prior_draws_from_it():
    run = trained(tiny.WITH_KL)
    run.use_prior(build_scene_prior(run, tiny.tiny_images(20), 4))
    assert run.model.slot_prior is run.scene_prior.aggregate
    generator = torch.Generator().manual_seed(1)
    draw = run.draw(5, "scene", 1.0, generator)
    pictures, slots = run.sample(5, "scene", 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(slots, draw.slots)
    assert_close(pictures, run.decode(draw.slots, draw.active).mean.clamp(0, 1), FLOAT32)
    assert pictures.shape == (5, 3, 16, 16)


def test_a_run_without_a_prior_draws_independently_alone():
    run = trained(tiny.WITH_KL)
    assert run.sample(3)[1].shape == (3, 3, 8)
    with pytest.raises(ValueError, match="needs the run's aggregate prior"):
        run.sample(3, "scene")
    with pytest.raises(ValueError, match="scheme must be one of scene, independent, got 'other'"):
        run.sample(3, "other")


def test_a_prior_of_other_slots_is_refused():
    run = trained(tiny.WITH_KL)
    prior = build_scene_prior(run, tiny.tiny_images(20), 4)
    fewer = ScenePrior(prior.aggregate, prior.roles, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="of 3 slots of 8 features"):
        run.use_prior(fewer)


def test_a_saved_prior_is_loaded_with_its_run_unless_training_went_on(tmp_path: Path):
    trainer = tiny.tiny_trainer(tiny.WITH_KL, path=tmp_path)
    trainer.fit()
    assert load_run(tmp_path).scene_prior is None
    prior = build_scene_prior(trainer.autoencoder.eval(), trainer.images, 4)
    prior.save(tmp_path / "prior.safetensors", trainer.step)
    loaded = load_run(tmp_path)
    assert loaded.scene_prior is not None
    assert torch.equal(loaded.model.slot_prior.loc, prior.aggregate.loc)
    prior.save(tmp_path / "prior.safetensors", trainer.step - 1)
    assert load_run(tmp_path).scene_prior is None


def test_a_prior_that_is_not_the_runs_is_one_line(tmp_path: Path):
    trainer = tiny.tiny_trainer(tiny.WITH_KL, path=tmp_path)
    trainer.fit()
    prior = build_scene_prior(trainer.autoencoder.eval(), trainer.images, 4)
    path = tmp_path / "prior.safetensors"
    ScenePrior(prior.aggregate, prior.roles, torch.tensor([1.0, 0.0])).save(path, trainer.step)
    with pytest.raises(RunError, match="expected the prior of") as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match="cannot be read"):
        load_run(tmp_path)


def test_slots_that_a_rule_does_not_decode_are_in_no_prior():
    run = tiny.tiny_autoencoder(tiny.WITH_KL, "decoder.relevance=weights", "decoder.relevance_threshold=1.0").eval()
    images = tiny.tiny_images(20)
    with torch.no_grad():
        chunk, active = slot_posteriors(run, images.batch(slice(None)))
    assert 0 < int(active.sum()) < active.numel()
    assert_close(slot_aggregate(run, images, 4, limit=20).mean, chunk.loc[active].mean(0), FLOAT32)
    assert_close(build_scene_prior(run, images, 4).aggregate.mean, chunk.loc[active].mean(0), FLOAT32)
