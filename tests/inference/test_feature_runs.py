"""Runs on features: trained from kept ones, evaluated with decoder and attention masks, and what they cannot do."""

from pathlib import Path

import pytest
import torch
from command_line import assert_says_one_line, run
from tiny import SETTINGS, SPRITES, WITHOUT_KL, tiny_images
from tolerances import CONVERGED, assert_close

import psa
from psa.errors import ConfigError
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.config import override, parse_config
from psa.inference.reporting import principal_picture, scene_views
from psa.inference.scene_priors import build_scene_prior
from psa.inference.sessions import evaluate_run, run_images, start_run
from psa.runs import RunDirectory

FEATURES = ("encoder.kind=features", "features.options={size=16, hidden_dim=8, num_layers=1}")


def trained(path: Path, *settings: str) -> SlotAutoencoder:
    cache = f"features.cache={path / 'cache'}"
    values = override(WITHOUT_KL, [*SETTINGS, *SPRITES, *FEATURES, cache, *settings])
    start_run(values, path / "run").fit()
    return psa.load(path / "run")


@pytest.mark.parametrize(("kind", "masks"), [("patch", "decoder"), ("transformer", "attention")])
def test_a_run_is_trained_kept_evaluated_and_drawn_from(kind: str, masks: str, tmp_path: Path):
    model = trained(tmp_path, f"decoder.kind={kind}")
    assert model.config.features.shape == (8, 4, 4)
    assert model.config.features.checksum is not None
    outcome = evaluate_run(model, RunDirectory(tmp_path / "run"), model.config.data, "test").evaluation
    assert outcome.mask_kind == masks
    assert outcome.masks is not None
    assert set(outcome.masks) == {"decoder", "attention"}
    assert "Features are observed, not pixels" in (tmp_path / "run" / "report.html").read_text()
    images = run_images(model, model.config.data, "train")
    model.use_prior(build_scene_prior(model, images))
    for scheme in ("independent", "scene"):
        assert model.sample(2, scheme)[0].shape == (2, 8, 4, 4)


def test_pictures_and_their_features_are_encoded_alike(tmp_path: Path):
    model = trained(tmp_path, "training.steps=1")
    images = run_images(model, model.config.data, "test", 3)
    (_, slots, masks), (_, again, others) = model.encode(images.images), model.encode(images.batch(slice(None)))
    assert_close(slots, again, CONVERGED)
    assert masks.shape == (3, 3, 16, 16)
    assert_close(masks, others, CONVERGED)
    assert_close(masks.sum(1), torch.ones(3, 16, 16), CONVERGED)
    assert model.decode(slots).mean.shape == (3, 8, 4, 4)
    assert [view.masks.shape for view in scene_views(model, images)] == [(3, 16, 16)] * 3


def test_a_run_has_its_features_from_its_own_weights(tmp_path: Path):
    model = trained(tmp_path, "training.steps=1")
    config = model.config.to_toml()
    config["features"]["checksum"] = "0" * 64
    RunDirectory(tmp_path / "run").write_config(config)
    other = psa.load(tmp_path / "run")  # needs no network until it sees a picture
    with pytest.raises(ConfigError, match="expected the weights that the run was made with"):
        other.encode(tiny_images(1, "val").images)


def test_a_configuration_without_the_shape_is_refused():
    config = parse_config(override(WITHOUT_KL, [*SETTINGS, *SPRITES, *FEATURES]))
    with pytest.raises(ConfigError, match=r"features\.shape: expected what psa train finds and writes, got none"):
        psa.inference.autoencoder.build_autoencoder(config, (16, 16))


def test_there_is_no_picture_to_draw(tmp_path: Path):
    trained(tmp_path, "training.steps=1")
    assert_says_one_line(run("sample", tmp_path / "run"), 2, "decodes features, not pixels")
    assert_says_one_line(run("check", tmp_path / "run"), 2, "it observes features, and statistics are of pixels")


def test_the_picture_of_a_map_has_its_principal_components():
    generator = torch.Generator().manual_seed(0)
    scores, axes = torch.randn(4, 3, 5, 5, generator=generator), torch.linalg.qr(torch.randn(6, 3))[0]
    scores = scores * torch.tensor([5.0, 2.0, 1.0])[:, None, None]
    maps = torch.einsum("bkhw,fk->bfhw", scores, axes)
    picture = principal_picture(maps, maps, (10, 10))
    assert picture.shape == (4, 3, 10, 10)
    found = picture[:, :, ::2, ::2].movedim(1, 0).flatten(1)
    assert_close(found.mean(1), torch.full((3,), 0.5), 1e-5)
    assert_close(found.std(1, correction=0), torch.full((3,), 0.25), 1e-4)
    correlation = torch.corrcoef(torch.cat([found, scores.movedim(1, 0).flatten(1)]))[:3, 3:].abs()
    assert bool((correlation.diagonal() > 0.9).all())
