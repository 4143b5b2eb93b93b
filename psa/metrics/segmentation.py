"""Segmentations compared with the truth, a batch of images at once."""

from collections.abc import Collection

import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from psa.metrics.contingency import (
    Segments,
    contingency,
    kept,
    label_map,
    label_maps,
    require_integers,
    require_same_shape,
    segments_of,
)


def adjusted_rand_index(
    predicted: Integer[Tensor, "batch *pixels"], true: Integer[Tensor, "batch *pixels"], ignore: Collection[int] = ()
) -> Float64[Tensor, " batch"]:
    """The Rand index of two partitions of an image's pixels, adjusted for chance.

    With pairs of pixels counted as together (1) or apart (0) in truth and prediction,

        ARI = 2 (c11 c00 - c10 c01) / ((c11 + c10) (c10 + c00) + (c11 + c01) (c01 + c00)),

    1 for equal partitions, about 0 for unrelated ones, -0.5 at least. The counts are exact integers. Equal to
    ``sklearn.metrics.adjusted_rand_score`` on every image, also where it is a matter of convention: 1 when the two
    partitions are equal, so for one segment in both, for single pixels in both, for one pixel and for none at all
    (every pixel ignored). Symmetric in its arguments while nothing is ignored.

    Args:
        predicted: (B, ...) integer labels, any values.
        true: (B, ...) integer labels, any values, the same shape.
        ignore: True labels whose pixels are dropped.

    Returns:
        (B,) float64 in [-0.5, 1].

    Raises:
        ValueError: If the labels are not integers, have no pixel axis, or differ in shape or device.

    Reference: Hubert and Arabie, Comparing partitions, Journal of Classification 2, 1985.
    """
    predicted, true = label_maps(predicted, true)
    keep = kept(true, ignore)
    num_images = len(true)
    table = contingency(true, predicted, keep)
    rows, columns, cells = table.rows, table.columns, table.cells

    num_pixels = keep.sum(dim=1)
    both = _sum_of_squares(cells, num_images)
    in_true = _sum_of_squares(rows, num_images)
    in_predicted = _sum_of_squares(columns, num_images)
    c11, c10, c01 = both - num_pixels, in_true - both, in_predicted - both
    c00 = num_pixels**2 - in_true - in_predicted + both

    same = (c10 == 0) & (c01 == 0)
    c11, c10, c01, c00 = c11.double(), c10.double(), c01.double(), c00.double()
    # The products pass 2^63 from about 300 x 300 pixels; in float64 their error stays 1e-16 of the denominator.
    denominator = (c11 + c10) * (c10 + c00) + (c11 + c01) * (c01 + c00)
    ratio = 2.0 * (c11 * c00 - c10 * c01) / denominator.masked_fill(same, 1.0)
    return ratio.masked_fill(same, 1.0)


def foreground_ari(
    predicted: Integer[Tensor, "batch *pixels"],
    true: Integer[Tensor, "batch *pixels"],
    background: Collection[int] = (0,),
) -> Float64[Tensor, " batch"]:
    """The adjusted Rand index over the pixels of true objects, as the papers on slots report it (FG-ARI).

    Identical to ``adjusted_rand_index(predicted, true, ignore=background)``. Blind to how the background is segmented
    and to objects that bleed into it. An image with one object scores 1 if one slot owns all of it and 0 otherwise;
    one with no object scores 1.

    Args:
        predicted: (B, ...) integer labels.
        true: (B, ...) integer labels, the same shape.
        background: True labels that are no object.

    Returns:
        (B,) float64 in [-0.5, 1].

    Raises:
        ValueError: As ``adjusted_rand_index``.

    Reference: Greff et al., Multi-object representation learning with iterative variational inference (IODINE), 2019.
    """
    return adjusted_rand_index(predicted, true, ignore=background)


def mean_segmentation_covering(
    predicted: Integer[Tensor, "batch *pixels"],
    true: Integer[Tensor, "batch *pixels"],
    background: Collection[int] = (0,),
) -> Float64[Tensor, " batch"]:
    """How well the best predicted segment covers each true object (mSC, MSC).

        mSC = 1/|S| sum_{s in S} max_r |s & r| / |s | r|,      S the true segments that are not background,

    unweighted: a small object counts as much as a large one. The background is no member of S, but its pixels stay:
    a predicted segment that bleeds into the background has the larger union and so the lower score, as in the code of
    GENESIS (FG-ARI, in contrast, drops them). Any predicted segment may be the best for several objects.

    Args:
        predicted: (B, ...) integer labels.
        true: (B, ...) integer labels, the same shape.
        background: True labels that are no object.

    Returns:
        (B,) float64 in (0, 1]; NaN for an image with no object (GENESIS has 0 there).

    Raises:
        ValueError: As ``adjusted_rand_index``.

    Reference: Engelcke et al., GENESIS, 2020, and GENESIS-V2, 2021; Jia et al., BO-QSA, 2023.
    """
    predicted, true = label_maps(predicted, true)
    table = contingency(true, predicted, kept(true, ()))
    rows, overlap = table.rows, table.cells.size
    union = rows.size[table.cell_row] + table.columns.size[table.cell_column] - overlap
    iou = overlap.double() / union
    best = iou.new_zeros(len(rows.size)).scatter_reduce(0, table.cell_row, iou, "amax")

    objects = kept(rows.label, background)
    total = iou.new_zeros(len(true)).index_add(0, rows.image[objects], best[objects])
    return total / torch.bincount(rows.image[objects], minlength=len(true))


