"""The picture of a comparison of slot counts: evidence, probabilities, and the slots of the likeliest count."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Ellipse
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from psa.report import pictures
from psa.report.files import save

_DPI = 160
_HEIGHT = 3.5  # inches
_CHART, _SQUARE = 4.4, 3.5  # widths in inches
_EVIDENCE, _OCCUPIED, _FAILED = "#2563eb", "#f59e0b", "#c2410c"
_LINEAR = 10.0  # nats; above, the axis of the evidence is logarithmic
_SPREAD = 2.0  # standard deviations to an ellipse's rim
_SIDE = 480  # pixels at least of a picture's side
_TILTED = 12  # counts from which every second has a label


@dataclass(frozen=True)
class SlotCounts:
    """Evidence for K = 1..Kmax slots, and what the slots of the likeliest K own.

    Attributes:
        log_evidence: (Kmax,), nats; NaN where there is none.
        standard_error: (Kmax,), nats; 0 where the method has none.
        failed: (Kmax,), estimates that are not to be trusted.
        bound: (Kmax,), nats, guaranteed not to be above the log evidence.
        probability: (Kmax,), p(K | tokens), sums to 1.
        occupied: (Kmax + 1,), probabilities of 0..Kmax occupied slots in a sparse fit.
        tokens: (N, D).
        labels: (N,), the slot that owns each token at the likeliest K.
        loc: (K, D), where the slots are.
        scale: (K, D), the standard deviation of a slot's tokens.
        picture: (size, size, 3), what the tokens are the pixels of, row by row; or None.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    log_evidence: Float64[np.ndarray, " counts"]
    standard_error: Float64[np.ndarray, " counts"]
    failed: Bool[np.ndarray, " counts"]
    bound: Float64[np.ndarray, " counts"]
    probability: Float64[np.ndarray, " counts"]
    occupied: Float64[np.ndarray, " counts_and_none"]
    tokens: Float64[np.ndarray, "tokens features"]
    labels: Int64[np.ndarray, " tokens"]
    loc: Float64[np.ndarray, "slots features"]
    scale: Float64[np.ndarray, "slots features"]
    picture: UInt8[np.ndarray, "size size 3"] | None = None

    def __post_init__(self) -> None:
        sizes = [len(part) for part in (self.standard_error, self.failed, self.bound, self.probability)]
        if not self.counts.size or {*sizes, len(self.occupied) - 1} != {self.counts.size}:
            raise ValueError(f"log_evidence: expected one entry a count in all, came {self.counts.size} and {sizes}")
        if self.picture is not None and self.picture.shape[0] * self.picture.shape[1] != len(self.tokens):
            raise ValueError(f"picture: expected {len(self.tokens)} pixels, came shape {self.picture.shape}")

    @property
    def counts(self) -> Int64[np.ndarray, " counts"]:
        """1, ..., Kmax."""
        return np.arange(1, len(self.log_evidence) + 1)


def slot_counts_figure(found: SlotCounts, path: str | Path) -> None:
    """Save the picture of a comparison.

    Left the log evidence of every count relative to the best, with a standard error where there is one, and the
    guaranteed bound; then p(K | tokens) beside the occupied slots of a sparse fit. For tokens of two features or more
    also their first two, coloured by slot; for a picture its pixels, coloured by slot.

    Args:
        found: What was found.
        path: A PNG, written in one step; its folder is made.
    """
    save(path, slot_counts_png(found))


def slot_counts_png(found: SlotCounts) -> bytes:
    """Draw it: the bytes that ``slot_counts_figure`` saves."""
    squares = 2 if found.picture is not None else int(found.tokens.shape[1] > 1)
    widths = [_CHART, _CHART] + [_SQUARE] * squares
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(sum(widths), _HEIGHT), dpi=_DPI, facecolor="white", layout=layout)
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    draw_evidence(axes[0], found)
    draw_probabilities(axes[1], found)
    if found.picture is not None:
        draw_pixels(axes[2], axes[3], found, found.picture)
    elif squares:
        draw_tokens(axes[2], found)
    return pictures.figure_png(figure)


def draw_evidence(axes: Axes, found: SlotCounts) -> None:
    """Log evidence and bound by count, less the best log evidence; far below it the axis is logarithmic."""
    finite = np.isfinite(found.log_evidence)
    best = found.log_evidence[finite].max() if finite.any() else 0.0
    evidence, bound = found.log_evidence - best, found.bound - best
    has_error = bool((found.standard_error > 0).any())
    error = np.nan_to_num(found.standard_error, posinf=0.0)
    line = axes.errorbar(
        found.counts, evidence, error if has_error else None, color=_EVIDENCE, marker="o", markersize=5, capsize=3
    )
    (bars,) = axes.plot(found.counts, bound, "_", color=pictures.INK, markersize=15, markeredgewidth=1.6)
    named: dict[str, Any] = {"log evidence" + (" ± standard error" if has_error else ""): line, "bound": bars}
    if found.failed.any():
        at = np.where(finite, evidence, bound)[found.failed]
        (crosses,) = axes.plot(found.counts[found.failed], at, "x", color=_FAILED, markersize=9, markeredgewidth=1.6)
        named["failed"] = crosses
    ends = np.concatenate([(evidence - error)[finite], (evidence + error)[finite], bound])
    _nats_axis(axes, float(ends.min()), float(ends.max()))
    _dress(axes, found, "evidence for each number of slots", "log evidence less the best (nats)")
    _legend(axes, named)


