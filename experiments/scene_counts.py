"""Slots of scenes counted by the rules of relevance and by what is seen, and what the rules save of the decoder."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from psa.experiments.relevance import RelevanceCurve
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.counting import count_objects
from psa.inference.images import ImageSet
from psa.inference.relevance import RULES, SPARE, kept, relevance_scores
from psa.inference.sessions import run_images
from psa.metrics import num_objects

CHUNK = 100
QUANTILES = 101  # thresholds that are tried where labels choose one
ALLOWED = 0.01  # loss of foreground ARI


@dataclass(frozen=True)
class SceneCounting:
    """How much is counted.

    Attributes:
        num_scenes: Of the test split, and as many of the validation split.
        num_draws: Of the slots, behind the project's counts.
        shares: Of the slots, left out at the thresholds of the savings.
    """

    num_scenes: int = 700
    num_draws: int = 4
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def count_scenes(autoencoder: SlotAutoencoder, counting: SceneCounting, seed: int) -> dict[str, Any]:
    """Plain values: mean absolute errors of all counts, and the decoder's savings, by rule.

    Returns:
        ``constant``, the best constant guess; ``objects``, the project's count; ``spare``, the share of the slots that
        the scenes do not need; ``rules``: by rule the default threshold and the one that is best on validation scenes,
        each with its error on test scenes, and the FLOPs saved at the default and at most, at the allowed loss.
    """
    data = autoencoder.config.data
    val, test = (run_images(autoencoder, data, split, counting.num_scenes) for split in ("val", "test"))
    curve = RelevanceCurve(autoencoder, test)
    truth = segments(test)
    rules = {}
    for rule, default in RULES.items():
        scores = rule_scores(autoencoder, test, rule)
        best = best_threshold(rule_scores(autoencoder, val, rule), segments(val), SPARE[rule])
        own = curve.point(rule, default)
        points = [own, *(curve.point(rule, threshold) for threshold in curve.thresholds(rule, counting.shares))]
        rules[rule] = {
            "default": default,
            "error": count_error(scores, truth, default, SPARE[rule]),
            "best": best,
            "best_error": count_error(scores, truth, best, SPARE[rule]),
            "saved": own.flops_saved,
            "loss": own.loss,
            "most_saved": max((point.flops_saved for point in points if point.loss <= ALLOWED), default=0.0),
        }
    found = count_objects(autoencoder, test, counting.num_draws, torch.Generator().manual_seed(seed))
    objects = (found.cumsum(1) < 0.5).sum(1) + 1
    return {
        "rules": rules,
        "objects": float((objects - truth).abs().double().mean()),
        "constant": float((truth - truth.double().median()).abs().mean()),
        "spare": curve.spare,
    }


def segments(images: ImageSet) -> Int64[Tensor, " images"]:
    """True objects and the background, (M,)."""
    assert images.masks is not None
    return num_objects(images.masks, images.background) + 1


@torch.no_grad()
def rule_scores(autoencoder: SlotAutoencoder, images: ImageSet, rule: str) -> Tensor:
    """(M, K), a rule's scores."""
    guide, found = autoencoder.guide, []
    for start in range(0, len(images), CHUNK):
        posterior = guide.posterior(autoencoder.prepare(images.batch(slice(start, start + CHUNK))))
        prior = autoencoder.model.trained_prior
        found.append(relevance_scores(rule, posterior, guide.slot_moments(posterior), prior).cpu())
    return torch.cat(found)


def count_error(scores: Tensor, truth: Tensor, threshold: float, spare: int) -> float:
    """Mean absolute error of the number of slots that a threshold keeps."""
    return float((kept(scores, threshold, spare).sum(1) - truth).abs().double().mean())


def best_threshold(scores: Tensor, truth: Tensor, spare: int) -> float:
    """The quantile of the scores with the least error, by labels."""
    tried = scores.flatten().double().quantile(torch.linspace(0, 1, QUANTILES, dtype=torch.float64)).tolist()
    return min(tried, key=lambda threshold: count_error(scores, truth, threshold, spare))
