"""Pictures of scores over seeds: rows of dots, and lines with the range of the seeds as a band."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from psa.report import pictures

_DPI = 160
_WIDTH, _ROW, _PANEL = 7.2, 0.34, (4.8, 3.6)  # inches


@dataclass(frozen=True)
class Strip:
    """A row's scores.

    Attributes:
        name: The row's.
        scores: One a seed; none where every seed failed.
        published: The paper's figure, or None.
    """

    name: str
    scores: Sequence[float]
    published: float | None = None


def strips_figure(rows: Sequence[Strip], unit: str, published: str) -> Figure:
    """A line of dots a row, top down, a bar at their mean, a diamond at the published figure.

    Args:
        rows: At least one.
        unit: Of the scores.
        published: Whose figures the diamonds are; not shown where no row has one.
    """
    figure = _empty((_WIDTH, 1.1 + _ROW * len(rows)))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = pictures.colour(place)
        axes.scatter(row.scores, [place] * len(row.scores), 34, colour, alpha=0.8, linewidths=0, zorder=3)
        if row.scores:
            axes.plot([np.mean(row.scores)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.2)
    known = [(row.published, place) for place, row in enumerate(rows) if row.published is not None]
    if known:
        figures, places = zip(*known, strict=True)
        axes.scatter(figures, places, 34, facecolors="none", edgecolors=pictures.FAINT, marker="D", label=published)
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.02, 1, 0.1), frameon=False, fontsize=8, borderaxespad=0)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _dress(axes, "", unit, "")
    axes.tick_params(axis="y", labelsize=9, colors=pictures.INK)
    return figure


@dataclass(frozen=True)
class Band:
    """A line of means between the lowest and the highest seed.

    Attributes:
        name: In the legend.
        x: (P,) places.
        values: (seeds, P); NaN where a seed has no value.
        dashed: Drawn as a reference.
    """

    name: str
    x: Sequence[float]
    values: np.ndarray
    dashed: bool = False


def band_of_curves(name: str, curves: Sequence[Sequence[tuple[float, float]]]) -> Band:
    """The band of learning curves, one a seed, (step, value) each; one that ends early has no values after that.

    Args:
        name: In the legend.
        curves: At least one; the steps of each are the first ones of the longest.
    """
    steps = [step for step, _ in max(curves, key=len)]
    values = np.full((len(curves), len(steps)), np.nan)
    for curve, line in zip(curves, values, strict=True):
        line[: len(curve)] = [value for _, value in curve]
    return Band(name, steps, values)


def bands_figure(
    panels: Mapping[str, Sequence[Band]], x_unit: str, y_unit: str, *, logarithmic: bool = False, share_y: bool = True
) -> Figure:
    """A panel of bands for each title, one legend for all; a name has the same colour in every panel.

    Args:
        panels: Bands by title.
        x_unit: Of the places.
        y_unit: Of the values, beside the first panel; empty where each panel's title says it.
        logarithmic: The scale of x.
        share_y: Whether the panels have one scale.
    """
    figure = _empty((_PANEL[0] * len(panels), _PANEL[1]))
    names = list(dict.fromkeys(band.name for bands in panels.values() for band in bands))
    drawn: dict[str, Line2D] = {}
    row = figure.subplots(1, len(panels), squeeze=False, sharey=share_y)[0]
    for axes, (title, bands) in zip(row, panels.items(), strict=True):
        for band in bands:
            drawn[band.name] = _draw_band(axes, band, pictures.colour(names.index(band.name)))
        if logarithmic:
            axes.set_xscale("log")
        _dress(axes, title, x_unit, y_unit if axes is figure.axes[0] else "")
    figure.legend(
        list(drawn.values()), list(drawn), loc="outside right upper", frameon=False, fontsize=8,
        labelcolor=pictures.INK,
    )  # fmt: skip
    return figure


def _draw_band(axes: Axes, band: Band, colour: str) -> Line2D:
    seen = np.isfinite(band.values).any(0)
    x, values = np.asarray(band.x)[seen], band.values[:, seen]
    if len(values) > 1:
        axes.fill_between(x, np.nanmin(values, 0), np.nanmax(values, 0), color=colour, alpha=0.15, linewidth=0)
    style, marker = ("--", "") if band.dashed else ("-", "o")
    return axes.plot(x, np.nanmean(values, 0), style, color=colour, linewidth=1.6, marker=marker, markersize=3)[0]


def _empty(size: tuple[float, float]) -> Figure:
    return Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")


def _dress(axes: Axes, title: str, x_unit: str, y_unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=pictures.INK, fontweight="bold")
    axes.set_xlabel(x_unit, fontsize=9, color=pictures.FAINT)
    axes.set_ylabel(y_unit, fontsize=9, color=pictures.FAINT)
    axes.grid(True, color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors=pictures.FAINT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(pictures.LINE)
