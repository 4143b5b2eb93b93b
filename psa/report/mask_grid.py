"""The picture of what several models make of the same images: a line a model, the labels of its masks below each."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64, UInt8
from matplotlib.figure import Figure

from psa.report import pictures

_CELL, _NAMES = 0.72, 2.1  # inches
_SIDE, _GAP = 96, 6  # pixels, of a picture at least and between two


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
    canvas = np.concatenate([_strip(drawn) for drawn in lines.values()])
    size = (_NAMES + _CELL * len(images), _CELL * len(lines))
    figure = Figure(figsize=size, dpi=160, facecolor="white")
    left = _NAMES / size[0]
    axes = figure.add_axes((left, 0.0, 1.0 - left, 1.0))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for row, name in enumerate(lines):
        place = 1.0 - (row + 0.5) / len(lines)
        figure.text(left - 0.015, place, name, ha="right", va="center", fontsize=8, color=pictures.INK)
    return figure


def _strip(drawn: UInt8[np.ndarray, "images height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pictures side by side, enlarged by a whole factor, each with a gap to the right of it and below it."""
    factor = math.ceil(_SIDE / min(drawn.shape[1:3]))
    large = drawn.repeat(factor, axis=1).repeat(factor, axis=2)
    padded = np.pad(large, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)


def _coloured(labels: Int64[np.ndarray, "height width"], count: int) -> UInt8[np.ndarray, "height width 3"]:
    return pictures.label_picture(labels, pictures.scene_colours(labels, count))
