"""The picture of predictive checks: where the data's statistic lies among those of the replicates."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psa.metrics.p_values import Check
from psa.report import pictures
from psa.report.files import save

_DPI = 160
_COLUMNS = 4
_PANEL = (3.2, 2.5)  # inches
_SIDE, _ABOVE, _BELOW = 0.1, 0.3, 0.6  # inches around the axes of a panel
_REPLICATES, _DATA, _RAW = "#93b4f0", "#c2410c", "#b45309"
_BINS = 40
_FEW = 30  # different values up to which each has a bar


def checks_figure(checks: Sequence[Check], path: str | Path) -> None:
    """Save the picture: a panel for each check.

    A histogram of the replicates' statistic, the data's as a line, and the p-value with the kind of check above it. A
    raw p-value, which is not uniform on data from the model, says so. A simulation-calibrated check shows the statistic
    and its replicates, and the calibrated p-value.

    Args:
        checks: At least one, each of one data set.
        path: A PNG, written in one step; its folder is made.

    Raises:
        ValueError: If there is no check, or one of several data sets.
    """
    save(path, checks_png(checks))


def checks_png(checks: Sequence[Check]) -> bytes:
    """Draw it: the bytes that ``checks_figure`` saves."""
    if not checks:
        raise ValueError("checks: expected at least one, came none")
    columns = min(_COLUMNS, len(checks))
    rows = math.ceil(len(checks) / columns)
    width, height = _PANEL[0] * columns, _PANEL[1] * rows
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.subplots_adjust(  # four times as fast as a layout engine, whose answer is known here
        left=_SIDE / width,
        right=1 - _SIDE / width,
        top=1 - _ABOVE / height,
        bottom=_BELOW / height,
        wspace=2 * _SIDE / (_PANEL[0] - 2 * _SIDE),
        hspace=(_ABOVE + _BELOW) / (_PANEL[1] - _ABOVE - _BELOW),
    )
    for index, check in enumerate(checks):
        draw_check(figure.add_subplot(rows, columns, index + 1), check)
    return pictures.figure_png(figure)


def draw_check(axes: Axes, check: Check) -> None:
    """One panel."""
    if len(check.observed) != 1:
        raise ValueError(f"checks: expected one data set each, came {len(check.observed)} of {check.statistic}")
    shown = check.raw or check
    reference, observed = shown.reference[:, 0].double().cpu().numpy(), float(shown.observed)
    finite = reference[np.isfinite(reference)]
    axes.hist(finite, bins=_edges(finite).tolist(), color=_REPLICATES, edgecolor="white", linewidth=0.3)
    if math.isfinite(observed):
        axes.axvline(observed, color=_DATA, linewidth=1.8)
    axes.set_title(check.statistic.replace("_", " "), loc="left", fontsize=9.5, color=pictures.INK, fontweight="bold")
    raw = check.provenance.uniform == "no"
    kind = check.provenance.kind + (" (raw, not uniform)" if raw else "")
    axes.set_xlabel(
        f"p {_shown(float(check.p_value), len(check.reference))}, {check.tail}\n{kind}",
        fontsize=8,
        color=_RAW if raw else pictures.FAINT,
    )
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=bool((finite == finite.round()).all())))
    axes.set_yticks([])
    axes.tick_params(labelsize=8, colors=pictures.FAINT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(pictures.LINE)


def _shown(p_value: float, num_replicates: int) -> str:
    """What so many replicates can tell apart."""
    least = 1.0 / (num_replicates + 1)
    return f"= {p_value:.3f}" if p_value >= least else f"< {least:.2g}"


def _edges(values: Float64[np.ndarray, " replicates"]) -> Float64[np.ndarray, " edges"]:
    """Bins of a histogram: one for each of a few different values, as of a count, else of equal width."""
    different = np.unique(values)
    if 1 < len(different) <= _FEW:
        half = float(np.diff(different).min()) / 2
        return np.sort(np.concatenate([different - half, different + half]))
    return np.histogram_bin_edges(values, min(_BINS, math.ceil(2 * math.sqrt(len(values)))) or 1)
