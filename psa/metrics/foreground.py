"""Foreground extraction: the one segment that is the foreground, held against the true one."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from psa.metrics.contingency import contingency, kept, label_maps


@dataclass(frozen=True)
class ForegroundOverlap:
    """Of each image; NaN where it has no foreground.

    Attributes:
        iou: (B,), intersection over union, in (0, 1]. Its mean over images is what the papers call mIoU.
        dice: (B,), 2 IoU / (1 + IoU), in (0, 1].
    """

    iou: Float64[Tensor, " batch"]
    dice: Float64[Tensor, " batch"]


def foreground_overlap(
    predicted: Integer[Tensor, "batch *pixels"],
    true: Integer[Tensor, "batch *pixels"],
    background: Collection[int] = (0,),
) -> ForegroundOverlap:
    """The predicted segment that shares most pixels with the true foreground, against that foreground.

        r* = argmax_r |r & F|,    IoU = |r* & F| / |r* | F|,    Dice = 2 |r* & F| / (|r*| + |F|)

    with F all pixels of true objects together. Of segments that share equally many, the one with the larger IoU. It is
    chosen with the truth in hand, as in the papers: the figure says whether one slot holds the foreground, and not
    whether one can tell which.

    Args:
        predicted: (B, ...) integer labels, any values.
        true: (B, ...) integer labels, the same shape.
        background: True labels that are no object.

    Raises:
        ValueError: As ``psa.metrics.segmentation.adjusted_rand_index``.

    Reference: Jia et al., BO-QSA, 2023, section 5.2; Yu et al., Unsupervised foreground extraction (DRC), 2021.
    """
    predicted, true = label_maps(predicted, true)
    foreground = kept(true, background).long()
    table = contingency(foreground, predicted, kept(true, ()))
    union = table.rows.size[table.cell_row] + table.columns.size[table.cell_column] - table.cells.size
    mine = table.rows.label[table.cell_row] == 1
    image, shared, iou = table.cells.image[mine], table.cells.size[mine], (table.cells.size.double() / union)[mine]
    most = shared.new_zeros(len(true)).scatter_reduce(0, image, shared, "amax")
    iou = iou.masked_fill(shared < most[image], 0.0)
    best = iou.new_full((len(true),), torch.nan).scatter_reduce(0, image, iou, "amax", include_self=False)
    return ForegroundOverlap(iou=best, dice=2 * best / (1 + best))
