"""What a report says, before it has a look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

Value = float | int | str | None
"""A cell of a table; None and NaN are shown as a dash."""

_MASK_TOLERANCE = 1e-2  # masks may come from half precision


@dataclass(frozen=True)
class Verdict:
    """One sentence on whether the run is in order.

    Attributes:
        level: "ok", or "warning" for what a reader should look into.
        text: The sentence.
    """

    level: Literal["ok", "warning"]
    text: str

    def __post_init__(self) -> None:
        if self.level not in ("ok", "warning"):
            raise ValueError(f"level: expected 'ok' or 'warning', came {self.level!r}")


@dataclass(frozen=True)
class MetricRow:
    """One figure of the run.

    Attributes:
        name: What it is called.
        value: A number in the unit that ``meaning`` states, or words; NaN is shown as a dash.
        meaning: What it measures, its range and which end is good.
    """

    name: str
    value: float | int | str
    meaning: str


@dataclass(frozen=True)
class SceneView:
    """One image and what a model made of it.

    Attributes:
        image: (H, W, 3) uint8.
        reconstruction: (H, W, 3) uint8.
        true_mask: (H, W) int64, any labels; None if the truth is not known.
        masks: (K, H, W) float32 in [0, 1], sums to 1 over K in every pixel.
        slot_rgb: (K, H, W, 3) uint8, each slot's picture, not masked.
        weights: (K,) float32, each slot's weight in the mixture; sums to 1 over K.
        foreground_ari: Of this image, or None if the truth is not known.

    Raises:
        ValueError: If the shapes do not fit together or the masks do not sum to 1.
    """

    image: UInt8[np.ndarray, "height width 3"]
    reconstruction: UInt8[np.ndarray, "height width 3"]
    true_mask: Int64[np.ndarray, "height width"] | None
    masks: Float32[np.ndarray, "slots height width"]
    slot_rgb: UInt8[np.ndarray, "slots height width 3"]
    weights: Float32[np.ndarray, " slots"]
    foreground_ari: float | None = None

    def __post_init__(self) -> None:
        num_slots, height, width = self.num_slots, *self.image.shape[:2]
        expected = {
            "image": (height, width, 3),
            "reconstruction": (height, width, 3),
            "true_mask": (height, width),
            "masks": (num_slots, height, width),
            "slot_rgb": (num_slots, height, width, 3),
            "weights": (num_slots,),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, came {array.shape}")
        total = self.masks.sum(axis=0)
        if not (num_slots and (np.abs(total - 1.0) <= _MASK_TOLERANCE).all()):
            raise ValueError(f"masks: expected to sum to 1 over slots, came {total.min():.3g} to {total.max():.3g}")

    @property
    def num_slots(self) -> int:
        """K."""
        return len(self.masks)

    @property
    def labels(self) -> Int64[np.ndarray, "height width"]:
        """The slot that owns each pixel, (H, W) int64."""
        return self.masks.argmax(axis=0)


@dataclass(frozen=True)
class RunsTable:
    """All the runs that were tried, so that a chosen one is not taken for the only one.

    Attributes:
        headers: The columns' names.
        rows: A cell a column; numbers, words, or None.
        chosen: The row that the report is about, if one was chosen.

    Raises:
        ValueError: If a row has another length than the headers, or the chosen row does not exist.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Value]]
    chosen: int | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(f"rows: expected {len(self.headers)} cells in each, came {len(row)}")
        if self.chosen is not None and not 0 <= self.chosen < len(self.rows):
            raise ValueError(f"chosen: expected a row in [0, {len(self.rows)}), came {self.chosen}")


Curves = Mapping[str, Sequence[tuple[int, float]]]
"""A curve's name to its (step, value) points, in order; each curve gets a panel of its own."""


@dataclass(frozen=True)
class ReportContent:
    """Everything on the page. Only the title and the summary are needed; an empty part says so or is left out.

    Attributes:
        title: The page's heading.
        summary: A sentence or two under it, plain text.
        verdicts: In the order shown; warnings are coloured.
        metrics: The figures of the run.
        scenes: Decomposed images.
        curves: Learning curves.
        runs: All seeds tried, or None.
        config_toml: The configuration that reproduces the run.
        provenance: Versions, device, commit and the like.
    """

    title: str
    summary: str
    verdicts: Sequence[Verdict] = ()
    metrics: Sequence[MetricRow] = ()
    scenes: Sequence[SceneView] = ()
    curves: Curves = field(default_factory=dict)
    runs: RunsTable | None = None
    config_toml: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
