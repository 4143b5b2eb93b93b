"""Claim: slots that a rule calls empty need no decoding; FLOPs are saved, the segmentation stays (docs/relevance.md).

A trained run on scenes with true masks. Each rule's threshold is swept over quantiles of its scores, which need no
label; at each, the decoder paints the slots that are left, torch's counter counts, and foreground ARI is compared with
that of all slots on the same images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.images import ImageSet
from psa.inference.relevance import RULES, Relevance, relevance_scores
from psa.metrics import adjusted_rand_index, foreground_ari, mean_squared_error, num_objects
from psa.records import DecodedScene, SlotPosterior
from psa.report.relevance import SavingCurve, relevance_figure

CHUNK = 100
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)

Result = TypeVar("Result")


class EveryElement(TorchDispatchMode):
    """Counts one operation for each element of the largest tensor of everything torch does, views too.

    torch's own counter counts products and convolutions alone, and would call a rule without them free.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.total += max((leaf.numel() for leaf in tree_leaves((args, found)) if isinstance(leaf, Tensor)), default=0)
        return found


def counted(work: Callable[[], Result], every_element: bool = False) -> tuple[Result, int]:
    """A result and the FLOPs of its making, by torch's counter; on top, where asked, :class:`EveryElement`."""
    elements = EveryElement()
    with FlopCounterMode(display=False) as counter:
        if not every_element:
            return work(), counter.get_total_flops()
        with elements:
            found = work()
    return found, counter.get_total_flops() + elements.total


@dataclass(frozen=True)
class Point:
    """One threshold of one rule, or one choice of slots.

    Attributes:
        rule: Its name.
        threshold: In the rule's unit; NaN where there is none.
        slots_saved: Share of the slots that are not decoded.
        flops_saved: Share of the decoder's FLOPs for all slots that is saved, the rule's own taken off.
        rule_cost: The rule's FLOPs as a share of the same; every element of every operation counted.
        foreground_ari: Mean over the images with two objects or more.
        loss: How much lower that is than with all slots.
        loss_error: Standard error of the loss, of the images' differences.
        ari: Mean adjusted Rand index of all pixels, all images: it sees a background that went with its slot.
        mse: Mean squared error of the reconstruction, all images.
    """

    rule: str
    threshold: float
    slots_saved: float
    flops_saved: float
    rule_cost: float
    foreground_ari: float
    loss: float
    loss_error: float
    ari: float
    mse: float


@dataclass(frozen=True)
class Decoded:
    """What a set of images was made of with a choice of slots.

    Attributes:
        labels: (M, H, W), the slot that owns each pixel.
        squared_error: (M,).
        flops: Of the decoder.
    """

    labels: Int64[Tensor, "images height width"]
    squared_error: Float64[Tensor, " images"]
    flops: int


