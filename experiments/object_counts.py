"""Claim: the number of objects can be counted without labels, with probabilities (docs/sampling.md).

Objects are counted in slots drawn from q(s | x) and decoded; labels only score the result.
``python -m psa.experiments.object_counts RUN`` prints the tables.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import psa
from psa.experiments.evidence_recovery import Bin, reliability
from psa.experiments.tables import markdown
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.counting import count_objects, log_score
from psa.inference.images import ImageSet
from psa.inference.scene_structure import find_structure
from psa.inference.sessions import run_images
from psa.metrics import num_objects


@dataclass(frozen=True)
class CountScores:
    """Counts of objects against the true ones, beside the best that knows no image.

    Attributes:
        images: How many.
        median_error: Mean absolute error of the posterior median.
        mode_error: Of the most probable count.
        means_error: Of the count found at the means of q(s | x), which comes without probabilities.
        constant_error: Of the best constant guess.
        log_score: Mean log p(true count | x), nats.
        constant_log_score: Of the true counts' own distribution, nats.
    """

    images: int
    median_error: float
    mode_error: float
    means_error: float
    constant_error: float
    log_score: float
    constant_log_score: float


def score_counts(
    autoencoder: SlotAutoencoder, images: ImageSet, num_draws: int = 16, seed: int = 0
) -> tuple[CountScores, list[Bin]]:
    """Scores on images with masks, and the reliability of all (image, count) probabilities."""
    assert images.masks is not None
    true = num_objects(images.masks, images.background)
    found = count_objects(autoencoder, images, num_draws, torch.Generator().manual_seed(seed))
    median = (found.cumsum(1) < 0.5).sum(1)
    share = torch.bincount(true) / len(true)
    scores = CountScores(
        len(true),
        float((median - true).abs().double().mean()),
        float((found.argmax(1) - true).abs().double().mean()),
        float((find_structure(autoencoder, images.batch(slice(None))).num_objects - true).abs().double().mean()),
        float((true - true.double().median()).abs().mean()),
        float(log_score(found, true).mean()),
        float(share[true].log().mean()),
    )
    return scores, reliability(found, true + 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = psa.load(Path(sys.argv[1]))
    scores, bins = score_counts(run, run_images(run, run.config.data, "test", 1000))
    print(markdown([asdict(scores)]), markdown([asdict(one) for one in bins]), sep="\n\n")
