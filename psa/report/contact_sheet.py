"""The picture of a data set: a grid, each scene above its mask."""

import math
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from psa.report import pictures

_TILE, _GAP, _APART, _COLUMNS = 128, 4, 16, 8  # pixels: longer side, between picture and mask, between scenes; scenes
_GROUND = "#c3c8d0"


def contact_sheet_png(
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
    masks: Sequence[Int64[np.ndarray, "height width"]] | None,
    background: Collection[int] = (),
) -> bytes:
    """Draw it.

    Args:
        images: At least one, all of one size; large ones are drawn smaller.
        masks: The label of each pixel; None draws images alone. A label has one colour in all scenes.
        background: Labels that are no objects, which are grey.

    Returns:
        A PNG.
    """
    height, width = _tile_size(*images[0].shape[:2])
    columns = min(_COLUMNS, len(images))
    cell = (height * (1 if masks is None else 2) + (0 if masks is None else _GAP) + _APART, width + _APART)
    rows = math.ceil(len(images) / columns)
    canvas = np.full((rows * cell[0] + _APART, columns * cell[1] + _APART, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = _APART + index // columns * cell[0], _APART + index % columns * cell[1]
        canvas[top : top + height, left : left + width] = pictures.scaled(image, height, width)
        if masks is not None:
            top += height + _GAP
            canvas[top : top + height, left : left + width] = _coloured(masks[index], height, width, background)
    return pictures.png(canvas)


def _tile_size(height: int, width: int) -> tuple[int, int]:
    """Enlarged by a whole factor to the tile's side at least, or made smaller to it."""
    longer = max(height, width)
    if longer <= _TILE:
        return height * math.ceil(_TILE / longer), width * math.ceil(_TILE / longer)
    return max(1, round(height * _TILE / longer)), max(1, round(width * _TILE / longer))


def _coloured(
    mask: Int64[np.ndarray, "height width"], rows: int, columns: int, background: Collection[int]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Each label in its colour, the nearest pixel of each."""
    nearest = mask[np.ix_(np.arange(rows) * mask.shape[0] // rows, np.arange(columns) * mask.shape[1] // columns)]
    labels, place = np.unique(nearest, return_inverse=True)
    colours = [_GROUND if label in background else pictures.colour(abs(int(label))) for label in labels]
    table: UInt8[np.ndarray, "labels 3"] = np.stack([pictures.rgb(colour) for colour in colours])
    return table[place.reshape(nearest.shape)]
