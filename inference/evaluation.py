"""What a trained run reaches on a set of images: segmentation, reconstruction, slots, baselines, and its health."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from psa.inference.attention_masks import attention_masks
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.failures import Health, diagnose
from psa.inference.images import ImageSet
from psa.inference.objectives import held_out_objective
from psa.inference.word_figures import WordCounts, WordFigures
from psa.metrics import (
    BASELINES,
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
    autoencoder: SlotAutoencoder, images: ImageSet, progress: Callable[[int], None] | None = None
) -> Evaluation:
    """Score a run on images, in chunks that fit memory.

    Args:
        autoencoder: Its mode is left as it is; slots are read out at their means.
        images: With or without masks.
        progress: Called with the number of images done.
    """
    num_slots = autoencoder.model.num_slots
    labels, errors, reconstructions, objectives, decoded = [], [], [], [], []
    scores: dict[str, list[MaskScores]] = {}
    words = None if autoencoder.guide.code is None else WordCounts(autoencoder)
    for start in range(0, len(images), CHUNK):
        batch = images.batch(slice(start, start + CHUNK)).to(autoencoder.model.prior_loc)
        posterior, slots, masks = autoencoder.encode(batch)
        active = autoencoder.guide.active(posterior)
        scene = autoencoder.decode(slots, active)
        if active is not None:
            decoded.append(active.cpu())
        if words is not None:
            words.add(batch, slots, active)
        labels.append(autoencoder.labels(scene, masks).cpu())
        reconstructions.append(scene.mean.cpu())
        errors.append(mean_squared_error(scene.mean, batch).cpu())
        objectives.append(held_out_objective(autoencoder, batch) * len(batch))
        if images.masks is not None:
            kinds = mask_kinds(autoencoder, posterior, scene) | {autoencoder.mask_kind: masks}
            for kind, found in kinds.items():
                scores.setdefault(kind, []).append(_scores(found, images, slice(start, start + CHUNK)))
        if progress is not None:
            progress(min(start + CHUNK, len(images)))
    all_labels = torch.cat(labels)
    used = slots_in_use(all_labels, num_slots)
    return Evaluation(
        segmentation=summarise([batch.images for batch in scores[autoencoder.mask_kind]]) if scores else None,
        mse=float(torch.cat(errors).mean()),
        objective=sum(objectives) / len(images),
        slots_in_use=float(used.double().mean()),
        slot_count_error=_count_error(used, images),
        health=diagnose(all_labels, images.batch(slice(None)), torch.cat(reconstructions), num_slots),
        num_images=len(images),
        description=describe_objective(autoencoder),
        mask_kind=autoencoder.mask_kind,
        words=None if words is None else words.figures(),
        share_not_decoded=1.0 - float(torch.cat(decoded).double().mean()) if decoded else None,
        **_measured(scores, images),
    )


def mask_kinds(autoencoder: SlotAutoencoder, posterior: SlotPosterior, scene: DecodedScene) -> dict[str, Tensor]:
    """The masks (B, K, H, W) that a run has of images, by kind; the attention's only where tokens are a grid."""
    attention = attention_masks(autoencoder.guide.encoder, posterior, autoencoder.size)
    return {"decoder": scene.masks} | ({} if attention is None else {"attention": attention})


def _scores(masks: Tensor, images: ImageSet, part: slice) -> MaskScores:
    assert images.masks is not None
    classes = None if images.classes is None else images.classes[part]
    return score_masks(masks.cpu(), images.masks[part], images.background, classes)


def _measured(scores: Mapping[str, list[MaskScores]], images: ImageSet) -> dict[str, Any]:
    if images.masks is None:
        return {}
    instances = images.label_kind == "instance"
    masks = {kind: summarise_masks(batches, instances) for kind, batches in scores.items()}
    return {"masks": masks, "background": images.background, "true_labels": images.label_kind}


def _count_error(used: Tensor, images: ImageSet) -> float | None:
    if images.masks is None:
        return None
    has_background = torch.isin(images.masks, torch.tensor(images.background, dtype=torch.int64)).flatten(1).any(1)
    segments = num_objects(images.masks, images.background) + has_background
    return float(slot_count_error(used, segments).double().mean())


def evaluate_baselines(images: ImageSet, num_slots: int) -> dict[str, SegmentationSummary]:
    """Segmentations that need no learning, on the same images; empty without masks."""
    if images.masks is None:
        return {}
    return {
        name: summarise(score_images(segment(images.images, num_slots), images.masks, images.background))
        for name, segment in BASELINES.items()
    }
