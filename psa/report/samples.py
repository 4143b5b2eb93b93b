"""The picture of new scenes: a grid, each scene above the map of the slots that own its pixels."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from psa.report import pictures
from psa.report.files import save

_TILE, _GAP, _APART = 128, 4, 16  # pixels: a side at least, between picture and map, between scenes
_COLUMNS = 8


def samples_figure(
    scenes: UInt8[np.ndarray, "scenes height width 3"],
    labels: Int64[np.ndarray, "scenes height width"],
    num_slots: int,
    path: str | Path,
) -> None:
    """Save the grid as a PNG, whole or not at all.

    Args:
        scenes: (n, H, W, 3), the pictures.
        labels: (n, H, W), the slot that owns each pixel; the owner of most of a scene's rim is grey.
        num_slots: K.
        path: Its folder is made.
    """
    save(path, samples_png(scenes, labels, num_slots))


def samples_png(
    scenes: UInt8[np.ndarray, "scenes height width 3"],
    labels: Int64[np.ndarray, "scenes height width"],
    num_slots: int,
) -> bytes:
    """Draw it: the bytes that ``samples_figure`` saves.

    Raises:
        ValueError: If there is no scene.
    """
    if len(scenes) == 0:
        raise ValueError("scenes: expected at least one, came none")
    factor = math.ceil(_TILE / max(scenes.shape[1:3]))
    height, width = factor * scenes.shape[1], factor * scenes.shape[2]
    columns = min(_COLUMNS, len(scenes))
    rows = math.ceil(len(scenes) / columns)
    cell = (2 * height + _GAP + _APART, width + _APART)
    canvas = np.full((rows * cell[0] + _APART, columns * cell[1] + _APART, 3), 255, dtype=np.uint8)
    for index, (scene, owner) in enumerate(zip(scenes, labels, strict=True)):
        top, left = _APART + index // columns * cell[0], _APART + index % columns * cell[1]
        colours = pictures.scene_colours(owner, num_slots)
        for picture in (scene, pictures.label_picture(owner, colours)):
            canvas[top : top + height, left : left + width] = pictures.scaled(picture, height, width)
            top += height + _GAP
    return pictures.png(canvas)
