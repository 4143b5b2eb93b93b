"""What a set of masks is worth, by every measure that the papers report for real images; a data set at once."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Float64, Integer
from torch import Tensor

from psa.metrics.detection import Detections, detect, score_detections
from psa.metrics.foreground import ForegroundOverlap, foreground_overlap
from psa.metrics.segmentation import mean_segmentation_covering
from psa.metrics.summary import ImageScores, score_images, summarise


@dataclass(frozen=True)
class MaskScores:
    """How the masks of a batch of images compare with the truth.

    Attributes:
        images: Scores of each image.
        foreground: Of the one segment that shares most with the foreground.
        detections: Segments as detections of objects.
        class_overlap: (B,), the best IoU, mean over the image's classes; None without class labels.
    """

    images: ImageScores
    foreground: ForegroundOverlap
    detections: Detections
    class_overlap: Float64[Tensor, " batch"] | None


@dataclass(frozen=True)
class MaskSummary:
    """How the masks of a data set compare with the truth; a mean over no image is NaN.

    Attributes:
        foreground_ari: Over images with at least two objects.
        ari: Over all images, background included.
        mbo_instance: Mean best overlap of true objects: for each the best IoU with any mask, mean over an image's
            objects, then over images with an object (Pont-Tuset et al. 2017; Seitzer et al. 2023). The same figure as
            mean segmentation covering (MSC). None where the true labels stand for classes.
        mbo_class: The same with the objects of a class as one segment; None without class labels.
        foreground_iou: Foreground extraction's mIoU, over images with a foreground.
        foreground_dice: Its Dice.
        ap, pq, precision, recall: Of the segments as detections (``psa.metrics.detection``).
    """

    foreground_ari: float
    ari: float
    mbo_instance: float | None
    mbo_class: float | None
    foreground_iou: float
    foreground_dice: float
    ap: float
    pq: float
    precision: float
    recall: float


def score_masks(
    masks: Float[Tensor, "batch slots height width"],
    true: Integer[Tensor, "batch height width"],
    background: Collection[int] = (0,),
    classes: Integer[Tensor, "batch height width"] | None = None,
) -> MaskScores:
    """Score soft masks: a pixel belongs to the slot with the largest one, and is as sure as that mask's value.

    Args:
        masks: (B, K, H, W), in [0, 1], summing to 1 over K.
        true: (B, H, W), integer labels.
        background: Labels of true and of classes that are no object.
        classes: (B, H, W), integer labels of classes.

    Raises:
        ValueError: As ``psa.metrics.segmentation.adjusted_rand_index``.
    """
    confidence, labels = masks.max(dim=1)
    return MaskScores(
        images=score_images(labels, true, background),
        foreground=foreground_overlap(labels, true, background),
        detections=detect(labels, true, background, confidence),
        class_overlap=None if classes is None else mean_segmentation_covering(labels, classes, background),
    )


def summarise_masks(scores: Sequence[MaskScores], instances: bool = True) -> MaskSummary:
    """Reduce the scores of all batches to the figures of the data set.

    Args:
        scores: Of all batches.
        instances: Whether the true labels stand for objects; otherwise for classes.
    """
    summary = summarise([batch.images for batch in scores])
    overlaps = [batch.class_overlap for batch in scores if batch.class_overlap is not None]
    return MaskSummary(
        foreground_ari=summary.foreground_ari,
        ari=summary.ari,
        mbo_instance=summary.msc if instances else None,
        mbo_class=_mean(overlaps) if overlaps else None,
        foreground_iou=_mean([batch.foreground.iou for batch in scores]),
        foreground_dice=_mean([batch.foreground.dice for batch in scores]),
        **asdict(score_detections([batch.detections for batch in scores])),
    )


def _mean(batches: Sequence[Tensor]) -> float:
    """Over the images of all batches that have a value."""
    values = torch.cat([batch.cpu() for batch in batches]) if batches else torch.zeros(0)
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else math.nan
