"""Claim: learned queries and straight-through gradients together segment best (BO-QSA, table 7).

Two initialisers times three gradients under one encoder, decoder, objective, optimiser, number of steps and data. The
published BO-QSA also adds noise to its queries, annealed over all of training here (over 30,000 of 250,000 steps
there), so the row without noise stands beside it: the six rows without noise differ in one factor at a time. Of the
released code's further differences (epsilon 1 in the attention's normalisation, drop path 0.2) nothing is varied; no
row has them.

Scores are foreground ARI on test scenes of at least two objects; a run that diverges scores 0. Verdict, at more than
one seed: ``holds`` if the published BO-QSA's mean is above that of each of the paper's five other rows, one-sided
Welch tests at 5 %; ``fails`` if some row's is above BO-QSA's at 5 % over the number of rows; else not decided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress
from psa.experiments.over_seeds import best_of_all, gain, spread
from psa.experiments.sprite_runs import PAPER_SIZE, SMOKE, SpriteRun, learning_curves, train
from psa.inference.variants import specify
from psa.report.over_seeds import Strip, strips_figure

PLAIN = "bo-qsa-plain"
ROWS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"variant": name} for name in ("sa", "i-sa", "bo-sa", "qsa", "i-qsa", "bo-qsa")},
    PLAIN: {"variant": "bo-qsa", "overrides": {"initialiser": "queries"}},
}
# ARI-FG and MSC-FG on ShapeStacks.
PAPER = {
    "sa": (0.867, 0.848),
    "i-sa": (0.883, 0.768),
    "bo-sa": (0.877, 0.666),
    "qsa": (0.881, 0.761),
    "i-qsa": (0.846, 0.818),
    "bo-qsa": (0.929, 0.892),
}


@dataclass(frozen=True)
class QueryInitialisation(Experiment):
    """What all rows share, and their seeds.

    Attributes:
        run: Data, model and training.
        readout: Of every row. With the papers' own, the mean, no row with a random start finds objects in the steps of
            the cpu scale; an MLP on the mean and on where the slot started does. Both kinds of start have it.
        seeds: Of training, 0 and up.
    """

    name: ClassVar[str] = "query_initialisation"
    claim: ClassVar[str] = (
        "Learned queries with straight-through gradients (BO-QSA) segment better than a random start, than either part "
        "alone, and than implicit gradients."
    )
    source: ClassVar[str] = "BO-QSA (arXiv 2210.08990), table 7"
    run: SpriteRun = field(default_factory=SpriteRun)
    readout: str = "query-mlp"
    seeds: int = 3

    def units(self) -> Sequence[str]:
        """Seed by seed, so that an interrupted experiment has whole comparisons."""
        return [f"{row}.seed-{seed}" for seed in range(self.seeds) for row in ROWS]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Train one row with one seed; its scores on the test split and its learning curve."""
        row, _, seed = unit.partition(".seed-")
        overrides = {"readout": self.readout, **ROWS[row].get("overrides", {})}
        slots = {"variant": ROWS[row]["variant"], "overrides": overrides}
        return Outcome(train(self.run.config(slots, int(seed), self.device), progress).scores())

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """The verdict by the rule above; gains of each part alone, from the rows without noise."""
        found = {row: [outcomes[f"{row}.seed-{seed}"].figures for seed in range(self.seeds)] for row in ROWS}
        scores = {row: [one["foreground_ari"] or 0.0 for one in runs] for row, runs in found.items()}
        others = {row: scores[row] for row in PAPER if row != "bo-qsa"}
        best = max(PAPER, key=lambda row: float(np.mean(scores[row])))
        queries, gradient = (gain(scores[PLAIN], scores[row]) for row in ("qsa", "bo-sa"))
        closest = max(others, key=lambda row: float(np.mean(scores[row])))
        reason = (
            f"BO-QSA {np.mean(scores['bo-qsa']):.3f}; best other row {closest} {np.mean(scores[closest]):.3f} "
            f"(BO-QSA is above it by {gain(scores['bo-qsa'], scores[closest])}). Without noise, queries with "
            f"straight-through gradients are above queries alone by {queries}, above straight-through alone by "
            f"{gradient}. Best of the paper's rows: {best}."
        )
        figures = {row.replace("-", "_"): float(np.mean(values)) for row, values in scores.items()}
        figures |= {"gain_over_queries_alone": queries.mean, "gain_over_straight_through_alone": gradient.mean}
        table = [self._row(row, scores, found[row]) for row in ROWS]
        tables = {"Foreground ARI, one row a variant": table}
        pictures = {"scores": _strips(scores), "curves": learning_curves(found)}
        return Conclusion(best_of_all(scores["bo-qsa"], others), reason, figures, tables, pictures)

    def _row(
        self, row: str, scores: Mapping[str, Sequence[float]], runs: Sequence[Mapping[str, Any]]
    ) -> dict[str, object]:
        spec, less = _spec(row), gain(scores["bo-qsa"], scores[row])
        errors, coverings = ([run[name] for run in runs if run[name] is not None] for name in ("mse", "msc"))
        published = PAPER.get(row)
        return {
            "row": row,
            "initialiser": spec.initialiser,
            "gradient": spec.gradient,
            **spread(scores[row]),
            "MSC": float(np.mean(coverings)) if errors else None,
            "MSE": float(np.mean(errors)) if errors else None,
            "diverged": len(runs) - len(errors),
            "bo-qsa above it": None if row == "bo-qsa" else str(less),
            "p": None if row == "bo-qsa" else less.p_above,
            "paper (ShapeStacks) ARI-FG": None if published is None else published[0],
            "paper MSC-FG": None if published is None else published[1],
        }


def _spec(row: str) -> Any:
    return specify(ROWS[row]["variant"], **ROWS[row].get("overrides", {}))


def _strips(scores: Mapping[str, Sequence[float]]) -> Any:
    rows = [Strip(row, values, PAPER.get(row, (None,))[0]) for row, values in scores.items()]
    return strips_figure(rows, "foreground ARI, a dot a seed", "the paper, on ShapeStacks")


# Size, batch, learning rate and read-out of the cpu scale were chosen by runs of sa and bo-qsa with a seed that is not
# used; no other row was looked at. (16 x 16 pixels, batches of 32 and a rate of 4e-3 let most runs of all rows fail.)
SCALES: Mapping[str, Experiment] = {
    "smoke": QueryInitialisation(run=SMOKE, seeds=1),
    "cpu": QueryInitialisation(
        run=SpriteRun(size=32, max_objects=4, num_slots=5, batch_size=16, learning_rate=1e-3, steps=2200)
    ),
    "gpu": QueryInitialisation(run=PAPER_SIZE, readout="mean", device="cuda"),
}
