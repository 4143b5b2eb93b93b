"""Learning curves as small panels side by side."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from psa.report import pictures
from psa.report.content import Curves

_DPI = 200
_COLUMNS = 2
_PANEL = (4.6, 2.5)  # inches
_COLOURS = ("#2563eb", "#c2410c", "#047857", "#7c3aed")


def curves_png(curves: Curves) -> bytes:
    """Draw a panel for each curve, two in a row.

    A curve of positive values that falls over more than a decade gets a logarithmic axis. Values that are not finite
    leave a gap.

    Args:
        curves: Name to (step, value) points in order of step; without points a curve is left out, and without any curve
            the picture says so.

    Returns:
        A PNG.
    """
    drawn = {name: points for name, points in curves.items() if points}
    columns = min(_COLUMNS, max(1, len(drawn)))
    rows = max(1, math.ceil(len(drawn) / columns))
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), dpi=_DPI, facecolor="white", layout="constrained")
    if not drawn:
        figure.text(0.5, 0.5, "no learning curve was recorded", ha="center", va="center", color=pictures.FAINT)
    for index, (name, points) in enumerate(drawn.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        draw_curve(axes, name.replace("_", " "), points, _COLOURS[index % len(_COLOURS)])
    return pictures.figure_png(figure)


def draw_curve(axes: Axes, name: str, points: Sequence[tuple[int, float]], colour: str) -> None:
    """Draw one curve of at least one point, titled with its name."""
    steps = [step for step, _ in points]
    values = [value if math.isfinite(value) else math.nan for _, value in points]
    finite = [value for value in values if math.isfinite(value)]
    axes.plot(steps, values, color=colour, linewidth=1.4, marker="o" if len(points) <= 20 else "", markersize=3)
    _scale_values(axes, finite)
    if not finite:
        axes.text(0.5, 0.5, "no finite value", ha="center", va="center", color=pictures.FAINT, transform=axes.transAxes)
    span = max(steps[-1] - steps[0], 1)
    axes.set_xlim(steps[0] - 0.03 * span, steps[0] + 1.03 * span)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(name, loc="left", fontsize=10, color=pictures.INK, fontweight="bold")
    axes.set_xlabel("step", fontsize=8.5, color=pictures.FAINT)
    _make_quiet(axes)


def _scale_values(axes: Axes, finite: Sequence[float]) -> None:
    if finite and min(finite) > 0 and finite[0] > 10 * finite[-1]:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", useOffset=False)


def _make_quiet(axes: Axes) -> None:
    axes.grid(True, axis="y", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=pictures.FAINT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(pictures.LINE)
