"""Single shapes as dSprites lists them: a row for each combination of shape, scale, orientation, x and y.

Source of the values and of their order: github.com/google-deepmind/dsprites-dataset. The outlines there are not given;
ours are of about the same area: at scale 1 a square of 22 pixels a side, an ellipse of half axes 15 and 9, and a heart.
"""

from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from psa.data.layers import Stamps

SHAPES = ("square", "ellipse", "heart")
LATENTS = ("shape", "scale", "orientation", "x", "y")
SCALES = np.linspace(0.5, 1.0, 6)
ORIENTATIONS = np.linspace(0.0, 2 * np.pi, 40)  # as published: the first and the last are the same
PLACES = np.linspace(0.0, 1.0, 32)
COUNTS = (len(SHAPES), len(SCALES), len(ORIENTATIONS), len(PLACES), len(PLACES))
SIZE = 64
REACH = (
    16  # pixels from a stamp's middle pixel to its edge, more than any shape's radius; x = 0 is that far from the edge
)
HALF_SIDE, HALF_AXES, HEART = 11.0, (15.0, 9.0), 11.0
HEART_MIDDLE = 0.2935  # of the curve: its centre of mass, above the origin


@runtime_checkable
class Shapes(Protocol):
    """White shapes on black, one a row."""

    def __len__(self) -> int: ...

    def latents(self, rows: Int64[np.ndarray, "*rows"]) -> Float64[np.ndarray, "*rows 5"]:
        """Of each row LATENTS: shape 1 to 3, scale in [0.5, 1], orientation in radians, x and y in [0, 1]."""

    def cover(self, rows: Int64[np.ndarray, "*rows"]) -> UInt8[np.ndarray, "*rows height width"]:
        """Of each row the pixels, 1 where the shape is."""


class ProceduralShapes:
    """All 737,280 combinations, drawn by formula; the middle is 16.5 + 31 x pixels from the left, 16.5 + 31 y down."""

    def __len__(self) -> int:
        return int(np.prod(COUNTS))

    def latents(self, rows: Int64[np.ndarray, "*rows"]) -> Float64[np.ndarray, "*rows 5"]:
        """See :class:`Shapes`."""
        shape, scale, orientation, x, y = np.unravel_index(rows, COUNTS)
        return np.stack([shape + 1.0, SCALES[scale], ORIENTATIONS[orientation], PLACES[x], PLACES[y]], axis=-1)

    def cover(self, rows: Int64[np.ndarray, "*rows"]) -> UInt8[np.ndarray, "*rows height width"]:
        """See :class:`Shapes`."""
        kind, place = np.divmod(rows, len(PLACES) ** 2)
        left, top = np.divmod(place, len(PLACES))
        return _stamps().place(kind, top, left)


@cache
def _stamps() -> Stamps:
    """A stamp for each shape, scale and orientation, in the rows' order."""
    outlines = [
        _inside(shape, scale, orientation) for shape in SHAPES for scale in SCALES for orientation in ORIENTATIONS
    ]
    return Stamps(np.stack(outlines).astype(np.uint8), SIZE)


def _inside(shape: str, scale: float, orientation: float) -> np.ndarray:
    """Which pixels of a square of 2 REACH + 1 have their middle in a shape turned by an angle about its middle."""
    offsets = np.arange(-REACH, REACH + 1) / scale
    down, across = np.meshgrid(offsets, offsets, indexing="ij")
    cosine, sine = np.cos(orientation), np.sin(orientation)
    x, y = cosine * across + sine * down, cosine * down - sine * across
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= HALF_SIDE
    if shape == "ellipse":
        return (x / HALF_AXES[0]) ** 2 + (y / HALF_AXES[1]) ** 2 <= 1
    x, up = x / HEART, HEART_MIDDLE - y / HEART
    return (x**2 + up**2 - 1) ** 3 <= x**2 * up**3  # mathworld.wolfram.com/HeartCurve.html
