"""The picture of rules that leave slots undecoded: what each saves against what the segmentation loses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from psa.report import pictures
from psa.report.files import save

_DPI = 160
_SIZE = (9.6, 3.6)  # inches
_COLOURS = ("#2563eb", "#c2410c", "#59a14f", "#b07aa1")
_NEAR = (-0.02, 0.06)  # of the losses, in the right panel


@dataclass(frozen=True)
class SavingCurve:
    """A rule at several thresholds.

    Attributes:
        name: The rule's.
        saved: (P,), shares of the decoder's FLOPs.
        loss: (P,), of foreground ARI.
        error: (P,), standard errors of the losses.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    name: str
    saved: Float64[np.ndarray, " points"]
    loss: Float64[np.ndarray, " points"]
    error: Float64[np.ndarray, " points"]

    def __post_init__(self) -> None:
        if not self.saved.shape == self.loss.shape == self.error.shape:
            raise ValueError(f"loss and error must be of the shape of saved {self.saved.shape}, got {self.loss.shape}")


def relevance_figure(curves: Sequence[SavingCurve], spare: float, allowed: float, path: str | Path) -> None:
    """Save the picture: left all of the curves, right the losses near 0.

    Args:
        curves: A line each, with two standard errors as a band.
        spare: The share of the slots that the scenes do not need, drawn as a vertical line.
        allowed: The loss that is allowed, drawn as a horizontal line.
        path: A PNG, written in one step; its folder is made.
    """
    save(path, relevance_png(curves, spare, allowed))


def relevance_png(curves: Sequence[SavingCurve], spare: float, allowed: float) -> bytes:
    """Draw it: the bytes that ``relevance_figure`` saves."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
    whole, near = figure.subplots(1, 2, sharex=True)
    for axes in (whole, near):
        draw_curves(axes, curves, spare, allowed)
    whole.legend(frameon=False, fontsize=8, loc="upper left")
    near.set_ylim(*_NEAR)
    _dress(whole, "foreground ARI lost")
    _dress(near, "the same, near 0")
    return pictures.figure_png(figure)


def draw_curves(axes: Axes, curves: Sequence[SavingCurve], spare: float, allowed: float) -> None:
    """A line a rule, in the order of what is saved, and the two limits."""
    axes.axhline(allowed, color=pictures.FAINT, linewidth=1.0, linestyle=":", label=f"a loss of {allowed:g}")
    axes.axvline(spare, color=pictures.FAINT, linewidth=1.0, linestyle="--", label="slots the scenes can spare")
    for curve, colour in zip(curves, _COLOURS, strict=False):
        order = np.argsort(curve.saved)
        saved, loss, error = curve.saved[order], curve.loss[order], curve.error[order]
        axes.fill_between(saved, loss - 2 * error, loss + 2 * error, color=colour, alpha=0.15, linewidth=0)
        axes.plot(saved, loss, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=curve.name)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=pictures.INK, fontweight="bold")
    axes.set_xlabel("decoder FLOPs saved, the rule's own taken off", fontsize=9, color=pictures.FAINT)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(True, color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=pictures.FAINT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(pictures.LINE)
