"""A statistic beside its reference distribution, and the p-value that ranks it there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

TAILS = ("two-sided", "upper", "lower")


def randomised_p_value(
    observed: Shaped[Tensor, " batch"],
    reference: Shaped[Tensor, "replicates batch"],
    tail: str = "two-sided",
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """The rank of the observed statistic among replicates, ties broken by a uniform draw.

        upper = (#{r: T_r > T} + U (1 + #{r: T_r = T})) / (R + 1),    U ~ Uniform(0, 1)
        lower = 1 - upper,    two-sided = 2 min(upper, lower)

    Each is exactly uniform on (0, 1) where T and the T_r are exchangeable, discrete or not, for every R >= 1. With
    R = 999 a two-sided p below 0.002 says that the statistic lies outside all replicates, and no more than that.

    Args:
        observed: T, (B,); infinite values have their rank.
        reference: T_r, (R, B).
        tail: two-sided; upper, where large values are extreme; or lower.
        generator: Source of U, on the statistics' device.

    Returns:
        (B,), float64, in [0, 1].

    Raises:
        ValueError: If the tail is unknown, there is no replicate, or a value is NaN.
    """
    _check(observed, reference, tail)
    uniform = torch.rand(observed.shape, dtype=torch.float64, device=observed.device, generator=generator)
    above, equal = (reference > observed).sum(0), (reference == observed).sum(0)
    upper = (above + uniform * (1 + equal)) / (len(reference) + 1)
    if tail == "upper":
        return upper
    return 1.0 - upper if tail == "lower" else 2.0 * torch.minimum(upper, 1.0 - upper)


def smoothed_p_value(
    observed: Shaped[Tensor, " batch"], reference: Shaped[Tensor, "replicates batch"], tail: str = "two-sided"
) -> Float[Tensor, " batch"]:
    """The rank of the observed statistic with ties broken by its distance, not by chance: what calibration ranks.

        upper = (#{r: T_r > T} + #{r: T_r = T} / 2 + s) / (R + 1),    s = 1 / (1 + exp z),

    z being the distance of T above the replicates' mean in their standard deviations; lower mirrored; two-sided twice
    the smaller count with s of |z|. It still orders data sets that lie outside all R replicates, so that a small R
    suffices. It is monotone in how extreme T is, and its distribution is not uniform: compare it with its own.

    Args and errors are those of :func:`randomised_p_value`.

    Returns:
        (B,), float64, at least 0, about 1 at most.
    """
    _check(observed, reference, tail)
    observed, reference = observed.double(), reference.double()
    above = (reference > observed).sum(0) + 0.5 * (reference == observed).sum(0)
    below, (mean, scale) = len(reference) - above, (reference.mean(0), reference.std(0, correction=0))
    distance = torch.where(observed == mean, torch.zeros_like(mean), (observed - mean) / scale)
    distance = distance.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)  # infinite replicates
    counts = {"upper": (above, distance), "lower": (below, -distance)}
    count, extreme = counts.get(tail, (torch.minimum(above, below), distance.abs()))
    p_value = (count + (-extreme).sigmoid()) / (len(reference) + 1)
    return 2.0 * p_value if tail == "two-sided" else p_value


def _check(observed: Tensor, reference: Tensor, tail: str) -> None:
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {tail!r}")
    if len(reference) < 1:
        raise ValueError("reference must hold at least one replicate, got none")
    if bool(observed.isnan().any()) or bool(reference.isnan().any()):
        raise ValueError("observed and reference must not be NaN, which has no rank")


@dataclass(frozen=True)
class Provenance:
    """Where a reference distribution comes from, and what its p-values are worth.

    Attributes:
        kind: How the replicates were made, in words.
        uniform: Of p on data that come from the model: ``exactly``; ``approximately``, as far as the posterior that was
            drawn from is the model's; or ``no``.
        note: Why, in a sentence.
    """

    kind: str
    uniform: str
    note: str


@dataclass(frozen=True)
class Check:
    """One statistic of every data set of a batch, its reference distribution, and its p-value.

    Attributes:
        statistic: Its name.
        provenance: Of the reference.
        tail: Which values count as extreme: two-sided, upper or lower.
        observed: (B,), of the data; of a simulation-calibrated check their raw p-value, smoothed.
        reference: (R, B), of the replicates; of a simulation-calibrated check those of simulated data.
        p_value: (B,).
        raw: Of a simulation-calibrated check, the check whose p-value was calibrated.
    """

    statistic: str
    provenance: Provenance
    tail: str
    observed: Float[Tensor, " batch"]
    reference: Float[Tensor, "replicates batch"]
    p_value: Float[Tensor, " batch"]
    raw: "Check | None" = None
