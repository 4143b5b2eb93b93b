"""The picture of costs against sizes, with the power laws fitted to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from psa.report import pictures

_DPI = 150


@dataclass(frozen=True)
class CostCurve:
    """What one method costs at several sizes of one axis.

    Attributes:
        name: The method's.
        sizes: (P,), rising.
        milliseconds: (P,).
        exponent: Of the fitted law, sizes ** exponent.
    """

    name: str
    sizes: Float64[np.ndarray, " points"]
    milliseconds: Float64[np.ndarray, " points"]
    exponent: float


def scaling_figure(curves: Mapping[str, Sequence[CostCurve]]) -> Figure:
    """A panel an axis, both scales logarithmic; dashed: cost in proportion to the size.

    Args:
        curves: By the axis that is varied.
    """
    figure = Figure(figsize=(2.7 * len(curves), 3.0), dpi=_DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, lines) in zip(panels, curves.items(), strict=True):
        for index, curve in enumerate(lines):
            label = f"{curve.name}: {curve.exponent:.2f}"
            colour = pictures.colour(index)
            axes.plot(curve.sizes, curve.milliseconds, color=colour, marker="o", markersize=3, label=label)
        first = lines[0]
        linear = first.milliseconds[-1] * first.sizes / first.sizes[-1]
        axes.plot(first.sizes, linear, color=pictures.FAINT, linestyle="--", linewidth=1.0, label="proportional")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(name, loc="left", fontsize=10, color=pictures.INK, fontweight="bold")
        axes.legend(frameon=False, fontsize=7)
        axes.tick_params(labelsize=8, colors=pictures.FAINT)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("CPU ms", color=pictures.FAINT)
    return figure
