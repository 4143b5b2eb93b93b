"""p(x | decoded slots) of 8-bit images: the likelihoods of models/scene.py summed over bins (docs/compare.md).

A density has no upper end on flat 8-bit images, and its nats depend on the images' scale. The probability of the 8-bit
image has neither fault, so that models of the same images compare (model.md section 3).
"""

import math

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from psa.models.scene import LIKELIHOODS
from psa.records import DecodedScene

TOP = 255  # the highest of 256 levels; an image is a level over this
ENDS = ("closed", "open")


def log_bin_mass(
    levels: UInt8[Tensor, "*shape"], loc: Float64[Tensor, "*shape"], scale: float, ends: str = "closed"
) -> Float64[Tensor, "*shape"]:
    """log of Phi((v + 1/2 - 255 m) / 255 s) - Phi((v - 1/2 - 255 m) / 255 s): the mass of a level's bin.

    An image is v / 255, so bins of 1/255 have their edges midway between neighbouring pixel values. A bin above the
    mean is mirrored to below it, where the logarithm of the normal distribution function keeps its digits at any
    distance.

    Args:
        levels: v, 0 to 255.
        loc: Mean m, in units of the image's range [0, 1].
        scale: Standard deviation s > 0, in the same units.
        ends: ``closed``, all bins are alike, and the masses sum to 1 over all integers; what a model puts outside
            [0, 1] is lost to it, as under the density. ``open``, the first and the last bin take in all that lies
            beyond, as clipping does, and the 256 masses sum to 1.

    Returns:
        Nats, at most 0.
    """
    centre, half = (levels.to(loc.dtype) / TOP - loc) / scale, 0.5 / TOP / scale
    below = -centre.abs()
    if ends == "closed":
        log_upper = torch.special.log_ndtr(below + half)
        return log_upper + (-torch.expm1(torch.special.log_ndtr(below - half) - log_upper)).log()
    last = levels == TOP
    end = (levels == 0) | last
    below = torch.where(end, torch.where(last, -centre, centre), below)
    log_upper = torch.special.log_ndtr(below + half)
    # An end has no second edge; any number below 0 stands in for it, so that no gradient is NaN.
    fall = torch.where(end, -1.0, torch.special.log_ndtr(below - half) - log_upper)
    return log_upper + torch.where(end, 0.0, (-torch.expm1(fall)).log())


def discretised_log_prob(
    scene: DecodedScene,
    levels: UInt8[Tensor, "batch channels height width"],
    likelihood: str,
    sigma: float,
    ends: str = "closed",
) -> Float64[Tensor, " batch"]:
    """log P(x | decoded slots) of 8-bit images, in float64.

    ``normal``: every channel of a pixel on its own, about sum_k mask_k rgb_k. ``mixture``: one assignment a pixel,
    shared by its channels: log sum_k mask_k prod_c mass_kc.

    Args:
        scene: Decoded slots.
        levels: The images, 0 to 255.
        likelihood: ``normal`` or ``mixture``.
        sigma: Standard deviation of a channel > 0, in units of the image's range [0, 1].
        ends: Of the outer bins, ``closed`` or ``open``; see :func:`log_bin_mass`.

    Returns:
        (B,), nats an image.

    Raises:
        ValueError: If the likelihood or the ends are unknown or sigma is not positive.
    """
    for name, value, known in (("likelihood", likelihood, LIKELIHOODS), ("ends", ends, ENDS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be positive, got {sigma}")
    if likelihood == "normal":
        return log_bin_mass(levels, scene.mean.double(), sigma, ends).sum((1, 2, 3))
    rgb = scene.rgb.double()
    per_slot = log_bin_mass(levels[:, None].expand_as(rgb), rgb, sigma, ends).sum(2)
    return (scene.log_masks.double() + per_slot).logsumexp(1).sum((-2, -1))


def bits_per_dimension(nats: float, num_dimensions: int) -> float:
    """Minus nats an image as bits for each channel of a pixel."""
    return -nats / (num_dimensions * math.log(2))
