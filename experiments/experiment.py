"""What an experiment is: a claim, a typed configuration at three scales, units that run one by one, and a verdict."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from matplotlib.figure import Figure
from torch import Tensor

Verdict = Literal["holds", "fails", "not decided at this scale"]
VERDICTS: tuple[Verdict, ...] = ("holds", "fails", "not decided at this scale")
Progress = Callable[[int, int], None]  # steps done and steps of the unit
SCALES = ("smoke", "cpu", "gpu")
_UNIT = re.compile(r"[a-z0-9][a-z0-9.=+-]*")


@dataclass(frozen=True)
class Outcome:
    """What one unit found: all that the conclusion needs of it, for units are kept and not run again.

    Attributes:
        figures: Plain JSON values by name.
        tensors: Kept as safetensors.
    """

    figures: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Conclusion:
    """What all units together say.

    Attributes:
        verdict: About the claim.
        reason: The figures behind the verdict, in a sentence or two.
        figures: The main figures by name, as ``--json`` prints them.
        tables: Rows by the table's title; published figures stand beside ours.
        pictures: By file name, without ``.png``.
    """

    verdict: Verdict
    reason: str
    figures: Mapping[str, float]
    tables: Mapping[str, Sequence[Mapping[str, object]]]
    pictures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment(ABC):
    """A claim and how it is tried. Subclasses are frozen dataclasses, whose fields are the configuration.

    Attributes:
        name: As in ``psa experiment run NAME``.
        claim: One sentence that can be false.
        source: The paper, with its figure or table.
        device: A torch device.
    """

    name: ClassVar[str]
    claim: ClassVar[str]
    source: ClassVar[str]
    device: str = "cpu"

    @abstractmethod
    def units(self) -> Sequence[str]:
        """Names of the parts, such as ``psa-proj.seed-0``: lower-case letters, digits, and ``. = + -``."""

    @abstractmethod
    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Run one part. All that is random in it depends on the configuration and the part's name alone."""

    @abstractmethod
    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """The verdict from all parts, by name in the order of :meth:`units`; cheap, for it is run again on resuming."""


def require_units(experiment: Experiment) -> Sequence[str]:
    """The units' names, each fit for a file's name, none twice."""
    units = experiment.units()
    assert units, experiment
    assert len(set(units)) == len(units), units
    assert all(_UNIT.fullmatch(unit) for unit in units), units
    return units
