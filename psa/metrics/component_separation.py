"""Is a Gaussian mixture degenerate, and are its components different ones (docs/diagnose.md)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from scipy.sparse.csgraph import connected_components
from torch import Tensor

SAME = 0.01  # Bhattacharyya distance below which two components are one: they share 99 % of their overlap


@dataclass(frozen=True)
class ComponentSeparation:
    """Of the components of positive weight; variances in units of the mixture's mean variance over features.

    Attributes:
        weights: (G,), sum to 1.
        smallest: (G,), the smallest variance of each.
        condition: (G,), largest variance over smallest.
        nearest: (G,), the Bhattacharyya distance to the nearest component that is not the same; infinite if none is.
        duplicates: G less the number of different components.
        effective: exp(entropy of the weights of the different components), at least 1.
        overall_condition: Largest eigenvalue over smallest of the whole mixture's covariance.
    """

    weights: Float64[Tensor, " components"]
    smallest: Float64[Tensor, " components"]
    condition: Float64[Tensor, " components"]
    nearest: Float64[Tensor, " components"]
    duplicates: int
    effective: float
    overall_condition: float


def bhattacharyya(
    loc: Float64[Tensor, "components features"], var: Float64[Tensor, "components features"]
) -> Float64[Tensor, "components components"]:
    """The Bhattacharyya distance of every pair of Gaussians with diagonal covariances.

        D_B = sum_d (mu_d - nu_d)^2 / (8 v_d) + 1/2 sum_d log(v_d / sqrt(a_d b_d)),    v = (a + b) / 2

    0 if and only if they are the same. Two of equal probability are told apart with an error of at most exp(-D_B) / 2.

    Args:
        loc: (G, D), mu.
        var: (G, D), a, positive.
    """
    rows = []
    for mean, variance in zip(loc, var, strict=True):
        middle = (var + variance) / 2
        moved = ((loc - mean).square() / middle).sum(1) / 8
        rows.append(moved + (middle.log() - (var.log() + variance.log()) / 2).sum(1) / 2)
    return torch.stack(rows)


def component_separation(
    weights: Float[Tensor, " components"],
    loc: Float[Tensor, "components features"],
    var: Float[Tensor, "components features"],
) -> ComponentSeparation:
    """Variances, weights and distances of the components of a mixture with diagonal covariances.

    Components closer than ``SAME``, directly or through others, are the same component written several times.

    Args:
        weights: (G,), non-negative, sum to 1; components of weight 0 are left out.
        loc: (G, D).
        var: (G, D), positive.
    """
    kept = weights > 0
    weights, loc, var = (tensor[kept].double().cpu() for tensor in (weights, loc, var))
    weights = weights / weights.sum()
    away = loc - weights @ loc
    overall = torch.linalg.eigvalsh((weights[:, None] * away).mT @ away + (weights @ var).diag())
    distance = bhattacharyya(loc, var)
    number, labels = connected_components(distance.numpy() < SAME, directed=False)
    label = torch.from_numpy(labels).long()
    merged = torch.zeros(number, dtype=torch.float64).index_add(0, label, weights)
    return ComponentSeparation(
        weights,
        var.amin(1) / overall.mean(),
        var.amax(1) / var.amin(1),
        distance.masked_fill(label[:, None] == label, torch.inf).amin(1),
        len(weights) - number,
        float(torch.special.entr(merged).sum().exp()),
        float(overall[-1] / overall[0]),
    )
