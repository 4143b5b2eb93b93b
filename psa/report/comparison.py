"""The picture of a comparison of runs: how far each is below the best, image by image, and the stacking weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from psa.report import pictures
from psa.report.files import save

_DPI = 160
_WIDTHS = (4.6, 4.6, 2.2)  # inches
_ROW, _REST = 0.42, 1.5  # inches a run, and for titles and axes
_BEST, _BELOW = "#2563eb", "#c2410c"
_LINEAR = 10.0  # nats; where differences go far beyond, their axis is logarithmic
_LONGEST = 28  # letters of a run's name


@dataclass(frozen=True)
class RunComparison:
    """Per-image log p(x) of runs on the same images.

    Attributes:
        names: R of them.
        log_evidence: (R, M), nats.
        weights: (R,), stacking weights, sum to 1.

    Raises:
        ValueError: If the sizes do not fit together, or there are fewer than two images.
    """

    names: Sequence[str]
    log_evidence: Float64[np.ndarray, "runs images"]
    weights: Float64[np.ndarray, " runs"]

    def __post_init__(self) -> None:
        runs, images = self.log_evidence.shape
        if not len(self.names) == runs == len(self.weights) or images < 2:
            raise ValueError(
                f"log_evidence: expected a row for each of {len(self.names)} names and {len(self.weights)} weights, "
                f"and two images or more, got shape {self.log_evidence.shape}"
            )

    @property
    def differences(self) -> Float64[np.ndarray, "runs images"]:
        """Less the run of highest mean."""
        return self.log_evidence - self.log_evidence[self.log_evidence.mean(1).argmax()]


def comparison_figure(found: RunComparison, path: str | Path) -> None:
    """Save the picture of a comparison, a line a run.

    Left the mean of log p(x) less that of the best run, with two standard errors; then the differences of every image;
    right the stacking weights.

    Args:
        found: What was found.
        path: A PNG, written in one step; its folder is made.
    """
    save(path, comparison_png(found))


def comparison_png(found: RunComparison) -> bytes:
    """Draw it: the bytes that ``comparison_figure`` saves."""
    size = (sum(_WIDTHS), _REST + _ROW * len(found.names))
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
    means, images, weights = figure.subplots(1, 3, width_ratios=_WIDTHS, sharey=True)
    draw_means(means, found)
    draw_images(images, found)
    draw_weights(weights, found)
    return pictures.figure_png(figure)


def draw_means(axes: Axes, found: RunComparison) -> None:
    """Mean differences as dots, two standard errors to each side as bars."""
    mean = found.differences.mean(1)
    error = found.differences.std(1, ddof=1) / np.sqrt(found.differences.shape[1])
    for place in range(len(mean)):
        colour = _BEST if mean[place] == 0 else _BELOW
        axes.errorbar(mean[place], place, xerr=2 * error[place], fmt="o", color=colour, markersize=6, capsize=4)
    axes.set_yticks(range(len(found.names)), [_short(name) for name in found.names])
    axes.set_ylim(len(found.names) - 0.5, -0.5)
    axes.margins(x=0.08)
    _dress(axes, "log p(x) less the best run's", "nats an image, mean ± 2 standard errors")


def draw_images(axes: Axes, found: RunComparison) -> None:
    """Every image's difference as a dot; dots of a run are spread over its line in the order of the images."""
    num_images = found.differences.shape[1]
    spread = 0.5 * (np.arange(num_images) * 0.618 % 1.0 - 0.5)
    size = float(np.clip(1000 / num_images, 3, 20))
    for place, differences in enumerate(found.differences):
        axes.scatter(differences, place + spread, size, pictures.FAINT, linewidths=0, alpha=0.6)
    axes.axvline(0.0, color=pictures.LINE, linewidth=1.0, zorder=0)
    axes.margins(x=0.06)
    far = float(np.abs(found.differences).max()) > 5 * _LINEAR
    if far:
        axes.set_xscale("symlog", linthresh=_LINEAR)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _dress(axes, "image by image", f"nats, logarithmic beyond {_LINEAR:g}" if far else "nats")


def draw_weights(axes: Axes, found: RunComparison) -> None:
    """Stacking weights as bars with their values."""
    axes.barh(range(len(found.weights)), found.weights, 0.5, color=_BEST)
    for place, weight in enumerate(found.weights):
        axes.text(weight + 0.03, place, f"{weight:.2f}", va="center", fontsize=8, color=pictures.INK)
    axes.set_xlim(0.0, 1.25)
    axes.set_xticks([0.0, 0.5, 1.0])
    _dress(axes, "stacking weight", "share")


def _short(name: str) -> str:
    """The end of a long name, where paths differ."""
    return name if len(name) <= _LONGEST else "\N{HORIZONTAL ELLIPSIS}" + name[1 - _LONGEST :]


def _dress(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=pictures.INK, fontweight="bold")
    axes.set_xlabel(unit, fontsize=9, color=pictures.FAINT)
    axes.set_axisbelow(True)
    axes.grid(True, axis="x", color="#eceef1", linewidth=0.8)
    axes.tick_params(labelsize=8, colors=pictures.FAINT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(pictures.LINE)
