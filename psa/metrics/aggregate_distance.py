"""How far two densities over a slot are apart once an affine map has been undone."""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from psa.metrics.affine_fit import AffineMap


@runtime_checkable
class Density(Protocol):
    """A density over a slot: an aggregate prior, or a distribution of torch's or Pyro's."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats (...) of slots (..., D)."""

    def sample(self, sample_shape: Any = ...) -> Tensor:
        """Slots (*sample_shape, D)."""


@dataclass(frozen=True)
class AggregateDistance:
    """Monte Carlo estimates, in nats, with their standard errors.

    Attributes:
        kl: KL(T q_a || q_b), T q_a the density of a's slots mapped.
        kl_stderr: Of kl.
        kl_reverse: KL(q_b || T q_a).
        kl_reverse_stderr: Of kl_reverse.
        affine: T.
    """

    kl: float
    kl_stderr: float
    kl_reverse: float
    kl_reverse_stderr: float
    affine: AffineMap


def aggregate_distance(
    first: Density,
    second: Density,
    affine: tuple[Float[Tensor, "features features"], Float[Tensor, " features"]],
    num_samples: int = 10_000,
) -> AggregateDistance:
    """Kullback-Leibler divergences both ways between a density mapped by s -> s H + c and another one.

        KL(T q_a || q_b) = E_{s ~ q_a} [log q_a(s) - log |det H| - log q_b(s H + c)]
        KL(q_b || T q_a) = E_{s ~ q_b} [log q_b(s) + log |det H| - log q_a((s - c) H^-1)]

    The map is given, not searched: two mixtures without paired slots say nothing of which type is which. The ``affine``
    that ``psa.metrics.identifiability.smcc`` fits on paired slots is the least-squares one. Least squares shrinks
    towards the mean where slots are noisy, so that T q_a is then narrower than q_b and the divergences are not 0.

    Args:
        first: q_a; draws come from the global generator.
        second: q_b, over as many features.
        affine: H (D, D), invertible, and c (D).
        num_samples: Draws of each density, at least 2.

    Raises:
        ValueError: If H is not square and invertible or there are too few samples.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples: expected at least 2, came {num_samples}")
    matrix, offset = affine
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"affine: expected a square matrix, came shape {tuple(matrix.shape)}")
    log_det = float(torch.linalg.slogdet(matrix.double()).logabsdet)
    if not math.isfinite(log_det):
        raise ValueError("affine: expected an invertible matrix, came one of determinant 0")
    with torch.no_grad():
        a, b = first.sample((num_samples,)), second.sample((num_samples,))
        mapped = (a.double() @ matrix.double() + offset.double()).to(b)
        back = torch.linalg.solve(matrix.double(), b.double() - offset.double(), left=False).to(a)
        kl, kl_stderr = _mean(_nats(first, a) - log_det - _nats(second, mapped))
        reverse, reverse_stderr = _mean(_nats(second, b) + log_det - _nats(first, back))
    return AggregateDistance(kl, kl_stderr, reverse, reverse_stderr, AffineMap(matrix.double(), offset.double()))


def _nats(density: Density, slots: Float[Tensor, "rows features"]) -> Float64[Tensor, " rows"]:
    return density.log_prob(slots).double()


def _mean(values: Float64[Tensor, " rows"]) -> tuple[float, float]:
    """With its standard error."""
    return values.mean().item(), values.std().item() / len(values) ** 0.5
