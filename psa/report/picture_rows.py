"""Small pictures in named rows: the same scenes, a row for each way to see them."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from psa.report import pictures

_DPI = 160
_TILE, _NAMES, _GAP = 0.72, 2.0, 0.06  # inches: a side, the names, between pictures


def picture_rows(rows: Mapping[str, UInt8[np.ndarray, "scenes height width 3"]]) -> Figure:
    """A row of pictures under each other for each name, one scene a column.

    Args:
        rows: By name, the same number of pictures of one size; top down. Without any, the figure says so.
    """
    columns = max((len(row) for row in rows.values()), default=4)
    size = (_NAMES + columns * (_TILE + _GAP), max(2, len(rows)) * (_TILE + _GAP) + _GAP)
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
    if not rows:
        figure.text(0.5, 0.5, "no run was whole", ha="center", va="center", color=pictures.FAINT)
    for number, (name, row) in enumerate(rows.items()):
        bottom = size[1] - (number + 1) * (_TILE + _GAP)
        figure.text(
            (_NAMES - 0.1) / size[0], (bottom + _TILE / 2) / size[1], name, ha="right", va="center", fontsize=9,
            color=pictures.INK,
        )  # fmt: skip
        for column, picture in enumerate(row):
            left = _NAMES + column * (_TILE + _GAP)
            axes = figure.add_axes((left / size[0], bottom / size[1], _TILE / size[0], _TILE / size[1]))
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
    return figure
