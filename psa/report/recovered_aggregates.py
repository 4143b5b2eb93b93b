"""The picture of PSA figure 4: what several runs recovered, as it came and after the affine map to the first."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psa.report import pictures

_DPI = 160
_SIDE = 2.2  # inches of a panel
_LIGHT = "#eceef1"


def recovered_aggregates_figure(
    before: Sequence[Float[np.ndarray, "slots 2"]],
    after: Sequence[Float[np.ndarray, "slots 2"]],
    types: Sequence[Int64[np.ndarray, " slots"]],
) -> Figure:
    """Draws from the recovered aggregates, a column a run: above as they came, below mapped to the first run.

    Args:
        before: Slots (n, 2) of every run; a panel each, with its own axes of equal units.
        after: The same, mapped; all panels have the first one's axes.
        types: (n,), the planted type of each slot, which gives its colour; negative for none.
    """
    figure = Figure(figsize=(_SIDE * len(before), 2 * _SIDE + 0.5), dpi=_DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(2, len(before), squeeze=False)
    limits = _square(after[0])
    for run, (top, bottom) in enumerate(zip(*panels, strict=True)):
        _draw(top, before[run], types[run], _square(before[run]))
        _draw(bottom, after[run], types[run], limits)
        top.set_title(f"run {run + 1}", fontsize=10, color=pictures.INK, fontweight="bold")
    panels[0, 0].set_ylabel("as recovered", fontsize=9, color=pictures.INK)
    panels[1, 0].set_ylabel("mapped to run 1", fontsize=9, color=pictures.INK)
    figure.supxlabel("two features of a slot; a colour a planted type", fontsize=8, color=pictures.FAINT)
    return figure


def _square(slots: Float[np.ndarray, "slots 2"]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits of a square that holds all but stray slots."""
    low, high = np.quantile(slots, (0.005, 0.995), axis=0)
    middle, half = (low + high) / 2, 0.62 * float((high - low).max()) + 1e-9
    return middle - half, middle + half


def _draw(
    axes: Axes,
    slots: Float[np.ndarray, "slots 2"],
    types: Int64[np.ndarray, " slots"],
    limits: tuple[np.ndarray, np.ndarray],
) -> None:
    colours = np.array([pictures.FAINT if kind < 0 else pictures.colour(int(kind)) for kind in types])
    axes.scatter(slots[:, 0], slots[:, 1], 3, colours, alpha=0.5, linewidths=0)
    (left, bottom), (right, top) = limits
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    axes.grid(True, color=_LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=7, colors=pictures.FAINT, length=0)
    for spine in axes.spines.values():
        spine.set_color(pictures.LINE)