def num_objects(true: Integer[Tensor, "batch *pixels"], background: Collection[int] = (0,)) -> Int64[Tensor, " batch"]:
    """The number of different labels of an image, those of the background left out.

    Args:
        true: (B, ...) integer labels.
        background: Labels that are no object.

    Returns:
        (B,) int64, 0 and up.

    Raises:
        ValueError: If the labels are not integers or have no pixel axis.
    """
    true = label_map(true, "true")
    segments = segments_of(true, kept(true, background))
    return torch.bincount(segments.image, minlength=len(true))


def slots_in_use(
    labels: Integer[Tensor, "batch *pixels"], num_slots: int, min_share: float = 0.01
) -> Int64[Tensor, " batch"]:
    """The number of slots that own at least a stated share of an image's pixels.

    Args:
        labels: (B, H, W) integers in [0, num_slots): the slot that owns each pixel.
        num_slots: K, positive.
        min_share: The share from which a slot counts, in (0, 1]; a slot with exactly this share counts.

    Returns:
        (B,) int64 in [0, num_slots].

    Raises:
        ValueError: If a label or a setting is outside its support.
    """
    labels = label_map(labels, "labels")
    if num_slots < 1:
        raise ValueError(f"num_slots: expected at least 1, came {num_slots}")
    if not 0.0 < min_share <= 1.0:
        raise ValueError(f"min_share: expected a share in (0, 1], came {min_share}")
    if labels.numel() and not (labels.min() >= 0 and labels.max() < num_slots):
        came = f"{labels.min().item()} to {labels.max().item()}"
        raise ValueError(f"labels: expected slots in [0, {num_slots}), came {came}")
    images = torch.arange(len(labels), device=labels.device).unsqueeze(1)
    owned = torch.bincount((images * num_slots + labels).flatten(), minlength=len(labels) * num_slots)
    # A quotient rounds to the same double as the decimal it equals (7 / 100 == 0.07); a product need not.
    return (owned.view(-1, num_slots).double() / labels.shape[1] >= min_share).sum(dim=1)


def slot_count_error(
    slots_in_use: Integer[Tensor, " batch"], num_segments: Integer[Tensor, " batch"]
) -> Int64[Tensor, " batch"]:
    """By how many slots the number in use misses the number of true segments, |used - true|.

    Args:
        slots_in_use: (B,) integers.
        num_segments: (B,) integers; count the background if a slot is meant to hold it.

    Returns:
        (B,) int64, 0 and up.

    Raises:
        ValueError: If the counts are not integers or differ in shape.
    """
    for name, counts in (("slots_in_use", slots_in_use), ("num_segments", num_segments)):
        require_integers(counts, name)
    require_same_shape("num_segments", num_segments, "slots_in_use", slots_in_use)
    return (slots_in_use.long() - num_segments.long()).abs()


def mean_squared_error(
    reconstruction: Float[Tensor, "batch *pixels"], image: Float[Tensor, "batch *pixels"]
) -> Float[Tensor, " batch"]:
    """The squared error of a reconstruction, averaged over an image's pixels and channels.

    Args:
        reconstruction: (B, ...) floats, in the image's units (squared in the result).
        image: (B, ...) floats, the same shape.

    Returns:
        (B,), at least float32, 0 and up.

    Raises:
        ValueError: If one is not floating point (bytes have another scale), or the shapes differ.
    """
    for name, picture in (("reconstruction", reconstruction), ("image", image)):
        if not picture.is_floating_point():
            raise ValueError(f"{name}: expected floating point, came {picture.dtype}")
    require_same_shape("reconstruction", reconstruction, "image", image)
    if image.ndim < 2:
        raise ValueError(f"image: expected (B, ...) with a pixel axis, came shape {tuple(image.shape)}")
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, image.dtype), torch.float32)
    return (reconstruction.to(dtype) - image.to(dtype)).square().flatten(1).mean(dim=1)


def _sum_of_squares(segments: Segments, num_images: int) -> Int64[Tensor, " batch"]:
    return segments.size.new_zeros(num_images).index_add(0, segments.image, segments.size.square())
