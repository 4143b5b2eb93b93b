"""The picture of what several models make of the same images: a line a model, the labels of its masks below each."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64, UInt8
from matplotlib.figure import Figure

from psa.report import pictures

_CELL, _NAMES = 0.72, 2.1  # inches


def mask_grid_figure(
    images: UInt8[np.ndarray, "images height width 3"],
    true: Int64[np.ndarray, "images height width"],
    found: Mapping[str, Int64[np.ndarray, "images height width"]],
    num_slots: int,
) -> Figure:
    """A first line of images, one of true labels, then one of found labels for each name.

    Args:
        images: (M, H, W, 3).
        true: (M, H, W), any labels.
        found: (M, H, W) in [0, num_slots) by name; the owner of most of an image's rim is grey.
        num_slots: K.
    """
    lines = {"image": images, "true objects": np.stack([_coloured(one, int(true.max()) + 1) for one in true])}
    lines |= {name: np.stack([_coloured(one, num_slots) for one in labels]) for name, labels in found.items()}
    size = (_NAMES + _CELL * len(images), 0.1 + _CELL * len(lines))
    figure = Figure(figsize=size, dpi=160, facecolor="white")
    left, top = _NAMES / size[0], _CELL / size[1]
    for row, (name, drawn) in enumerate(lines.items()):
        bottom = 1.0 - (row + 1) * top
        figure.text(left - 0.01, bottom + top / 2, name, ha="right", va="center", fontsize=8, color=pictures.INK)
        for column, picture in enumerate(drawn):
            width = _CELL / size[0]
            axes = figure.add_axes((left + column * width, bottom, 0.94 * width, 0.94 * top))
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
    return figure


def _coloured(labels: Int64[np.ndarray, "height width"], count: int) -> UInt8[np.ndarray, "height width 3"]:
    return pictures.label_picture(labels, pictures.scene_colours(labels, count))
