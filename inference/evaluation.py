"""What a trained run reaches on a set of images: segmentation, reconstruction, slots, baselines, and its health."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from psa.inference.attention_masks import attention_masks, resized
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.failures import Health, HealthWatch
from psa.inference.images import Images, ImageSet
from psa.inference.objectives import held_out_objective
from psa.inference.word_figures import WordCounts, WordFigures
from psa.metrics import (
    BASELINES,
    ImageScores,
    MaskScores,
    MaskSummary,
    SegmentationSummary,
    mean_squared_error,
    num_objects,
    score_images,
    score_masks,
    slot_count_error,
    slots_in_use,
    summarise,
    summarise_masks,
)
from psa.records import DecodedScene, SlotPosterior

CHUNK = 128


@dataclass(frozen=True)
class Evaluation:
    """Figures of one run on one set of images.

    Attributes:
        segmentation: Scores against true masks, or None without masks.
        mse: Mean squared error of the reconstruction, image range [0, 1].
        objective: Minus the training objective, nats per channel of a pixel.
        slots_in_use: Mean number of slots that own at least 1 % of the pixels.
        slot_count_error: Mean absolute difference from the number of true segments, background included.
        health: What can be said without labels.
        num_images: Images looked at.
        masks: The measures of real images by kind of mask: ``decoder``, and ``attention`` (the responsibilities,
            resized to the image); None without true masks.
        background: True labels that are no objects; None without true masks.
        true_labels: What the other labels stand for, ``instance`` or ``class``; None without true masks.
        description: What the objective was: without KL or sampling, the figure is no bound on log p(x).
        share_not_decoded: Of the slots, in [0, 1); None where no rule drops any.
        mask_kind: The masks that the segmentation is of: ``decoder``, or ``attention`` where slots have no pictures.
        words: How well slots tell the words of the images; None where the decoder has no words.
    """

    segmentation: SegmentationSummary | None
    mse: float
    objective: float
    slots_in_use: float
    slot_count_error: float | None
    health: Health
    num_images: int
    description: str
    share_not_decoded: float | None = None
    masks: Mapping[str, MaskSummary] | None = None
    background: tuple[int, ...] | None = None
    true_labels: str | None = None
    mask_kind: str = "decoder"
    words: WordFigures | None = None

    def to_json(self) -> dict[str, object]:
        """Plain values, the main figure first."""
        flat: dict[str, object] = asdict(self.segmentation) if self.segmentation is not None else {}
        rest = {k: v for k, v in asdict(self).items() if k not in ("segmentation", "health") and v is not None}
        return flat | rest | {"health": asdict(self.health) | {"problems": list(self.health.problems)}}


def describe_objective(autoencoder: SlotAutoencoder) -> str:
    """What a run was trained on, in words."""
    objective, relevance = autoencoder.config.objective, autoencoder.guide.relevance
    notes = "" if relevance is None else f"; slots that {relevance.rule} calls empty are not decoded"
    weights = {name: getattr(autoencoder.config.bottleneck, name) for name in ("covariance", "variance", "cosine")}
    added = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)
    notes += f"; training added losses on slots ({added}), which are no part of the figure" if added else ""
    if autoencoder.guide.code is not None:
        notes += "; the words' entropy is left out, so it is no bound"
    if objective.kl_weight == 0:
        drawn = "slots drawn from q" if objective.sample else "slots a point, not drawn"
        words = f"trained without the KL term ({drawn}): the objective is a conditional likelihood, not evidence"
        return words + notes
    weight = "" if objective.kl_weight == 1 else f", KL weighted by {objective.kl_weight:g}: not a bound"
    return f"trained on the ELBO with slots drawn from q{weight}; the figure is taken at the read-outs{notes}"


@torch.no_grad()
def evaluate(
    autoencoder: SlotAutoencoder, images: Images, progress: Callable[[int], object] = lambda done: None
) -> Evaluation:
    """Score a run on images, a chunk at a time; of each image a few numbers are kept.

    Args:
        autoencoder: Its mode is left as it is; slots are read out at their means.
        images: With or without masks.
        progress: Called with the number of images done.
    """
    tally, done = _Tally(autoencoder), 0
    with images.chunks(CHUNK) as chunks:
        for chunk in chunks:
            tally.add(chunk)
            done += len(chunk)
            progress(done)
    return tally.evaluation(images)


class _Tally:
    """What is kept of the images, as they go by."""

    def __init__(self, autoencoder: SlotAutoencoder) -> None:
        self._autoencoder = autoencoder
        self._watch = HealthWatch(autoencoder.model.num_slots)
        self._words = None if autoencoder.guide.code is None else WordCounts(autoencoder)
        self._scores: dict[str, list[MaskScores]] = {}
        self._objective = 0.0
        self._errors: list[Tensor] = []
        self._decoded: list[Tensor] = []
        self._used: list[Tensor] = []
        self._misses: list[Tensor] = []

    def add(self, chunk: ImageSet) -> None:
        """Some more images."""
        autoencoder = self._autoencoder
        batch = chunk.batch(slice(None)).to(autoencoder.model.prior_loc)
        posterior, slots, masks = autoencoder.encode(batch)
        active = autoencoder.guide.active(posterior)
        scene = autoencoder.decode(slots, active)
        if active is not None:
            self._decoded.append(active.cpu())
        if self._words is not None:
            self._words.add(batch, slots, active)
        labels = autoencoder.labels(scene, masks).cpu()
        self._watch.add(labels, chunk.batch(slice(None)), scene.mean.cpu())
        self._errors.append(mean_squared_error(scene.mean, batch).cpu())
        self._objective += held_out_objective(autoencoder, batch) * len(batch)
        self._used.append(slots_in_use(labels, autoencoder.model.num_slots))
        if chunk.masks is not None:
            self._misses.append(slot_count_error(self._used[-1], num_segments(chunk.masks, chunk.background)))
            kinds = mask_kinds(autoencoder, posterior, scene) | {autoencoder.mask_kind: masks}
            for kind, found in kinds.items():
                scored = score_masks(found.cpu(), chunk.masks, chunk.background, chunk.classes)
                self._scores.setdefault(kind, []).append(scored)

    def evaluation(self, images: Images) -> Evaluation:
        """Of all that was added, which are these."""
        kind, scores = self._autoencoder.mask_kind, self._scores
        return Evaluation(
            segmentation=summarise([batch.images for batch in scores[kind]]) if scores else None,
            mse=_mean(self._errors),
            objective=self._objective / len(images),
            slots_in_use=_mean(self._used),
            slot_count_error=_mean(self._misses) if self._misses else None,
            health=self._watch.health(),
            num_images=len(images),
            description=describe_objective(self._autoencoder),
            mask_kind=kind,
            words=None if self._words is None else self._words.figures(),
            share_not_decoded=1.0 - _mean(self._decoded) if self._decoded else None,
            **_measured(scores, images),
        )


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).double().mean())


def mask_kinds(autoencoder: SlotAutoencoder, posterior: SlotPosterior, scene: DecodedScene) -> dict[str, Tensor]:
    """The masks (B, K, H, W) that a run has of images, by kind; the attention's only where tokens are a grid."""
    attention = attention_masks(autoencoder.guide.encoder, posterior, autoencoder.size)
    return {"decoder": resized(scene.masks, autoencoder.size)} | ({} if attention is None else {"attention": attention})


