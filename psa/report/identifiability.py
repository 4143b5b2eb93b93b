"""PSA's figures 5 and 8: error against compositional contrast, coloured by identifiability, and both over training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from psa.report import pictures

_DPI = 160
_MARKERS = "osD^vP*X"
_SIZE = (9.6, 3.8)  # inches


@dataclass(frozen=True)
class SeedPoint:
    """One run.

    Attributes:
        name: The model's.
        contrast: Compositional contrast, at least 0.
        error: Of the reconstruction.
        smcc: Agreement with the other seeds; None where there is none, drawn hollow.
        sis: Against the true factors.
    """

    name: str
    contrast: float
    error: float
    smcc: float | None
    sis: float


@dataclass(frozen=True)
class Learning:
    """A model over training.

    Attributes:
        name: The model's.
        curves: One a seed, each a row of figures a checkpoint: ``step``, ``smcc``, ``sis``.
    """

    name: str
    curves: Sequence[Sequence[Mapping[str, float]]]


def contrast_figure(points: Sequence[SeedPoint]) -> Figure:
    """Error against contrast, on a log scale; a marker a model, one of it a seed; colours SMCC (left), SIS (right)."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
    names = list(dict.fromkeys(point.name for point in points))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, key, title in zip(panels, ("smcc", "sis"), ("SMCC across seeds", "SIS, true factors"), strict=True):
        known = [value for point in points if (value := getattr(point, key)) is not None]
        highest = max([1e-3, *known])
        for point in points:
            value, marker = getattr(point, key), _MARKERS[names.index(point.name) % len(_MARKERS)]
            drawn = axes.scatter(
                [point.contrast],
                [point.error],
                46,
                [np.nan if value is None else value],
                marker=marker,
                cmap="viridis",
                vmin=0.0,
                vmax=highest,
                edgecolors=pictures.INK,
                linewidths=0.6,
                plotnonfinite=True,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        _dress(axes, f"colour: {title}", "compositional contrast, slots in standard deviations", "squared error")
        if points:
            figure.colorbar(drawn, ax=axes).ax.tick_params(labelsize=8, colors=pictures.FAINT, length=0)
    handles = [
        Line2D([], [], linestyle="", marker=_MARKERS[i % len(_MARKERS)], color=pictures.FAINT, label=name)
        for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    return figure


def learning_figure(rows: Sequence[Learning]) -> Figure:
    """SMCC and SIS against the true factors over training steps: the seeds' mean, their range as a band."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    titles = ("SMCC with the true factors", "SIS with the true factors")
    for axes, key, title in zip(panels, ("smcc", "sis"), titles, strict=True):
        for place, row in enumerate(rows):
            steps = [point["step"] for point in row.curves[0]]
            values = np.array([[point[key] for point in curve] for curve in row.curves])
            colour = pictures.colour(place)
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, values.mean(0), color=colour, marker="o", markersize=3.5, linewidth=1.5, label=row.name)
        _dress(axes, title, "training steps", "")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(rows)), frameon=False, fontsize=9)
    return figure


def _dress(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=pictures.INK, fontweight="bold")
    axes.set_xlabel(horizontal, fontsize=9, color=pictures.FAINT)
    axes.set_ylabel(vertical, fontsize=9, color=pictures.FAINT)
    axes.grid(True, color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=pictures.FAINT, length=0, which="both")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(pictures.LINE)
