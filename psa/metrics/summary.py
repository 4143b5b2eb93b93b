"""From the scores of images to the figures of a data set."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from psa.metrics.segmentation import (
    adjusted_rand_index,
    foreground_ari,
    mean_segmentation_covering,
    num_objects,
)


@dataclass(frozen=True)
class ImageScores:
    """How each image of a batch was segmented.

    Attributes:
        foreground_ari: (B,), true background pixels dropped.
        ari: (B,), every pixel counted.
        msc: (B,), mean segmentation covering; NaN for an image with no object.
        num_objects: (B,), true segments that are not background.
    """

    foreground_ari: Float64[Tensor, " batch"]
    ari: Float64[Tensor, " batch"]
    msc: Float64[Tensor, " batch"]
    num_objects: Int64[Tensor, " batch"]


@dataclass(frozen=True)
class SegmentationSummary:
    """How a data set was segmented; a mean over no image is NaN.

    Attributes:
        foreground_ari: Mean over the images with at least two objects: the figure to quote.
        foreground_ari_stderr: Its standard error over those images, s / sqrt(n); NaN for fewer than two.
        foreground_ari_all: Mean over all images. One with a single object scores 0 or 1 and one with none scores 1,
            so this figure says more about the data than about the model where such images are common.
        ari: Mean over all images, the background one segment among others.
        msc: Mean segmentation covering over the images with an object.
        share_single_object: Share of the images with at most one object, in [0, 1]: those foreground_ari leaves out.
        num_images: How many images there were.
    """

    foreground_ari: float
    foreground_ari_stderr: float
    foreground_ari_all: float
    ari: float
    msc: float
    share_single_object: float
    num_images: int


def score_images(
    predicted: Integer[Tensor, "batch *pixels"],
    true: Integer[Tensor, "batch *pixels"],
    background: Collection[int] = (0,),
) -> ImageScores:
    """Score each image of a batch.

    Args:
        predicted: (B, ...) integer labels, any values.
        true: (B, ...) integer labels, the same shape.
        background: True labels that are no object.

    Raises:
        ValueError: As ``psa.metrics.segmentation.adjusted_rand_index``.
    """
    return ImageScores(
        foreground_ari=foreground_ari(predicted, true, background),
        ari=adjusted_rand_index(predicted, true),
        msc=mean_segmentation_covering(predicted, true, background),
        num_objects=num_objects(true, background),
    )


def summarise(scores: ImageScores | Sequence[ImageScores]) -> SegmentationSummary:
    """Reduce the scores of all images to the figures of the data set.

    Does not depend on how the images were cut into batches.

    Args:
        scores: Of one batch, or of all batches of the data set.
    """
    batches = [scores] if isinstance(scores, ImageScores) else list(scores)
    foreground = _concatenated([batch.foreground_ari for batch in batches])
    ari = _concatenated([batch.ari for batch in batches])
    msc = _concatenated([batch.msc for batch in batches])
    objects = _concatenated([batch.num_objects.double() for batch in batches])
    several = foreground[objects >= 2]
    return SegmentationSummary(
        foreground_ari=several.mean().item(),
        foreground_ari_stderr=several.std().item() / math.sqrt(len(several)) if len(several) > 1 else math.nan,
        foreground_ari_all=foreground.mean().item(),
        ari=ari.mean().item(),
        msc=msc[objects >= 1].mean().item(),
        share_single_object=(objects < 2).double().mean().item(),
        num_images=len(ari),
    )


def _concatenated(batches: list[Tensor]) -> Float64[Tensor, " images"]:
    return torch.cat([batch.detach().cpu() for batch in batches]) if batches else torch.zeros(0, dtype=torch.float64)
