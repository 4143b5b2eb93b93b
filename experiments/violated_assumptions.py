"""Claim: where an assumption of the theory is violated, runs of the 2-D study no longer find the same slots.

PSA (arXiv 2406.07141) proves slots identifiable up to their order and one affine map for a piecewise affine, injective
decoder and a mixture of non-degenerate Gaussians as the prior. Rows, each with the seeds of ``control``, the study of
``aggregate_2d``:

- ``non-injective-decoder``: it takes z and -z, axis by axis, for the same;
- ``one-component-prior``: an image's prior in training is one Gaussian; slots are found by EM with K = 3 afterwards;
- ``two-types``, ``three-types``, 2 of them an image: with at most D + 1 = 3 types, any two sets of types are an affine
  map of each other;
- ``collapsed-variances``: objects 600 deviations apart, so that their points are all but one point.

A row ``breaks`` if runs do not reach in the mean over pairs what ``aggregate_2d`` asks for, SMCC >= 0.98 and
R2 >= 0.95. If they do, and networks that were never trained do so too on the same data, the score ``cannot tell``; else
the row ``does not break``. Verdict: ``holds`` if all rows break; ``fails`` if one does not; ``not decided`` if some
scores cannot tell and the others break, if the control itself does not reach the bars, or with fewer than 5 seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from psa.experiments.aggregate_2d import LEAST_R2, LEAST_SEEDS, LEAST_SMCC, TINY
from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress, Verdict
from psa.experiments.point_scores import RowScores
from psa.experiments.point_study import PLAIN, WHOLE, PointRow, StudySize, measure_row
from psa.inference.point_slots import PointSlots
from psa.inference.point_training import PointTraining
from psa.report.over_seeds import Strip, strips_figure

COLLAPSED = replace(PLAIN, separation=600.0)
TWO, THREE = (replace(PLAIN, num_types=types, num_objects=2) for types in (2, 3))
PAIR = PointSlots(num_slots=2)
CONTROL = PointRow("control")
VIOLATED = (
    PointRow("non-injective-decoder", folded=True),
    PointRow("one-component-prior", training_slots=1),
    PointRow("two-types", TWO, slots=PAIR),
    PointRow("three-types", THREE, slots=PAIR),
    PointRow("collapsed-variances", COLLAPSED),
)
FLOORS = (
    PointRow("control-untrained", encoder="untrained"),
    PointRow("two-types-untrained", TWO, "untrained", PAIR),
    PointRow("three-types-untrained", THREE, "untrained", PAIR),
    PointRow("collapsed-variances-untrained", COLLAPSED, "untrained"),
)
ROWS = {row.name: row for row in (CONTROL, *VIOLATED, *FLOORS)}
FIGURES = ("smcc", "r2", "null_smcc", "within")
BREAKS, CANNOT_TELL, DOES_NOT = "breaks", "cannot tell", "does not break"


@dataclass(frozen=True)
class ViolatedAssumptions(Experiment):
    """One violation a row.

    Attributes:
        data_seed: Of the data.
        seeds: Of weights, batches and starts.
        size: Images and steps.
    """

    name: ClassVar[str] = "violated_assumptions"
    claim: ClassVar[str] = "Without any one assumption of the theory, runs no longer find the same slots."
    source: ClassVar[str] = "PSA (arXiv 2406.07141), the assumptions of its identifiability theorem"
    data_seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    size: StudySize = WHOLE

    def units(self) -> Sequence[str]:
        """A row and a seed each."""
        return [f"{name}.seed-{seed}" for name in ROWS for seed in self.seeds]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """One run."""
        name, seed = unit.split(".seed-")
        return measure_row(ROWS[name], self.data_seed, int(seed), self.size, self.device, progress)

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """What breaks."""
        scores = {
            name: RowScores.of([outcomes[f"{name}.seed-{seed}"] for seed in self.seeds], row.data.num_objects)
            for name, row in ROWS.items()
        }
        found = {row.name: judged(row, scores) for row in VIOLATED}
        verdict = self._verdict(scores[CONTROL.name], found)
        reason = "; ".join(f"{name}: {what}" for name, what in found.items())
        control = scores[CONTROL.name]
        figures = {name: control.between(name) for name in FIGURES}
        for name, row in list(scores.items())[1:]:
            figures |= {f"{name.replace('-', '_')}_{figure}": row.between(figure) for figure in FIGURES}
        return Conclusion(
            verdict,
            f"Control: SMCC {control.between('smcc'):.3f}, R2 {control.between('r2'):.3f}; {reason}.",
            figures,
            {
                "What breaks": [{"violated": name, "found": what} for name, what in found.items()],
                "Agreement: mean ± sd over pairs of runs, or over runs against the truth": [
                    row.described(name) for name, row in scores.items()
                ],
            },
            {
                "violated_assumptions": strips_figure(
                    [Strip(name, [pair.r2 for pair in row.pairs]) for name, row in scores.items()],
                    "R2 of slots between two runs, every pair",
                    "",
                )
            },
        )

    def _verdict(self, control: RowScores, found: Mapping[str, str]) -> Verdict:
        if len(self.seeds) < LEAST_SEEDS or not control.identified(LEAST_SMCC, LEAST_R2):
            return "not decided at this scale"
        if DOES_NOT in found.values():
            return "fails"
        return "not decided at this scale" if CANNOT_TELL in found.values() else "holds"


def judged(row: PointRow, scores: Mapping[str, RowScores]) -> str:
    """Whether a violation breaks the agreement of runs, by the rule above."""
    if not scores[row.name].identified(LEAST_SMCC, LEAST_R2):
        return BREAKS
    floor = next(other for other in FLOORS if other.data == row.data)
    return CANNOT_TELL if scores[floor.name].identified(LEAST_SMCC, LEAST_R2) else DOES_NOT


SCALES: Mapping[str, Experiment] = {
    "smoke": ViolatedAssumptions(seeds=(0, 1), size=TINY),
    "cpu": ViolatedAssumptions(),
    "gpu": ViolatedAssumptions(size=StudySize(training=PointTraining(steps=3000)), device="cuda"),
}
