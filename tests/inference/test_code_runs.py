"""Runs with a transformer over the words of a discrete VAE: trained, kept, evaluated, drawn from, refused."""

from pathlib import Path

import pyro
import pytest
import torch
from tiny import WITH_KL, WITHOUT_KL, same_weights, tiny_autoencoder, tiny_images, tiny_trainer
from tolerances import CONVERGED, assert_close
from torch import Tensor

from psa.errors import ConfigError, RunError
from psa.inference.autoencoder import load_run
from psa.inference.checkpoints import load_tensors
from psa.inference.diagnose import diagnose_run
from psa.inference.evaluation import evaluate
from psa.inference.objectives import held_out_objective, objective
from psa.inference.reporting import write_run_report
from psa.inference.run_comparison import open_runs
from psa.inference.sampling import image_slots
from psa.inference.scene_priors import build_scene_prior
from psa.inference.training import seed_everything
from psa.runs import RunDirectory

CODE = ("decoder.kind=transformer", "code.vocabulary=8", "code.channels=8")
ENCODERS = ("encoder.kind=cnn", "encoder.kind=words")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_run_is_trained_kept_evaluated_and_drawn_from(encoder, tmp_path: Path):
    trainer = tiny_trainer(WITHOUT_KL, *CODE, encoder, path=tmp_path / "run")
    trainer.fit()
    model = load_run(tmp_path / "run")
    assert same_weights(model, trainer.autoencoder)
    images = tiny_images(6, "test")
    found = evaluate(model, images)
    assert found.to_json()["mask_kind"] == "attention"
    assert found.words is not None
    assert {"word_cross_entropy", "unigram_entropy"} <= trainer.history[-1].keys()
    model.use_prior(build_scene_prior(model, tiny_images(20)))
    for scheme in ("independent", "scene"):
        (pictures, slots), (again, _) = (
            model.sample(3, scheme, generator=torch.Generator().manual_seed(0)) for _ in range(2)
        )
        assert pictures.shape == (3, 3, 16, 16)
        assert slots.shape == (3, 3, 8)
        assert torch.equal(again, pictures)
    assert len(image_slots(model, images.images[0]).roles) == 3


def test_the_page_says_whose_masks_it_shows(tmp_path: Path):
    model, images, run = tiny_autoencoder(WITHOUT_KL, *CODE).eval(), tiny_images(2, "test"), RunDirectory(tmp_path)
    write_run_report(run, model, images, evaluate(model, images), {}, title="a run")
    page = run.report.read_text()
    assert "No slot has a picture of its own" in page
    assert "masks of the attention" in page


def test_masks_are_the_responsibilities_interpolated():
    model = tiny_autoencoder(WITHOUT_KL, *CODE).eval()
    posterior, _, masks = model.encode(tiny_images(3).batch(slice(None)))
    assert_close(masks.sum(1), torch.ones(3, 16, 16), CONVERGED)
    maps = posterior.responsibilities.detach().unflatten(-1, (8, 8))
    assert_close(torch.nn.functional.avg_pool2d(masks, 2)[:, :, 1:-1, 1:-1].mean(), maps[:, :, 1:-1, 1:-1].mean(), 1e-2)
    expected = torch.nn.functional.interpolate(maps, (16, 16), mode="bilinear")
    assert_close(masks, expected, CONVERGED)


def test_slots_that_a_rule_drops_are_not_looked_at():
    model = tiny_autoencoder(WITHOUT_KL, *CODE, "decoder.relevance=weights", "decoder.relevance_threshold=0.9").eval()
    images = tiny_images(6).batch(slice(None))
    posterior, slots, masks = model.encode(images)
    active = model.guide.active(posterior)
    assert active is not None
    assert not bool(active.all())
    assert not bool(masks[~active].any())
    assert_close(masks.sum(1), torch.ones(6, 16, 16), CONVERGED)
    elsewhere = torch.where(active[..., None], slots, slots + 5.0)
    assert_close(model.decode(elsewhere, active).mean, model.decode(slots, active).mean)
    assert_close(held_out_objective(model, images), held_out_objective(model, images))


