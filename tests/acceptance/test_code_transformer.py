"""A transformer over words learns to tell them from slots, and what it draws looks like scenes (minutes)."""

from pathlib import Path

import pytest
import torch

import psa
from psa.inference.config import read_config_file
from psa.inference.evaluation import evaluate
from psa.inference.sessions import build_prior, run_images, start_run
from psa.runs import RunDirectory

CONFIG = Path(__file__).parents[2] / "configs" / "words_small.toml"


@pytest.mark.slow
def test_words_cost_less_than_half_their_entropy_and_draws_look_like_scenes(tmp_path: Path):
    trainer = start_run(read_config_file(CONFIG), tmp_path / "run")
    trainer.fit()
    model = psa.load(tmp_path / "run")
    images = run_images(model, model.config.data, "test")
    found = evaluate(model, images)
    assert found.words is not None
    assert found.segmentation is not None
    print(found.to_json())
    build_prior(model, RunDirectory(tmp_path / "run"))
    pictures = {
        scheme: model.sample(64, scheme, generator=torch.Generator().manual_seed(0))[0]
        for scheme in ("independent", "scene")
    }
    real = images.batch(slice(0, 256))
    for scheme, drawn in pictures.items():
        print(scheme, nearest(drawn, real), dark(drawn), dark(real))
    assert found.words.cross_entropy < 0.5 * found.words.unigram_entropy
    for drawn in pictures.values():
        # as near to some image as another image is, give or take, and as much background
        assert nearest(drawn, real) < 1.5 * nearest(real[:64], real[64:])
        assert abs(dark(drawn) - dark(real)) < 0.15


def nearest(pictures: torch.Tensor, others: torch.Tensor) -> float:
    """Mean over pictures of the mean squared difference to the nearest of others."""
    return float(torch.cdist(pictures.flatten(1), others.flatten(1)).amin(1).square().mean()) / pictures[0].numel()


def dark(pictures: torch.Tensor) -> float:
    """Share of pixels that are black to the eye."""
    return float((pictures.amax(1) < 0.15).double().mean())
