"""Runs with the joint decoder, and the plain autoencoder: trained, evaluated, drawn from, or refused in one line."""

from pathlib import Path

import pytest
import torch
from tiny import WITH_KL, WITHOUT_KL, tiny_autoencoder, tiny_images, tiny_trainer
from tolerances import FLOAT32, assert_close

from psa.errors import ConfigError
from psa.inference.autoencoder import load_run
from psa.inference.encoders.cnn import CnnEncoder
from psa.inference.encoders.whole import WholeImageEncoder
from psa.inference.evaluation import evaluate
from psa.inference.scene_priors import build_scene_prior

JOINT = "decoder.kind=joint"


def test_a_joint_run_is_trained_kept_evaluated_and_drawn_from(tmp_path: Path):
    trainer = tiny_trainer(WITH_KL, JOINT, path=tmp_path / "run")
    trainer.fit()
    model = load_run(tmp_path / "run")
    found = evaluate(model, tiny_images(6, "test"))
    assert found.segmentation is not None
    assert found.mse < 1.0
    model.use_prior(build_scene_prior(model, tiny_images(20)))
    pictures, slots = model.sample(2)
    assert_close(pictures, model.decode(slots).mean.clamp(0.0, 1.0), FLOAT32)
    with pytest.raises(ConfigError, match="expected a decoder that paints each slot, got joint"):
        model.sample(2, "scene")


@pytest.mark.parametrize("likelihood", ["normal", "mixture"])
def test_both_likelihoods_of_a_joint_picture_are_the_normal_one(likelihood):
    """All slots have the one picture, whatever the masks: a mixture of equal densities."""
    autoencoder = tiny_autoencoder(WITHOUT_KL, JOINT, f"objective.likelihood={likelihood}").eval()
    images = tiny_images(3).batch(slice(None))
    _, slots, _ = autoencoder.encode(images)
    scene = autoencoder.decode(slots)
    expected = torch.distributions.Normal(autoencoder.model.decoder.picture(slots), 0.3).log_prob(images).sum((1, 2, 3))
    assert_close(autoencoder.model.observation(scene).log_prob(images), expected, FLOAT32)


def test_a_joint_run_leaves_out_slots_by_a_rule():
    autoencoder = tiny_autoencoder(WITHOUT_KL, JOINT, "decoder.relevance=weights", "decoder.relevance_threshold=0.9")
    posterior, _, masks = autoencoder.eval().encode(tiny_images(6).batch(slice(None)))
    active = autoencoder.guide.active(posterior)
    assert active is not None
    assert not bool(active.all())
    assert not bool(masks[~active].any())


def test_the_whole_image_is_one_affine_map_of_all_its_tokens():
    torch.manual_seed(0)
    tokens = CnnEncoder(channels=4, num_layers=1, token_dim=3).double()
    encoder = WholeImageEncoder(tokens, 64 * 3, 5).double()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    latent = encoder(images)
    assert latent.shape == (2, 1, 5)
    assert_close(latent[:, 0], tokens(images).reshape(2, -1) @ encoder.latent.weight.T + encoder.latent.bias)
