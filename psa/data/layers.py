"""Scenes of flat layers: stamps put down pixel by pixel, the last object on top, until each shows enough of itself."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from psa.data.options import require_share
from psa.errors import ConfigError

MAX_REDRAWS = 1000
HOPELESS = 100  # draws after which not one scene of a block was right
ALL_EVERY = 10  # a few objects may stand so that the others find no place

Drawn = Int64[np.ndarray, "scenes objects numbers"]
Cover = UInt8[np.ndarray, "scenes objects height width"]
Labels = UInt8[np.ndarray, "scenes height width"]
Present = Bool[np.ndarray, "scenes objects"]


class Stamps:
    """Small pictures of 0 and 1 that are put anywhere into a square frame; what falls outside is cut off.

    Args:
        stamps: (kinds, rows, columns), 0 or 1.
        size: side of the frame.
    """

    def __init__(self, stamps: UInt8[np.ndarray, "kinds rows columns"], size: int) -> None:
        kinds, rows, columns = stamps.shape
        self._shift = size - 1
        canvas = np.zeros((kinds, 2 * size - 1 + rows, 2 * size - 1 + columns), np.uint8)
        canvas[:, self._shift : self._shift + rows, self._shift : self._shift + columns] = stamps
        self._frames = sliding_window_view(canvas, (size, size), axis=(1, 2))

    def place(
        self,
        kind: Int64[np.ndarray, "*objects"],
        top: Int64[np.ndarray, "*objects"],
        left: Int64[np.ndarray, "*objects"],
    ) -> UInt8[np.ndarray, "*objects size size"]:
        """Frames that are 1 where the stamp of a kind is, its first pixel at (top, left), both from 0 to size - 1."""
        return self._frames[kind, self._shift - top, self._shift - left]


@dataclass(frozen=True)
class Bounds:
    """How much of the objects is seen: each shows at least ``least`` of its pixels, and one at most ``most`` of them.

    A scene of a single object cannot keep ``most``, and need not. The options are min_visible and max_visible.
    """

    least: float
    most: float

    def __post_init__(self) -> None:
        require_share("min_visible", self.least)
        if require_share("max_visible", self.most) < self.least:
            raise ConfigError(f"data.max_visible: expected at least data.min_visible, {self.least}, got {self.most}")


def stack(cover: Cover, present: Present) -> tuple[Labels, Float64[np.ndarray, "scenes objects"]]:
    """The label of each pixel, object e + 1 over those before it, and the share of its pixels that each object shows.

    Args:
        cover: 1 where an object would be seen if it were alone.
        present: Which objects there are; an absent one covers nothing, and shows 1 of it.
    """
    names = np.arange(1, cover.shape[1] + 1, dtype=np.uint8)
    named = cover * (names * present)[..., None, None]
    labels = named.max(axis=1)
    own = np.count_nonzero(named, axis=(2, 3))
    seen = np.count_nonzero(labels[:, None] == names[:, None, None], axis=(2, 3))
    return labels, np.where(present, seen / np.maximum(own, 1), 1.0)


def arrange(
    rng: np.random.Generator,
    drawn: Drawn,
    present: Present,
    redraw: Callable[[np.random.Generator, Drawn], Drawn],
    cover: Callable[[Drawn], Cover],
    bounds: Bounds,
) -> tuple[Drawn, Labels, Float64[np.ndarray, "scenes objects"]]:
    """Objects drawn again where they are out of bounds: those that show too little, or all where none shows too little.

    Args:
        rng: What ``redraw`` draws from.
        drawn: The numbers that say what and where each object is.
        present: Which objects there are.
        redraw: New numbers for objects, given the old.
        cover: The pixels of objects.
        bounds: What must hold of every scene; every object shows a pixel besides.

    Returns:
        The numbers, the labels and the shares that :func:`stack` gives.

    Raises:
        ConfigError: Not reached within ``MAX_REDRAWS`` draws.
    """
    drawn = drawn.copy()
    labels, shown = stack(cover(drawn), present)
    for attempt in range(1, MAX_REDRAWS + 1):
        moved = _out_of_bounds(shown, present, bounds)
        rows = np.flatnonzero(moved.any(axis=1))
        if not rows.size:
            return drawn, labels, shown
        if attempt == HOPELESS and rows.size == len(drawn):
            break
        again = (moved[rows] | (attempt % ALL_EVERY == 0))[..., None]
        drawn[rows] = np.where(again, redraw(rng, drawn[rows]), drawn[rows])
        labels[rows], shown[rows] = stack(cover(drawn[rows]), present[rows])
    raise out_of_reach(bounds, present.shape[1])


def out_of_reach(bounds: Bounds, max_objects: int) -> ConfigError:
    """What to raise where scenes cannot be brought within bounds."""
    return ConfigError(
        f"data.max_objects: expected scenes whose objects show at least {bounds.least:g} and one at most "
        f"{bounds.most:g} of its pixels, found none for up to {max_objects} objects (data.min_visible, "
        "data.max_visible)"
    )


def _out_of_bounds(shown: Float64[np.ndarray, "scenes objects"], present: Present, bounds: Bounds) -> Present:
    hidden = (shown < bounds.least) | (shown == 0)
    open_scenes = (shown.min(axis=1) > bounds.most) & (present.sum(axis=1) > 1)
    return hidden | (present & open_scenes[:, None])
