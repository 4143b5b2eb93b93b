"""The slots of a set of points by EM: several starts an image and the best by likelihood, or PSA's single one."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.em import MixtureState
from psa.inference.fits import PointFit
from psa.inference.initialisers import FarthestPoints, KMeansPlusPlus, TokenView
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior
from psa.records import SlotPosterior

POINT_STARTS = ("farthest", "standard-normal")
CONVERGED = 1e-4  # nats a point


@dataclass(frozen=True)
class PointSlots:
    """How EM finds an image's slots.

    Attributes:
        num_slots: K >= 1.
        start: ``farthest`` points, and ``kmeans++`` for every further restart; or ``standard-normal``, PSA algorithm
            1: means from Normal(0, I), variances 1, equal weights, whatever the points are.
        num_restarts: Of every image, >= 1; the largest likelihood is kept. Restarts start with no slot empty, other
            than those of :func:`psa.inference.variational.fit_local_mixture`: with maximum likelihood it stays empty.
        num_iterations: Most steps of EM, >= 1.
        variance_floor: > 0, in squared units of the points.

    Raises:
        ValueError: If there is no such start, or the number of restarts is below 1.
    """

    num_slots: int = 3
    start: str = "farthest"
    num_restarts: int = 5
    num_iterations: int = 100
    variance_floor: float = 1e-4

    def __post_init__(self) -> None:
        if self.start not in POINT_STARTS:
            raise ValueError(f"start must be one of {', '.join(POINT_STARTS)}, got {self.start!r}")
        if self.num_restarts < 1:
            raise ValueError(f"num_restarts must be at least 1, got {self.num_restarts}")


def fit_point_slots(
    points: Float[Tensor, "batch tokens features"], slots: PointSlots, generator: torch.Generator | None = None
) -> SlotPosterior:
    """Exact EM of every image's mixture, diagonal covariances, no gradient; without prior, so of largest likelihood.

    Args:
        points: (B, N, D), finite.
        slots: How.
        generator: Source of the starts, on the points' device; the global one where None.

    Returns:
        The best restart of each image; responsibilities sum to 1 over K.
    """
    restarts = slots.num_restarts
    fit = fit_local_mixture(
        points.repeat_interleave(restarts, 0),
        LocalMixturePrior(),
        slots.num_slots,
        num_iterations=slots.num_iterations,
        tol=CONVERGED,
        options=FitOptions(start=_start(points, slots, generator), estimate="ml", variance_floor=slots.variance_floor),
    )
    assert isinstance(fit, PointFit)
    best = fit.objective.reshape(-1, restarts).argmax(1)
    best = best + restarts * torch.arange(len(points), device=points.device)
    found = fit.slot_posterior()
    return SlotPosterior(
        found.weights[best], found.loc[best], found.var[best], found.responsibilities[best], found.initial_loc[best]
    )


def _start(points: Tensor, slots: PointSlots, generator: torch.Generator | None) -> Tensor | MixtureState:
    """For every image its restarts in a row."""
    num_slots, restarts = slots.num_slots, slots.num_restarts
    view = TokenView(points, None)
    if slots.start == "standard-normal":
        loc = TokenView(points.repeat_interleave(restarts, 0), None).normal(num_slots, generator)
        return MixtureState(loc, torch.ones_like(loc), torch.full_like(loc[..., 0], -math.log(num_slots)))
    means = [FarthestPoints(num_slots, 0)(view, num_slots)]
    means += [KMeansPlusPlus(num_slots, 0)(view, num_slots, generator) for _ in range(restarts - 1)]
    return torch.stack(means, 1).flatten(0, 1)
