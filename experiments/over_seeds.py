"""Scores of several seeds: their spread, and whether one row's are above another's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from psa.experiments.experiment import Verdict

LEVEL = 0.05


@dataclass(frozen=True)
class Gain:
    """How far the mean of some seeds is above that of others, by Welch's t test.

    Attributes:
        mean: The difference of the means.
        error: Its standard error, from the spread of both over seeds; NaN where a side has one seed.
        p_above: One-sided p-value against "not above"; NaN where a side has one seed, or neither varies.
        p_below: Against "not below".
    """

    mean: float
    error: float
    p_above: float
    p_below: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f}" if math.isnan(self.error) else f"{self.mean:+.3f} ± {self.error:.3f}"


def gain(ours: Sequence[float], theirs: Sequence[float]) -> Gain:
    """The gain of ``ours`` over ``theirs``, each over seeds that share nothing."""
    mean = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2:
        return Gain(mean, math.nan, math.nan, math.nan)
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (ours, theirs)]
    error = math.sqrt(sum(parts))
    if error == 0.0:
        return Gain(mean, 0.0, math.nan, math.nan)
    freedom = error**4 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (ours, theirs), strict=True))
    t = scipy.stats.t(freedom)
    return Gain(mean, error, float(t.sf(mean / error)), float(t.cdf(mean / error)))


def best_of_all(claimed: Sequence[float], others: Mapping[str, Sequence[float]]) -> Verdict:
    """Whether the claimed row is above every other one.

    "holds": above each at the 5 % level, one-sided (all tests must pass, so the level is that of the whole claim).
    "fails": some other is above it at 5 % over the number of others. Else nothing is decided.
    """
    gains = [gain(claimed, other) for other in others.values()]
    if all(found.p_above < LEVEL for found in gains):
        return "holds"
    if any(found.p_below < LEVEL / len(gains) for found in gains):
        return "fails"
    return "not decided at this scale"


def spread(scores: Sequence[float]) -> dict[str, str]:
    """Columns of a table: mean ± standard deviation over seeds, and every seed."""
    each = ", ".join(f"{score:.3f}" for score in scores)
    if len(scores) < 2:
        return {"mean ± sd": each or "none", "each seed": each or "none"}
    return {"mean ± sd": f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f}", "each seed": each}
