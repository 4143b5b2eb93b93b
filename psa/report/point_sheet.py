"""The picture of a data set of points: a panel an image, all with the same axes."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64
from matplotlib.figure import Figure

from psa.data.description import Points
from psa.report import pictures

_COLUMNS, _SIDE, _DPI = 8, 1.5, 120  # panels, inches, dots an inch
_UNKNOWN = -1  # label of tokens without one


def point_sheet_png(items: Sequence[Points]) -> bytes:
    """Draw it: a point a token, a colour a label, grey without labels.

    Tokens of more than two features are shown along the two directions in which those of all items spread most; those
    of one feature against their place in the image.

    Args:
        items: At least one, of tokens with as many features.

    Returns:
        A PNG.
    """
    drawn = _in_the_plane([item.tokens for item in items])
    columns = min(_COLUMNS, len(items))
    rows = math.ceil(len(items) / columns)
    figure = Figure(figsize=(_SIDE * columns, _SIDE * rows), dpi=_DPI, facecolor="white", layout="constrained")
    low, high = np.concatenate(drawn).min(axis=0), np.concatenate(drawn).max(axis=0)
    margin = 0.05 * (high - low) + 1e-9
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(items) :]:
        axes.axis("off")
    for axes, item, points in zip(panels, items, drawn, strict=False):
        labels = np.full(len(points), _UNKNOWN) if item.labels is None else item.labels
        colours = np.array([pictures.FAINT if label < 0 else pictures.colour(int(label)) for label in labels])
        axes.scatter(points[:, 0], points[:, 1], 4, colours, linewidths=0)
        axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axes.set_xticks([])
        axes.set_yticks([])
    return pictures.figure_png(figure)


def _in_the_plane(tokens: Sequence[Float32[np.ndarray, "_ features"]]) -> list[Float64[np.ndarray, "_ 2"]]:
    if tokens[0].shape[1] == 1:
        return [np.stack([np.arange(len(one)), one[:, 0]], axis=1).astype(np.float64) for one in tokens]
    wide = [one.astype(np.float64) for one in tokens]
    if tokens[0].shape[1] == 2:
        return wide
    pooled = np.concatenate(wide)
    middle, scale = pooled.mean(axis=0), np.abs(pooled).max() or 1.0  # scaled, so that no square overflows
    directions = np.linalg.svd((pooled - middle) / scale, full_matrices=False)[2][:2]
    return [(one - middle) @ directions.T for one in wide]
