"""Pictures of mixtures of slots: densities on a line, the slots of an image in space, a density in a plane."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from psa.report import pictures

_DPI = 150


def slots_figure(
    grid: Float64[np.ndarray, " points"],
    densities: Sequence[Float64[np.ndarray, " points"]],
    draws: Float64[np.ndarray, "draws 3"],
    order: Int64[np.ndarray, " draws"],
) -> Figure:
    """PSA figures 6 and 7: the densities of an image's three slots on a line, and the three side by side in space.

    Args:
        grid: (P,), values of a slot with one feature.
        densities: Three times (P,), weight times density of a slot.
        draws: (n, 3), the slots of the image in a random order.
        order: (n,), which order, from 0.
    """
    figure = Figure(figsize=(9.6, 4.2), dpi=_DPI, facecolor="white", layout="constrained")
    line = figure.add_subplot(1, 2, 1)
    for index, density in enumerate(densities):
        line.fill_between(grid, density, color=pictures.colour(index), alpha=0.35, linewidth=0)
        line.plot(grid, density, color=pictures.colour(index), linewidth=1.4, label=f"slot {index + 1}")
    line.plot(grid, np.sum(densities, axis=0), color=pictures.INK, linewidth=1.0, linestyle="--", label="mixture")
    line.set_title("one slot of the image", loc="left", fontsize=10, color=pictures.INK)
    line.set_xlabel("s", color=pictures.FAINT)
    line.set_ylim(bottom=0)
    line.legend(frameon=False, fontsize=8)
    line.spines[["top", "right"]].set_visible(False)
    space = figure.add_subplot(1, 2, 2, projection="3d")
    colours = [pictures.colour(int(index)) for index in order]
    space.scatter(draws[:, 0], draws[:, 1], zs=draws[:, 2], c=colours, s=4, alpha=0.6, linewidths=0)
    space.set_title("all three in a random order: a colour an order", loc="left", fontsize=10, color=pictures.INK)
    for axis, name in zip((space.xaxis, space.yaxis, space.zaxis), ("first", "second", "third"), strict=True):
        axis.set_label_text(name)
        axis.label.set_color(pictures.FAINT)
    space.tick_params(labelsize=7)
    return figure


def aggregate_figure(
    horizontal: Float64[np.ndarray, " columns"],
    vertical: Float64[np.ndarray, " rows"],
    density: Float64[np.ndarray, "rows columns"],
    loc: Float64[np.ndarray, "slots 2"],
    var: Float64[np.ndarray, "slots 2"],
) -> Figure:
    """The aggregate mixture's density in the plane, and one deviation of some of the slots that it adds up.

    Args:
        horizontal: (P,), first feature.
        vertical: (Q,), second feature.
        density: (Q, P).
        loc: (S, 2), means of some slots.
        var: (S, 2), their variances.
    """
    figure = Figure(figsize=(5.4, 4.6), dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.contourf(horizontal, vertical, density, levels=16, cmap="Blues")
    for (x, y), (width, height) in zip(loc, 2 * np.sqrt(var), strict=True):
        axes.add_patch(Ellipse((x, y), width, height, fill=False, edgecolor=pictures.colour(1), linewidth=0.8))
    axes.set_aspect("equal")
    axes.set_title("aggregate mixture; rings: slots of a few images", loc="left", fontsize=10, color=pictures.INK)
    axes.set_xlabel("first feature", color=pictures.FAINT)
    axes.set_ylabel("second feature", color=pictures.FAINT)
    return figure