class RelevanceCurve:
    """The images of a curve, encoded once.

    Args:
        autoencoder: A trained run.
        images: With true masks.

    Raises:
        ValueError: If the images have no masks.
    """

    def __init__(self, autoencoder: SlotAutoencoder, images: ImageSet) -> None:
        if images.masks is None:
            raise ValueError("images must have true masks, got none")
        self.autoencoder, self.images, self.masks = autoencoder, images, images.masks
        self.batches = [images.batch(slice(start, start + CHUNK)) for start in range(0, len(images), CHUNK)]
        with torch.no_grad():
            self.posteriors = [autoencoder.guide.posterior(autoencoder.prepare(batch)) for batch in self.batches]
        self.several = num_objects(self.masks, images.background) >= 2
        self.full = self.decode([None] * len(self.batches))
        self.score = self._score(self.full)

    def _score(self, decoded: Decoded) -> Float64[Tensor, " several"]:
        return foreground_ari(decoded.labels, self.masks, self.images.background)[self.several]

    @torch.no_grad()
    def decode(self, active: Sequence[Tensor | None]) -> Decoded:
        """Every batch with its active slots, (B, K); None for all."""
        labels, errors, flops = [], [], 0
        for batch, posterior, chosen in zip(self.batches, self.posteriors, active, strict=True):
            slots = self.autoencoder.guide.inference.slots(posterior)

            def paint(slots: Tensor = slots, chosen: Tensor | None = chosen) -> DecodedScene:
                return self.autoencoder.decode(slots, chosen)

            scene, cost = counted(paint)
            labels.append(scene.labels)
            errors.append(mean_squared_error(scene.mean, batch).double())
            flops += cost
        return Decoded(torch.cat(labels), torch.cat(errors), flops)

    def thresholds(self, rule: str, shares: Sequence[float]) -> list[float]:
        """Quantiles of a rule's scores over all slots of all images."""
        model, guide = self.autoencoder.model, self.autoencoder.guide
        with torch.no_grad():
            scores = [relevance_scores(rule, p, guide.slot_moments(p), model.trained_prior) for p in self.posteriors]
        return torch.cat(scores).flatten().double().quantile(torch.tensor(shares, dtype=torch.float64)).tolist()

    def point(self, rule: str, threshold: float) -> Point:
        """What a rule saves and loses at a threshold."""
        relevance, guide = Relevance(rule, threshold, self.autoencoder.model), self.autoencoder.guide
        active, cost = [], 0
        with torch.no_grad():
            for posterior in self.posteriors:

                def decide(posterior: SlotPosterior = posterior) -> Tensor:
                    return relevance.active(posterior, guide.slot_moments(posterior))

                chosen, own = counted(decide, every_element=True)
                active.append(chosen)
                cost += own
        return self._point(rule, threshold, active, cost)

    def perfect(self) -> Point:
        """The slots that own the most of some true segment, the background among them; labels are used."""
        needed = needed_slots(self.full.labels, self.masks, self.autoencoder.model.num_slots)
        return self._point("perfect", math.nan, list(needed.split(CHUNK)), 0)

    def _point(self, rule: str, threshold: float, active: Sequence[Tensor], cost: int) -> Point:
        decoded = self.decode(active)
        score = self._score(decoded)
        loss = self.score - score
        return Point(
            rule,
            threshold,
            1.0 - float(torch.cat(list(active)).double().mean()),
            1.0 - (decoded.flops + cost) / self.full.flops,
            cost / self.full.flops,
            float(score.mean()),
            float(loss.mean()),
            float(loss.std()) / math.sqrt(len(loss)),
            float(adjusted_rand_index(decoded.labels, self.masks).mean()),
            float(decoded.squared_error.mean()),
        )

    def sweep(self, rules: Sequence[str] = tuple(RULES), shares: Sequence[float] = SHARES) -> list[Point]:
        """All slots; each rule at the thresholds that leave the stated shares out, and at its default; the perfect."""
        whole = [torch.ones_like(posterior.weights, dtype=torch.bool) for posterior in self.posteriors]
        every = self._point("none", math.nan, whole, 0)
        points = [self.point(rule, threshold) for rule in rules for threshold in self.thresholds(rule, shares)]
        return [every, *points, *(self.point(rule, RULES[rule]) for rule in rules), self.perfect()]

    @property
    def spare(self) -> float:
        """Share of the slots that a scene does not need: all but one a true object and one for the background."""
        needed = num_objects(self.masks, self.images.background) + 1
        return 1.0 - float(needed.double().mean()) / self.autoencoder.model.num_slots


def needed_slots(
    labels: Int64[Tensor, "images height width"], true: Int64[Tensor, "images height width"], num_slots: int
) -> Bool[Tensor, "images slots"]:
    """(M, K), true at every slot that owns more of some true segment than any other slot."""
    owner = torch.nn.functional.one_hot(labels.flatten(1), num_slots).double()
    segment = torch.nn.functional.one_hot(true.flatten(1)).double()
    overlap = segment.transpose(1, 2) @ owner
    best = torch.nn.functional.one_hot(overlap.argmax(-1), num_slots).bool()
    return (best & (overlap.sum(-1, keepdim=True) > 0)).any(1)


def most_saved(points: Sequence[Point], rule: str, loss: float = 0.01) -> Point:
    """The point of a rule that saves the most FLOPs at a loss of foreground ARI of at most so much."""
    return max((p for p in points if p.rule == rule and p.loss <= loss), key=lambda p: p.flops_saved)


def draw(points: Sequence[Point], spare: float, path: Path, loss: float = 0.01) -> None:
    """Save the picture of a sweep."""
    curves = []
    for rule in RULES:
        own = [point for point in points if point.rule == rule]
        saved, lost, error = (
            np.array([getattr(p, name) for p in own]) for name in ("flops_saved", "loss", "loss_error")
        )
        curves.append(SavingCurve(rule, saved, lost, error))
    relevance_figure(curves, spare, loss, path)
