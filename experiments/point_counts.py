"""Clusters in token sets counted without a label: sparse variational fits, thresholds on EM's weights, and evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psa.experiments.evidence_recovery import MAX_SLOTS, separated_sets
from psa.experiments.experiment import Progress
from psa.inference.compare import compare_slot_counts, weak_prior
from psa.inference.fits import LocalMixtureFit
from psa.inference.variants import build
from psa.inference.variational import fit_local_mixture

NUM_DRAWS = 50  # of the assignments, behind an occupied count


@dataclass(frozen=True)
class PointSets:
    """Token sets and the ways in which they are counted.

    Attributes:
        num_sets: A dimension; the true count runs through 1..5.
        separation: Least distance between centres, in deviations.
        concentrations: alpha0 of the variational fits.
        restarts: Of these fits, each number a method of its own.
        thresholds: On EM's weights, in shares of 1/K.
    """

    num_sets: int = 60
    separation: float = 6.0
    concentrations: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    restarts: tuple[int, ...] = (1, 10)
    thresholds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)


def vb(restarts: int, concentration: float) -> str:
    """A method's name: the mode of the occupied count of a variational fit."""
    return f"vb, {restarts} start{'s' * (restarts > 1)}, alpha0 = {concentration:g}"


def em(threshold: float) -> str:
    """A method's name: slots whose weight in an EM fit is at least so many times 1/K."""
    return f"em, pi >= {threshold:g} / K"


EVIDENCE = "variational evidence, alpha0 = 1"


def count_points(
    sets: PointSets, num_features: int, seed: int, progress: Progress
) -> tuple[list[int], Mapping[str, Sequence[int]]]:
    """The true counts, and those of every method by its name.

    Every set is shifted to mean 0 and scaled to variance 1 on each axis, so that one prior serves all.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, true = separated_sets(sets.num_sets, sets.separation, generator, num_features)
    tokens = (tokens - tokens.mean(1, keepdim=True)) / tokens.std(1, correction=0, keepdim=True)
    methods = [(restarts, alpha) for restarts in sets.restarts for alpha in sets.concentrations]
    found = {}
    for done, (restarts, alpha) in enumerate(methods):
        found[vb(restarts, alpha)] = _occupied(tokens, alpha, restarts, generator).tolist()
        progress(done + 1, len(methods) + 2)
    weights = build("em", num_slots=MAX_SLOTS, input_dim=num_features, slot_dim=num_features, num_iterations=100)(
        tokens
    ).weights
    for threshold in sets.thresholds:
        found[em(threshold)] = (weights >= threshold / MAX_SLOTS).sum(1).tolist()
    progress(len(methods) + 1, len(methods) + 2)
    evidence = compare_slot_counts(tokens, weak_prior(tokens[0]), MAX_SLOTS, "variational", generator=generator)
    found[EVIDENCE] = evidence.best.tolist()
    progress(len(methods) + 2, len(methods) + 2)
    return true.tolist(), found


def _occupied(
    tokens: Float[Tensor, "sets tokens features"], alpha: float, restarts: int, generator: torch.Generator
) -> Int[Tensor, " sets"]:
    fit = fit_local_mixture(
        tokens, weak_prior(tokens[0], alpha), MAX_SLOTS,
        num_iterations=200, num_restarts=restarts, generator=generator,
    )  # fmt: skip
    assert isinstance(fit, LocalMixtureFit)
    return fit.num_occupied(NUM_DRAWS, generator=generator).argmax(1)
