"""Claim: inference of PSA costs O(T N K D), as Slot Attention's.

One size is varied at a time, the others stay. Counted are the floating-point operations of matrix products (torch's own
counter), and measured the processor's time: sizes take turns, and the median over turns is kept (on a GPU, wall time
with the kernels waited for). An exponent is the slope of the logarithm on log size over the larger half of the sizes,
where what does not grow no longer counts. Members with projections do N D^2 work once an image, which is not in the
claim: its rule looks at ``em``, whose steps are the claim's, and shows the others.

Verdict: ``fails`` if operations of em have an exponent above 1.01; ``holds`` if they have not and no exponent of its
time is above 1.1; otherwise, where time grows faster than operations because memory is slower than caches, and at smoke
scale, ``not decided at this scale``.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time
from typing import ClassVar, cast

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress, Verdict
from psa.inference.variants import build
from psa.report.scaling import CostCurve, scaling_figure

DECIDES = "em"
MOST, MOST_COUNTED = 1.1, 1.01
AXES = ("T", "N", "K", "D")


@dataclass(frozen=True)
class Sizes:
    """B images of N tokens of D features, K slots, T steps."""

    B: int
    T: int
    N: int
    K: int
    D: int


@dataclass(frozen=True)
class Complexity(Experiment):
    """Where sizes start and how far they go.

    Attributes:
        members: Which are timed.
        base: The sizes that stay.
        doublings: How often an axis is doubled, from its base.
        turns: Of which medians are taken.
        decides: Whether the sizes are large enough for a verdict.
    """

    name: ClassVar[str] = "complexity"
    claim: ClassVar[str] = "Probabilistic slot attention costs O(T N K D), as slot attention does."
    source: ClassVar[str] = "PSA section 4"
    members: tuple[str, ...] = ("em", "psa", "psa-proj", "sa")
    base: Sizes = Sizes(B=1, T=2, N=4096, K=8, D=32)
    doublings: int = 4
    turns: int = 9
    decides: bool = True

    def units(self) -> Sequence[str]:
        """A member with an axis."""
        return [f"{member}.{axis.lower()}" for member in self.members for axis in AXES]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Median times at every size of the axis, in milliseconds."""
        member, axis = unit.rsplit(".", 1)
        first = cast(int, getattr(self.base, axis.upper()))
        values = [first * 2**power for power in range(self.doublings + 1)]
        times: dict[int, list[float]] = {value: [] for value in values}
        with FlopCounterMode(display=False) as counter:
            counted = []
            for value in values:
                before = counter.get_total_flops()
                self._time(member, replace(self.base, **{axis.upper(): value}))
                counted.append(counter.get_total_flops() - before)
        for turn in range(self.turns + 1):
            for value in values:
                spent = self._time(member, replace(self.base, **{axis.upper(): value}))
                if turn > 0:  # the first turn warms caches and memory up
                    times[value].append(1e3 * spent)
            progress(turn + 1, self.turns + 1)
        medians = {str(value): statistics.median(spent) for value, spent in times.items()}
        return Outcome({"sizes": values, "milliseconds": list(medians.values()), "operations": counted})

    def _time(self, member: str, sizes: Sizes) -> float:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(sizes.B, sizes.N, sizes.D, generator=generator).to(self.device)
        initial = torch.randn(sizes.B, sizes.K, sizes.D, generator=generator).to(self.device)
        module = build(
            member, num_slots=sizes.K, input_dim=sizes.D, slot_dim=sizes.D, num_iterations=sizes.T, variance_floor=0.1
        ).to(self.device)
        clock = process_time if self.device == "cpu" else perf_counter
        with torch.no_grad():
            self._wait()
            begun = clock()
            module(tokens, initial=initial)
            self._wait()
        return clock() - begun

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """Exponents by member and axis."""
        curves: dict[str, list[CostCurve]] = {axis: [] for axis in AXES}
        counted: dict[tuple[str, str], float] = {}
        for unit, outcome in outcomes.items():
            member, axis = unit.rsplit(".", 1)
            names = ("sizes", "milliseconds", "operations")
            sizes, spent, operations = (np.array(outcome.figures[name], dtype=float) for name in names)
            curves[axis.upper()].append(CostCurve(member, sizes, spent, exponent(sizes, spent)))
            counted[member, axis.upper()] = exponent(sizes, operations)
        largest = max(_of(curves[axis], DECIDES).exponent for axis in AXES)
        most_counted = max(counted[DECIDES, axis] for axis in AXES)
        reason = (
            f"{DECIDES}: the largest exponent of operations is {most_counted:.2f} (bar {MOST_COUNTED}), that of time "
            f"{largest:.2f} (bar {MOST})."
        )
        figures = {f"{m}_{axis}": _of(curves[axis], m).exponent for m in self.members for axis in AXES}
        summary = {"largest_exponent": largest, "largest_counted_exponent": most_counted, **figures}
        tables = {self._title(): self._rows(curves, counted)}
        pictures = {"scaling": scaling_figure(curves)}
        return Conclusion(self._verdict(most_counted, largest), reason, summary, tables, pictures)

    def _verdict(self, counted: float, timed: float) -> Verdict:
        if counted > MOST_COUNTED:
            return "fails"
        return "holds" if timed <= MOST and self.decides else "not decided at this scale"

    def _title(self) -> str:
        base = ", ".join(f"{name} = {value}" for name, value in vars(self.base).items())
        return f"Exponents of time, of operations in brackets; {base}, each doubled up to {self.doublings} times"

    def _rows(
        self, curves: Mapping[str, Sequence[CostCurve]], counted: Mapping[tuple[str, str], float]
    ) -> list[dict[str, object]]:
        return [
            {
                "member": member,
                **{axis: f"{_of(curves[axis], member).exponent:.2f} ({counted[member, axis]:.2f})" for axis in AXES},
                "ms at the base": float(_of(curves["T"], member).milliseconds[0]),
            }
            for member in self.members
        ]


def _of(curves: Sequence[CostCurve], member: str) -> CostCurve:
    return next(curve for curve in curves if curve.name == member)


def exponent(sizes: np.ndarray, spent: np.ndarray) -> float:
    """Slope of log cost on log size over the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(spent[half:]), 1)[0])


SCALES: Mapping[str, Experiment] = {
    "smoke": Complexity(base=Sizes(B=1, T=1, N=64, K=2, D=4), doublings=2, turns=3, decides=False),
    "cpu": Complexity(),
    "gpu": Complexity(device="cuda", base=Sizes(B=64, T=2, N=4096, K=8, D=32), turns=25),
}
