"""A transformer over words learns to tell them from slots, and what it draws looks like scenes (minutes)."""

from pathlib import Path

import pytest
import scipy.ndimage
import torch
from torch import Tensor

import psa
from psa.inference.config import read_config_file
from psa.inference.evaluation import evaluate
from psa.inference.sessions import build_prior, run_images, start_run
from psa.runs import RunDirectory

CONFIG = Path(__file__).parents[2] / "experiments" / "configurations" / "words_small.toml"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("unchecked")
def test_words_cost_less_than_half_their_entropy_and_draws_look_like_scenes(tmp_path: Path):
    start_run(read_config_file(CONFIG), tmp_path / "run").fit()
    require_words_and_scenes(tmp_path / "run")


def require_words_and_scenes(path: Path) -> None:
    """Hold a trained run to the bars."""
    model = psa.load(path)
    images = run_images(model, model.config.data, "test")
    words = evaluate(model, images).words
    assert words is not None
    build_prior(model, RunDirectory(path))
    real = images.batch(slice(0, 256))
    print(words, "nearest of 192 others", nearest(real[:64], real[64:]))
    print("images", dark(real), pieces(real), pure(real))
    assert words.cross_entropy < 0.5 * words.unigram_entropy
    assert words.in_use > 16
    assert words.code_mse < 0.02
    for scheme in ("independent", "scene"):
        drawn, _ = model.sample(64, scheme, generator=torch.Generator().manual_seed(0))
        print(scheme, nearest(drawn, real), dark(drawn), pieces(drawn), pure(drawn))
        # as near to some image as another image is, give or take; as much background, in as few pieces, as colourful
        assert nearest(drawn, real) < 1.5 * nearest(real[:64], real[64:])
        assert abs(dark(drawn) - dark(real)) < 0.15
        assert abs(pieces(drawn) - pieces(real)) < 1.0
        assert pure(drawn) > 0.6


def nearest(pictures: Tensor, others: Tensor) -> float:
    """Mean over pictures of the mean squared difference to the nearest of others."""
    return float(torch.cdist(pictures.flatten(1), others.flatten(1)).amin(1).square().mean()) / pictures[0].numel()


def dark(pictures: Tensor) -> float:
    """Share of pixels that are black to the eye."""
    return float((pictures.amax(1) < 0.15).double().mean())


def pieces(pictures: Tensor) -> float:
    """Mean number of connected regions of at least four pixels that are not black."""
    counts = []
    for lit in (pictures.amax(1) >= 0.15).numpy():
        labels, count = scipy.ndimage.label(lit)
        counts.append(sum(int((labels == i).sum()) >= 4 for i in range(1, count + 1)))
    return sum(counts) / len(counts)


def pure(pictures: Tensor) -> float:
    """Share of the pixels that are not black which are near one of the six colours of the palette."""
    lit = pictures.movedim(1, 3)[pictures.amax(1) >= 0.15]
    return float(((lit - lit.round()).abs().amax(1) < 0.3).double().mean())
