"""Tetrominoes: three pieces of four squares that do not overlap, on black, after DeepMind's data set of that name.

As published (github.com/google-deepmind/multi_object_datasets): 35 x 35 pixels, three pieces a scene, each of one of
six colours. Ours where it says nothing: squares of 5 pixels a side, whole pixels as positions, uniform draws. There are
19 ways to lay four squares edge to edge when turned and mirrored ones count apart, and all are used; the description
there speaks of 17, and does not say which.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int64

from psa.data.colours import camouflaged, from_hsv
from psa.data.description import DatasetInfo
from psa.data.generated import (
    COMMON_FACTORS,
    Block,
    GeneratedScenes,
    draw_present,
    padded,
    paint,
)
from psa.data.layers import Bounds, Cover, Drawn, Stamps, arrange
from psa.data.options import require_choice, require_integer, require_share
from psa.data.sprites import BLOCK, PALETTE

NAME = "tetrominoes"
SIZE = 35
CELL = 5
SIDE = 4  # squares of the longest piece
# One of each set that turning by quarters makes into each other: I, O, T, S, Z, J, L.
PIECES = ("####", "##/##", "###/.#.", ".##/##.", "##./.##", "#../###", "..#/###")
HUES = {"palette": sorted(PALETTE.values()), "unseen": [hue + 1 / 12 for hue in sorted(PALETTE.values())]}
FACTORS = {
    "shape": "1 to 19, the row of orientations() plus 1",
    "x": "middle of the bounding box from the left, as a fraction of the side",
    "y": "middle of the bounding box from the top, as a fraction of the side",
    **COMMON_FACTORS,
}
BLACK = np.zeros((BLOCK, 3), np.uint8)


@dataclass(frozen=True)
class TetrominoOptions:
    """What the scenes look like; the defaults are the published ones, every other value is out of that distribution.

    Attributes:
        min_objects: fewest pieces in a scene, at least 1.
        max_objects: most pieces, at most 6.
        hues: palette, red, yellow, green, cyan, blue and magenta; or unseen, the six half way between them.
        min_visible: least share of its own pixels that every piece shows, in [0, 1]; 1 is without overlap.
        max_visible: where there are two pieces or more, the most that the one that shows least shows, in [0, 1].
        camouflage: share of the way from a piece's colour to the background's, in [0, 1].
    """

    min_objects: int = 3
    max_objects: int = 3
    hues: str = "palette"
    min_visible: float = 1.0
    max_visible: float = 1.0
    camouflage: float = 0.0

    def __post_init__(self) -> None:
        require_integer("max_objects", self.max_objects, 1, 6)
        require_integer("min_objects", self.min_objects, 1, self.max_objects)
        require_choice("hues", self.hues, HUES)
        require_share("camouflage", self.camouflage)
        Bounds(self.min_visible, self.max_visible)


class Tetrominoes(GeneratedScenes):
    """Generated scenes, held in memory; factors are padded with zeros to max_objects.

    Factors: shape (1 to 19, the row of :func:`orientations` plus 1), color in [0, 1], x, y the middle of the piece's
    bounding box as fractions of the side (y down), shown (the share of its pixels that is seen), visibility 0 or 1,
    num_objects. Object e has mask label e + 1; a later one hides an earlier one where they overlap.
    """

    def __init__(self, options: TetrominoOptions | None = None, split: str = "train", **stream: Any) -> None:
        chosen = options or TetrominoOptions()
        described = DatasetInfo("scenes", NAME, (SIZE, SIZE), (0,), chosen.max_objects + 1, FACTORS)
        super().__init__(lambda rng: _draw_block(rng, chosen), described, split, **stream)


@cache
def orientations() -> Int64[np.ndarray, "shapes rows columns"]:
    """The 19 pieces, 1 where a square is, pushed into the first row and column of 4 x 4."""
    found = {}
    for piece in PIECES:
        cells = np.array([[mark == "#" for mark in row] for row in piece.split("/")], np.int64)
        for turn in range(4):
            turned = np.rot90(cells, turn)
            frame = np.zeros((SIDE, SIDE), np.int64)
            frame[: turned.shape[0], : turned.shape[1]] = turned
            found[frame.tobytes()] = frame
    return np.stack(list(found.values()))


@cache
def _stamps() -> Stamps:
    return Stamps(orientations().repeat(CELL, 1).repeat(CELL, 2).astype(np.uint8), SIZE)


def _extents(shape: Int64[np.ndarray, "*objects"]) -> Int64[np.ndarray, "*objects 2"]:
    """(height, width) in pixels of pieces by their row of orientations."""
    pieces = orientations()
    extents = np.stack([pieces.any(axis=2).sum(axis=1), pieces.any(axis=1).sum(axis=1)], axis=-1)
    return CELL * extents[shape]


def _placed(rng: np.random.Generator, drawn: Drawn) -> Drawn:
    """The same pieces, (shape, top, left) each, at new places inside the frame."""
    place = rng.integers(0, SIZE + 1 - _extents(drawn[..., 0]))
    return np.concatenate([drawn[..., :1], place], axis=-1)


def _cover(drawn: Drawn) -> Cover:
    return _stamps().place(drawn[..., 0], drawn[..., 1], drawn[..., 2])


def _draw_block(rng: np.random.Generator, options: TetrominoOptions) -> Block:
    present = draw_present(rng, options.min_objects, options.max_objects)
    shape = rng.integers(0, len(orientations()), (*present.shape, 1))
    hue = np.array(HUES[options.hues])[rng.integers(0, len(HUES[options.hues]), present.shape)]
    color = from_hsv(np.stack([hue, np.ones_like(hue), np.ones_like(hue)], axis=-1))
    color = camouflaged(color, BLACK, options.camouflage)
    drawn = _placed(rng, np.concatenate([shape, shape, shape], axis=-1))
    bounds = Bounds(options.min_visible, options.max_visible)
    drawn, masks, shown = arrange(rng, drawn, present, _placed, _cover, bounds)
    middle = (drawn[..., 1:] + _extents(drawn[..., 0]) / 2) / SIZE
    factors = {
        "shape": drawn[..., 0] + 1,
        "color": (color / 255).astype(np.float32),
        "x": middle[..., 1].astype(np.float32),
        "y": middle[..., 0].astype(np.float32),
        "shown": shown.astype(np.float32),
    }
    return Block(paint(masks, color, BLACK), masks, padded(present, factors))
