"""The pictures of a run as files: scenes taken apart, and learning curves.

Drawn on matplotlib's canvas objects, never through pyplot, which keeps every figure in a global list.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from psa.report import pictures
from psa.report.content import Curves, SceneView
from psa.report.curves import curves_png
from psa.report.files import save

_DPI = 200
_TILE = 192  # about as many pixels a side for each tile


class _Letters(NamedTuple):
    size: float  # points
    colour: str


_HEADING, _CAPTION = _Letters(8.0, pictures.INK), _Letters(7.0, pictures.FAINT)


def decomposition_figure(scenes: Sequence[SceneView], path: str | Path) -> None:
    """Save the headline picture: a row a scene; its input, reconstruction, segmentations and every slot.

    A slot's picture is shown where its mask is, over a neutral checker, with its weight under it as a bar and a
    number. A colour is a slot, grey the one that owns most of the image's rim; a true segment has the colour of the
    slot that covers it best. Small images are enlarged by whole factors, so that a pixel stays a square.

    Args:
        scenes: At least one; sizes and numbers of slots may differ (the first sets the size of the tiles).
        path: A PNG, written in one step; its folder is made.

    Raises:
        ValueError: If there is no scene.
    """
    save(path, decomposition_png(scenes))


def curves_figure(curves: Curves, path: str | Path) -> None:
    """Save the learning curves, a panel each.

    Args:
        curves: Name to (step, value) points; without any, the figure says so.
        path: A PNG, written in one step; its folder is made.
    """
    save(path, curves_png(curves))


def decomposition_png(scenes: Sequence[SceneView]) -> bytes:
    """Draw the headline picture: the bytes that ``decomposition_figure`` saves."""
    if not scenes:
        raise ValueError("scenes: expected at least one, came none")
    tile_height, tile_width = _tile_size(*scenes[0].image.shape[:2])
    grid = _Grid(
        tile_height=tile_height,
        tile_width=tile_width,
        num_rows=len(scenes),
        num_slots=max(scene.num_slots for scene in scenes),
        has_truth=any(scene.true_mask is not None for scene in scenes),
    )
    canvas = np.full((grid.height, grid.width, 3), 255, dtype=np.uint8)
    figure = Figure(figsize=(grid.width / _DPI, grid.height / _DPI), dpi=_DPI, facecolor="white")
    for row, scene in enumerate(scenes):
        _paint_scene(canvas, grid, row, scene)
        _write_captions(figure, grid, row, scene)
    _write_headings(figure, grid)
    # In place of axes: every pixel of the canvas is a pixel of the file, so nothing is resampled.
    figure.figimage(canvas, origin="upper")
    return pictures.figure_png(figure)


def _tile_size(height: int, width: int) -> tuple[int, int]:
    factor = _TILE / max(height, width)
    if factor > 0.5:
        factor = max(1, round(factor))
    return max(1, round(height * factor)), max(1, round(width * factor))


@dataclass(frozen=True)
class _Grid:
    """The layout of the headline picture, in pixels from its upper left corner."""

    tile_height: int
    tile_width: int
    num_rows: int
    num_slots: int
    has_truth: bool
    margin: int = 24
    gap: int = 10
    group_gap: int = 34
    heading: int = 50
    caption: int = 50

    @property
    def num_wholes(self) -> int:
        return 4 if self.has_truth else 3

    @property
    def width(self) -> int:
        return self.left(self.num_wholes + self.num_slots - 1) + self.tile_width + self.margin

    @property
    def height(self) -> int:
        return self.top(self.num_rows - 1) + self.tile_height + self.caption + self.margin // 2

    def left(self, column: int) -> int:
        past_the_wholes = self.group_gap - self.gap if column >= self.num_wholes else 0
        return self.margin + column * (self.tile_width + self.gap) + past_the_wholes

    def top(self, row: int) -> int:
        return self.margin // 2 + self.heading + row * (self.tile_height + self.caption)


def _paint_scene(canvas: UInt8[np.ndarray, "..."], grid: _Grid, row: int, scene: SceneView) -> None:
    colours = pictures.scene_colours(scene.labels, scene.num_slots)
    wholes = [scene.image, scene.reconstruction, pictures.label_picture(scene.labels, colours)]
    if scene.true_mask is not None:
        true = pictures.labels_like(scene.true_mask, scene.labels, scene.num_slots)
        wholes.append(pictures.label_picture(true, colours))
    for column, picture in enumerate(wholes):
        _paint_tile(canvas, grid, row, column, picture)
    for slot, (picture, mask) in enumerate(zip(scene.slot_rgb, scene.masks, strict=True)):
        column = grid.num_wholes + slot
        _paint_tile(canvas, grid, row, column, pictures.cut_out(picture, mask))
        _paint_bar(canvas, grid, (row, column), float(scene.weights[slot]), colours[slot])


def _paint_tile(
    canvas: UInt8[np.ndarray, "..."], grid: _Grid, row: int, column: int, picture: UInt8[np.ndarray, "..."]
) -> None:
    tile = pictures.scaled(picture, grid.tile_height, grid.tile_width)
    if tile.shape[-1] == 4:
        tile = pictures.on_checker(tile, square=max(4, grid.tile_height // 16))
    top, left = grid.top(row), grid.left(column)
    bottom, right = top + grid.tile_height, left + grid.tile_width
    canvas[top - 1 : bottom + 1, left - 1 : right + 1] = pictures.rgb(pictures.LINE)
    canvas[top:bottom, left:right] = tile


def _paint_bar(
    canvas: UInt8[np.ndarray, "..."], grid: _Grid, cell: tuple[int, int], weight: float, colour: str
) -> None:
    top, left = grid.top(cell[0]) + grid.tile_height + 8, grid.left(cell[1])
    length = round(grid.tile_width * min(max(weight, 0.0), 1.0)) if math.isfinite(weight) else 0
    canvas[top : top + 5, left : left + grid.tile_width] = pictures.rgb("#eceef1")
    canvas[top : top + 5, left : left + length] = pictures.rgb(colour)


def _write_headings(figure: Figure, grid: _Grid) -> None:
    headings = ["input", "reconstruction", "segmentation", "true mask"][: grid.num_wholes]
    headings += [f"slot {slot + 1}" for slot in range(grid.num_slots)]
    for column, heading in enumerate(headings):
        _write(figure, grid, column, grid.top(0) - 26, heading, _HEADING)


def _write_captions(figure: Figure, grid: _Grid, row: int, scene: SceneView) -> None:
    below = grid.top(row) + grid.tile_height + 27
    if scene.foreground_ari is not None and math.isfinite(scene.foreground_ari):
        _write(figure, grid, 2, below, f"FG-ARI {scene.foreground_ari:.2f}", _CAPTION)
    for slot, weight in enumerate(scene.weights):
        text = f"{weight:.2f}" if math.isfinite(weight) else "\N{EN DASH}"
        _write(figure, grid, grid.num_wholes + slot, below, text, _CAPTION)


def _write(figure: Figure, grid: _Grid, column: int, middle: int, text: str, letters: _Letters) -> None:
    x, y = (grid.left(column) + grid.tile_width / 2) / grid.width, 1 - middle / grid.height
    figure.text(x, y, text, ha="center", va="center", fontsize=letters.size, color=letters.colour)
