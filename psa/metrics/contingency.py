"""The contingency tables of a batch of label maps, and the checks that label maps pass first.

Only the cells that occur are kept, as one flat list for the whole batch, so that any integer labels and any number of
segments fit in memory proportional to the pixels.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64, Integer, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The (image, label) pairs that occur in a batch of label maps.

    Attributes:
        index: The segment of each kept pixel, image after image.
        image: The image that a segment lies in.
        label: Its label.
        size: Its number of kept pixels, at least 1.
    """

    index: Int64[Tensor, " pixels"]
    image: Int64[Tensor, " segments"]
    label: Int64[Tensor, " segments"]
    size: Int64[Tensor, " segments"]


@dataclass(frozen=True)
class Contingency:
    """How the segments of two label maps overlap, for a batch.

    Attributes:
        rows: The segments of the first map.
        columns: The segments of the second.
        cells: Their intersections that are not empty (labels are a numbering of no meaning).
        cell_row: The row of each cell.
        cell_column: The column of each cell.
    """

    rows: Segments
    columns: Segments
    cells: Segments
    cell_row: Int64[Tensor, " cells"]
    cell_column: Int64[Tensor, " cells"]


def contingency(
    first: Int64[Tensor, "batch pixels"], second: Int64[Tensor, "batch pixels"], keep: Bool[Tensor, "batch pixels"]
) -> Contingency:
    """Count the pixels of every pair of segments of an image.

    Args:
        first: (B, N) labels, any integers; they make the rows.
        second: (B, N) labels, any integers; they make the columns.
        keep: (B, N), the pixels that count.

    Returns:
        A table with sizes that sum to the number of kept pixels, over rows, columns and cells alike.
    """
    rows, columns = segments_of(first, keep), segments_of(second, keep)
    width = len(columns.size)
    keys, index, size = (rows.index * width + columns.index).unique(return_inverse=True, return_counts=True)
    cell_row = keys // width
    return Contingency(rows, columns, Segments(index, rows.image[cell_row], keys, size), cell_row, keys % width)


def segments_of(labels: Int64[Tensor, "batch pixels"], keep: Bool[Tensor, "batch pixels"]) -> Segments:
    """Find the segments of a batch of label maps, in order of image and label.

    Args:
        labels: (B, N), any integers.
        keep: (B, N), the pixels that count; a segment without one does not occur.
    """
    values, compact = labels.unique(return_inverse=True)
    images = torch.arange(len(labels), device=labels.device).unsqueeze(1).expand_as(labels)
    # Any integers become 0, 1, ... first, so that an (image, label) pair is one number that cannot overflow.
    num_values = len(values)
    keys, index, size = (images * num_values + compact)[keep].unique(return_inverse=True, return_counts=True)
    return Segments(index, keys // num_values, values[keys % num_values], size)


def kept(labels: Int64[Tensor, "*shape"], dropped: Collection[int]) -> Bool[Tensor, "*shape"]:
    """Where the label is none of those dropped."""
    return ~torch.isin(labels, torch.tensor(sorted(dropped), dtype=torch.int64, device=labels.device))


def first_of_each(
    group: Int64[Tensor, " entries"],
    order: Shaped[Tensor, " entries"],
    among: Bool[Tensor, " entries"],
    num_groups: int,
) -> Bool[Tensor, " entries"]:
    """The entry of largest order in each group, of those among; of equals the first. A group may have none.

    Args:
        group: (n,), in [0, num_groups).
        order: (n,), such as confidences.
        among: (n,), the entries that count.
        num_groups: How many groups there are.
    """
    rank = torch.empty_like(group)
    rank[order.argsort(descending=True, stable=True)] = torch.arange(len(group), device=group.device)
    rank = rank.masked_fill(~among, len(group))
    first = group.new_full((num_groups,), len(group)).scatter_reduce(0, group, rank, "amin")
    return among & (rank == first[group])


def label_maps(
    predicted: Integer[Tensor, "batch *pixels"], true: Integer[Tensor, "batch *pixels"]
) -> tuple[Int64[Tensor, "batch num_pixels"], Int64[Tensor, "batch num_pixels"]]:
    """Check two label maps of one batch and flatten their pixels.

    Raises:
        ValueError: If they are not integers, have no pixel axis, or differ in shape or device.
    """
    require_integers(predicted, "predicted")
    require_integers(true, "true")
    require_same_shape("predicted", predicted, "true", true)
    return label_map(predicted, "predicted"), label_map(true, "true")


def label_map(labels: Integer[Tensor, "batch *pixels"], name: str) -> Int64[Tensor, "batch num_pixels"]:
    """Check label maps (B, ...) and flatten their pixels.

    Raises:
        ValueError: If they are not integers or have no pixel axis.
    """
    require_integers(labels, name)
    if labels.ndim < 2:
        raise ValueError(f"{name}: expected (B, ...) with a pixel axis, came shape {tuple(labels.shape)}")
    return labels.long().reshape(len(labels), math.prod(labels.shape[1:]))


def require_integers(labels: Tensor, name: str) -> None:
    """Raise ValueError if these are no integers; booleans are masks, not labels."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers, came {labels.dtype}")


def require_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError if the first differs from the other in shape or device."""
    if tensor.shape != other.shape or tensor.device != other.device:
        expected = f"{other_name}'s shape {tuple(other.shape)} on {other.device}"
        raise ValueError(f"{name}: expected {expected}, came {tuple(tensor.shape)} on {tensor.device}")