def _nats_axis(axes: Axes, low: float, high: float) -> None:
    """From ``low`` to ``high`` about 0, logarithmic far below it."""
    if low >= -5 * _LINEAR:
        axes.margins(y=0.08)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.2)
    decades = [-(10.0**power) for power in range(2, int(np.ceil(np.log10(-low))) + 1)]
    axes.yaxis.set_major_locator(FixedLocator([0, -_LINEAR / 2, -_LINEAR, *decades]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(2 * low, 1.5 + high)


def draw_probabilities(axes: Axes, found: SlotCounts) -> None:
    """p(K | tokens) and the occupied slots, as bars side by side."""
    one = axes.bar(found.counts - 0.2, found.probability, 0.4, color=_EVIDENCE)
    other = axes.bar(found.counts + 0.2, found.occupied[1:], 0.4, color=_OCCUPIED)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _dress(axes, found, "how many slots", "probability")
    _legend(axes, {"p(K | tokens)": one, "occupied in a sparse fit": other})


def draw_tokens(axes: Axes, found: SlotCounts) -> None:
    """The first two features of the tokens in their slots' colours; ellipses of two standard deviations."""
    colours = np.array([pictures.colour(slot) for slot in range(len(found.loc))])
    size = float(np.clip(3000 / len(found.tokens), 2, 22))
    axes.scatter(found.tokens[:, 0], found.tokens[:, 1], size, colours[found.labels], linewidths=0, alpha=0.75)
    for slot in np.unique(found.labels):
        centre = (float(found.loc[slot, 0]), float(found.loc[slot, 1]))
        width, height = (2 * _SPREAD * found.scale[slot, :2]).tolist()
        for colour, thickness in ((pictures.INK, 2.2), (colours[slot], 1.2)):  # a dark rim around the slot's colour
            axes.add_patch(
                Ellipse(centre, width, height, facecolor="none", edgecolor=colour, linewidth=thickness, alpha=0.9)
            )
    _title(axes, f"the tokens at K = {len(found.loc)}")
    axes.set_xlabel("feature 1", fontsize=9, color=pictures.FAINT)
    axes.set_ylabel("feature 2", fontsize=9, color=pictures.FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _quiet(axes)
    axes.grid(True, color="#eceef1", linewidth=0.8)


def draw_pixels(left: Axes, right: Axes, found: SlotCounts, picture: UInt8[np.ndarray, "size size 3"]) -> None:
    """The picture, and beside it which pixel belongs to which slot."""
    labels = found.labels.reshape(picture.shape[:2])
    colours = pictures.scene_colours(labels, len(found.loc))
    height, width = picture.shape[:2]
    factor = -(-_SIDE // max(height, width))
    shown = {left: picture, right: pictures.label_picture(labels, colours)}
    for axes, pixels in shown.items():
        axes.imshow(pictures.scaled(pixels, factor * height, factor * width), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(pictures.LINE)
    _title(left, f"the picture, {width} x {height} pixels")
    _title(right, f"its pixels at K = {len(found.loc)}")


def _dress(axes: Axes, found: SlotCounts, title: str, unit: str) -> None:
    """Title, names of the axes, a tick a count."""
    _title(axes, title)
    axes.set_xlabel("number of slots K", fontsize=9, color=pictures.FAINT)
    axes.set_ylabel(unit, fontsize=9, color=pictures.FAINT)
    step = 1 if found.counts.size < _TILTED else -(-found.counts.size // _TILTED)
    axes.set_xticks(found.counts[::step])
    axes.set_xlim(0.4, found.counts.size + 0.6)
    _quiet(axes)
    axes.grid(True, axis="y", color="#eceef1", linewidth=0.8)


def _title(axes: Axes, text: str) -> None:
    """With room for a legend below it, in all panels, so that titles stand on one line."""
    axes.set_title(text, loc="left", fontsize=10, color=pictures.INK, fontweight="bold", pad=22)


def _quiet(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=pictures.FAINT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(pictures.LINE)


def _legend(axes: Axes, named: Mapping[str, Any]) -> None:
    """Where it is in nobody's way: between the title and the axes."""
    axes.legend(
        list(named.values()),
        list(named),
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.985),
        ncols=len(named),
        fontsize=8,
        frameon=False,
        labelcolor=pictures.FAINT,
        handletextpad=0.5,
        columnspacing=1.2,
        borderaxespad=0.0,
    )
