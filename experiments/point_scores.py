"""How far runs of the 2-D study agree, with each other and with the truth: slots, and latent points without slots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psa.experiments.experiment import Outcome
from psa.metrics import Identifiability, smcc
from psa.metrics.affine_fit import fit_affine, r_squared, rounding_of, whiten

POINTWISE = ("points", "within")


def slot_agreement(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Identifiability:
    """SMCC of two runs, or of a run and the truth, matched by overlap; the same images are held out in all."""
    return smcc(
        a["loc"],
        b["loc"].to(a["loc"].dtype),
        masks_a=a["responsibilities"],
        masks_b=b["responsibilities"],
        weights_a=a["weights"],
        weights_b=b["weights"],
        generator=torch.Generator().manual_seed(0),
    )


def point_agreement(
    a: Float[Tensor, "images tokens 2"], b: Float[Tensor, "images tokens 2"], num_objects: int
) -> tuple[float, float]:
    """R2 of latent points, without slots: of b from the affine map of a, on the second half of the images.

    Returns:
        Over all points; and within objects, every point less its object's mean: what of the shape of a type the map
        says, where the places of types cannot make up for it.
    """
    a, b = a.double(), b.double()
    half = len(a) // 2
    affine = fit_affine(whiten(a[:half].flatten(0, 1), rounding_of(a)), b[:half].flatten(0, 1))
    mapped, true = affine(a[half:]), b[half:]
    about = [side.unflatten(1, (num_objects, -1)) for side in (mapped, true)]
    about = [(side - side.mean(2, keepdim=True)).flatten(0, 2) for side in about]
    return float(r_squared(mapped.flatten(0, 1), true.flatten(0, 1)).mean()), float(r_squared(*about).mean())


@dataclass(frozen=True)
class Pair:
    """Two runs on the same data.

    Attributes:
        smcc, r2, null_smcc: Of slots.
        points, within: R2 of latent points, as :func:`point_agreement` has it.
    """

    smcc: float
    r2: float
    null_smcc: float
    points: float
    within: float


@dataclass(frozen=True)
class RowScores:
    """Runs of one row: on one data set, or on several, whose runs are never paired.

    Attributes:
        runs: What each run kept.
        pairs: Of every two runs on one data set.
    """

    runs: Sequence[Outcome]
    pairs: Sequence[Pair]

    @classmethod
    def of(cls, runs: Sequence[Outcome], num_objects: int) -> "RowScores":
        """Every two runs on the same data, the first mapped to the second."""
        pairs = []
        for a, b in combinations((run.tensors for run in runs), 2):
            slots = slot_agreement(a, b)
            points = point_agreement(a["latent"], b["latent"], num_objects)
            pairs.append(Pair(slots.smcc, slots.r2, slots.null_smcc, *points))
        return cls(runs, pairs)

    @classmethod
    def joined(cls, parts: Sequence["RowScores"]) -> "RowScores":
        """Several data sets together."""
        return cls([run for part in parts for run in part.runs], [pair for part in parts for pair in part.pairs])

    def between(self, name: str) -> float:
        """The mean over pairs of a field of :class:`Pair`."""
        return float(np.mean([getattr(pair, name) for pair in self.pairs]))

    def truth(self, name: str) -> float:
        """The mean over runs of a figure against the planted types."""
        return float(np.mean([run.figures[name] for run in self.runs]))

    def identified(self, least_smcc: float, least_r2: float) -> bool:
        """Whether pairs of runs agree so far in the mean."""
        return self.between("smcc") >= least_smcc and self.between("r2") >= least_r2

    def figures(self, prefix: str = "") -> dict[str, float]:
        """All means by name."""
        between = {f"{prefix}{name}": self.between(name) for name in Pair.__annotations__}
        return between | {f"{prefix}truth_{name}": self.truth(name) for name in ("smcc", "r2", *POINTWISE)}

    def described(self, name: str) -> dict[str, object]:
        """A row of the table: mean ± standard deviation, over pairs, then over runs against the truth."""
        pairs = {field: [getattr(pair, field) for pair in self.pairs] for field in Pair.__annotations__}
        runs = {field: [run.figures[field] for run in self.runs] for field in ("smcc", "r2", *POINTWISE)}
        return {
            "row": name,
            "SMCC": _mean_sd(pairs["smcc"]),
            "R2": _mean_sd(pairs["r2"]),
            "null SMCC": _mean_sd(pairs["null_smcc"]),
            "points R2": _mean_sd(pairs["points"]),
            "within objects R2": _mean_sd(pairs["within"]),
            "truth: SMCC": _mean_sd(runs["smcc"]),
            "truth: R2": _mean_sd(runs["r2"]),
            "truth: points R2": _mean_sd(runs["points"]),
            "truth: within objects R2": _mean_sd(runs["within"]),
        }


def _mean_sd(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