def _measured(scores: Mapping[str, list[MaskScores]], images: Images) -> dict[str, Any]:
    if not scores:
        return {}
    instances = images.label_kind == "instance"
    masks = {kind: summarise_masks(batches, instances) for kind, batches in scores.items()}
    return {"masks": masks, "background": images.background, "true_labels": images.label_kind}


def num_segments(masks: Tensor, background: tuple[int, ...]) -> Tensor:
    """The number of objects of each image, and one more where it has a background."""
    has_background = torch.isin(masks, torch.tensor(background, dtype=torch.int64)).flatten(1).any(1)
    return num_objects(masks, background) + has_background


def evaluate_baselines(
    images: Images, num_slots: int, progress: Callable[[int], object] = lambda done: None
) -> dict[str, SegmentationSummary]:
    """Segmentations that need no learning, on the same images; empty without masks."""
    scores: dict[str, list[ImageScores]] = {name: [] for name in BASELINES}
    done = 0
    with images.chunks(CHUNK) as chunks:
        for chunk in chunks:
            if chunk.masks is None:
                return {}
            for name, segment in BASELINES.items():
                labels = segment(chunk.images, num_slots)
                scores[name].append(score_images(labels, chunk.masks, chunk.background))
            done += len(chunk)
            progress(done)
    return {name: summarise(parts) for name, parts in scores.items()}
