"""Which slot of one run is which slot of another, image by image."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from psa.metrics.affine_fit import fit_affine, whiten, whiten_determined

MAX_ROUNDS = 100  # of fits; they end by themselves, mostly within 30
LEAST_FALL = 1e-4  # of the mean cost, relative, for another round
MASK_NUMBERS = 1 << 22  # of masks in float64, at once


def match(
    cost: Float64[Tensor, "batch slots slots"],
    active_a: Bool[Tensor, "batch slots"],
    active_b: Bool[Tensor, "batch slots"],
) -> Int64[Tensor, "batch slots"]:
    """The one-to-one matching of least total cost in every image, active slots with active ones first.

    As many active pairs as there can be, then the least sum of their costs; what is left is matched in order.

    Args:
        cost: (M, K, K), of slot k of a (rows) with slot j of b (columns); anything where one is inactive.
        active_a: (M, K).
        active_b: (M, K).

    Returns:
        (M, K), the slot of b for each slot of a: a permutation in every image.
    """
    both = active_a[:, :, None] & active_b[:, None, :]
    cost = torch.where(both, cost, torch.zeros_like(cost))
    never = 1.0 + 2.0 * cost.shape[1] * cost.abs().amax((1, 2), keepdim=True)
    matrices = torch.where(both, cost, never).cpu().numpy()
    found = np.stack([linear_sum_assignment(matrix)[1] for matrix in matrices])
    return torch.from_numpy(found).to(cost.device, torch.int64)


def mask_overlap(
    masks_a: Shaped[Tensor, "batch slots pixels"], masks_b: Shaped[Tensor, "batch slots pixels"]
) -> Float64[Tensor, "batch slots slots"]:
    """The overlap of every pair of masks of an image, a'b / (a'a + b'b - a'b) over pixels.

    The Jaccard index (intersection over union) where masks are 0 or 1; of soft ones 1 if they are equal and less
    otherwise (Tanimoto). 0 for an empty mask. Small objects weigh as much as the background.

    Args:
        masks_a: (M, K, N), non-negative.
        masks_b: (M, K, N).

    Returns:
        (M, K, K), slot of a x slot of b, in [0, 1].
    """
    a, b = masks_a.double(), masks_b.double()
    product = a @ b.mT
    union = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None, :] - product
    return product / torch.where(union > 0, union, torch.ones_like(union))


def match_by_overlap(
    masks_a: Shaped[Tensor, "batch slots pixels"],
    masks_b: Shaped[Tensor, "batch slots pixels"],
    active_a: Bool[Tensor, "batch slots"],
    active_b: Bool[Tensor, "batch slots"],
    order: Int64[Tensor, " batch"],
) -> Int64[Tensor, "batch slots"]:
    """The matching of largest total :func:`mask_overlap` (Hungarian), a bounded number of images at once.

    Args:
        masks_a: (M, K, N), non-negative.
        masks_b: (M, K, N).
        active_a: (M, K).
        active_b: (M, K), already in the order of a's images.
        order: (M,), the image of b's masks that stands beside each image of a.
    """
    size = max(1, MASK_NUMBERS // math.prod(masks_a.shape[1:]))
    chunks = zip(masks_a.split(size), order.split(size), strict=True)
    overlap = torch.cat([mask_overlap(a, masks_b[images]) for a, images in chunks])
    return match(-overlap, active_a, active_b)


def match_alternating(
    slots: tuple[Float64[Tensor, "batch slots features"], Float64[Tensor, "batch slots mapped"]],
    active: tuple[Bool[Tensor, "batch slots"], Bool[Tensor, "batch slots"]],
    train: Bool[Tensor, " batch"],
    rounding: float,
) -> Int64[Tensor, "batch slots"]:
    """The matching found by turns with the affine map: match by it, fit it anew, until the cost falls no more.

    Both steps lower sum_d SSE_d / SST_d = sum_d (1 - R2_d) over the training images' pairs, as squares are taken in
    units of b's standard deviations. The first map is the one between per-image means of active slots, which do not
    depend on the order of slots. Local optima exist, and independent data match well too: compare with the null.

    Args:
        slots: (M, K, D) and (M, K, D'), finite, also where inactive.
        active: (M, K) of each.
        train: (M,), the images that the map is fitted on; all images are matched.
        rounding: As of ``psa.metrics.affine_fit.whiten``.

    Raises:
        ValueError: If the means over training images do not determine the first map.
    """
    a, b = (side[train] for side in slots)
    active_a, active_b = (side[train] for side in active)
    scale = b[active_b].std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    some = active_a.any(1) & active_b.any(1)
    start = "slots_a, means per image, where matching 'alternate' starts"
    inputs = whiten_determined(_mean(a, active_a)[some], rounding, start)
    affine = fit_affine(inputs, _mean(b, active_b)[some])
    kept, cost = torch.zeros_like(active_a), torch.inf
    for _ in range(MAX_ROUNDS):
        distance = torch.cdist(affine(a) / scale, b / scale).square()
        found = match(distance, active_a, active_b)
        previous_kept, kept = kept, active_a & active_b.gather(1, found)
        previous_cost, cost = cost, float(distance.gather(2, found[:, :, None])[..., 0][kept].mean())
        if cost >= (1.0 - LEAST_FALL) * previous_cost:
            break
        rows_a, rows_b = pairs(a, b, found, active_a, active_b)
        if not torch.equal(kept, previous_kept):
            inputs = whiten(rows_a, rounding)
        affine = fit_affine(inputs, rows_b)
    return match(torch.cdist(affine(slots[0]) / scale, slots[1] / scale).square(), *active)


def pairs(
    a: Float64[Tensor, "batch slots features"],
    b: Float64[Tensor, "batch slots mapped"],
    matching: Int64[Tensor, "batch slots"],
    active_a: Bool[Tensor, "batch slots"],
    active_b: Bool[Tensor, "batch slots"],
) -> tuple[Float64[Tensor, "rows features"], Float64[Tensor, "rows mapped"]]:
    """The rows (image, slot) of matched pairs of which both are active, a's and b's, image after image."""
    kept = active_a & active_b.gather(1, matching)
    return a[kept], b.take_along_dim(matching[:, :, None], 1)[kept]


def _mean(slots: Float64[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"]) -> Tensor:
    """Over an image's active slots."""
    weight = active.to(slots)[:, :, None]
    return (slots * weight).sum(1) / weight.sum(1).clamp(min=1.0)