def gradients(sigma: float) -> dict[str, Tensor]:
    model = tiny_autoencoder(WITHOUT_KL, *CODE, f"objective.sigma={sigma}").double()
    seed_everything(3)
    objective(model)(tiny_images(3).batch(slice(None)).double()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_pixels_train_the_discrete_vae_and_words_train_the_slots_and_the_transformer():
    """Pixels weigh 1 / sigma^2: what they train scales with it, and what words train does not feel it."""
    narrow, wide = gradients(0.5), gradients(1.0)
    assert narrow.keys() == wide.keys()
    vae = ("guide.code.", "model.decoder.painter.")
    assert any(name.startswith(vae[0]) for name in wide)
    assert {"guide.inference.initialiser.queries", "model.decoder.head.weight"} <= wide.keys()
    assert any(name.startswith("guide.encoder.convolutions") for name in wide)
    for name, gradient in wide.items():
        assert_close(narrow[name], (4.0 if name.startswith(vae) else 1.0) * gradient, CONVERGED, name)


@pytest.mark.parametrize("values", [WITH_KL, WITHOUT_KL], ids=["kl", "no kl"])
def test_the_held_out_objective_is_words_and_pixels_at_the_likeliest_words_by_hand(values):
    model = tiny_autoencoder(values, *CODE, "objective.sigma=0.4").double().eval()
    images = tiny_images(3).batch(slice(None)).double()
    posterior, slots, _ = model.encode(images)
    words = model.guide.code.encoder(images).argmax(-1)
    log_words = model.model.decoder.log_probs(words, slots).gather(-1, words[..., None]).sum()
    picture = model.model.decoder.painter.picture(words)
    value = log_words + torch.distributions.Normal(picture, 0.4).log_prob(images).sum()
    if model.guide.kl_weight:
        q, prior = model.guide.slot_distribution(posterior), model.model.slot_prior
        value = value - torch.distributions.kl_divergence(q, prior.expand((3, 3))).sum()
    assert_close(held_out_objective(model, images), -value / images.numel())


def test_the_objective_is_that_of_one_draw_by_hand():
    model = tiny_autoencoder(WITHOUT_KL, *CODE).double()
    images = tiny_images(3).batch(slice(None)).double()
    seed_everything(1)
    found = objective(model)(images)
    seed_everything(1)
    trace = pyro.poutine.trace(model.guide).get_trace(images)
    slots, code = (trace.nodes[name]["value"] for name in ("slot", "code"))
    words = code.argmax(-1)
    assert float(code.detach().amax(-1).mean()) < 0.99  # relaxed: pixels see it so
    log_words = model.model.decoder.log_probs(words, slots).gather(-1, words[..., None]).sum()
    log_pixels = torch.distributions.Normal(model.model.decoder.painter(code), 0.3).log_prob(images).sum()
    assert_close(found, -(log_words + log_pixels))


def test_training_cools_the_words_and_a_loaded_run_has_the_last_temperature(tmp_path: Path):
    trainer = tiny_trainer(WITHOUT_KL, *CODE, "code.anneal_share=0.5", path=tmp_path / "run")
    code = trainer.autoencoder.guide.code
    assert code is not None
    found = []
    for until in (1, 6, 11, 20):
        trainer.fit(until)
        found.append(code.temperature)
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (1.0, 0.1)
    assert load_run(tmp_path / "run").guide.code.temperature == 0.1


def test_the_words_of_an_encoder_of_words_lie_in_the_checkpoint_once(tmp_path: Path):
    trainer = tiny_trainer(WITHOUT_KL, *CODE, "encoder.kind=words", path=tmp_path / "run")
    trainer.fit(1)
    tensors, _ = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert sum("convolutions" in name and name.startswith("guide") for name in tensors) == 6


def test_words_need_the_decoder_that_has_them():
    with pytest.raises(ConfigError, match=r"encoder\.kind = words: expected decoder\.kind = transformer"):
        tiny_autoencoder(WITHOUT_KL, "encoder.kind=words")


def test_what_needs_a_density_of_pixels_refuses_the_run_in_one_line(tmp_path: Path):
    trainer = tiny_trainer(WITH_KL, *CODE, path=tmp_path / "run")
    trainer.fit(1)
    with pytest.raises(RunError, match=r"its likelihood is not of pixels alone \(decoder.kind = transformer\)"):
        open_runs([tmp_path / "run", tmp_path / "run"])
    with pytest.raises(RunError, match="got transformer, which decodes one position after the other"):
        diagnose_run(trainer.autoencoder, tiny_images(2))
