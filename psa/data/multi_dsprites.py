"""Multi-dSprites: squares, ellipses and hearts that occlude one another on a plain ground, in three published variants.

As published (github.com/google-deepmind/multi_object_datasets): 64 x 64 pixels; binarized, 2 or 3 white shapes on
black; coloured on grayscale, 2 to 5 shapes of random HSV colours on a random gray; coloured on coloured, 1 to 4 shapes
and a ground of random RGB colours. Ours where it says nothing: uniform draws; of HSV any hue, saturation and value from
0.5 to 1; every object shows a pixel. The outlines are our own, or those of the dSprites file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from psa.data.colours import camouflaged, from_hsv
from psa.data.description import DatasetInfo
from psa.data.dsprites_file import read_shapes
from psa.data.dsprites_shapes import LATENTS, ProceduralShapes, Shapes
from psa.data.generated import (
    COMMON_FACTORS,
    Block,
    GeneratedScenes,
    draw_present,
    padded,
    paint,
)
from psa.data.layers import Bounds, arrange
from psa.data.options import require_choice, require_integer, require_share
from psa.data.sprites import BLOCK
from psa.errors import ConfigError

NAME = "multi-dsprites"
VARIANTS = {"binarized": (2, 3), "colored_on_grayscale": (2, 5), "colored_on_colored": (1, 4)}
HUES = ("all", "seen", "unseen")
FACTORS = {
    "shape": "1 square, 2 ellipse, 3 heart",
    "scale": "of 1, the largest, in [0.5, 1]",
    "orientation": "radians, in [0, 2 pi]",
    "x": "0 the leftmost place of 32, 1 the rightmost",
    "y": "0 the topmost place of 32, 1 the lowest",
    **COMMON_FACTORS,
}
LEAST_SATURATION = LEAST_VALUE = 0.5


@dataclass(frozen=True)
class MultiDspritesOptions:
    """What the scenes look like; the defaults are the published ones, most other values are out of that distribution.

    Attributes:
        variant: binarized, colored_on_grayscale or colored_on_colored.
        min_objects: fewest objects, at least 1; None for the variant's.
        max_objects: most objects, at most 16; None for the variant's.
        hues: of objects: all; unseen, from blue to red by way of magenta, where green is the least of the three
            channels; seen, all but those. Of binarized scenes all.
        min_visible: least share of its own pixels that every object shows, in [0, 1].
        max_visible: where there are two objects or more, the most that the one that shows least shows, in [0, 1].
        camouflage: share of the way from an object's colour to the background's, in [0, 1].
        shapes: the path of the dSprites file; None for shapes drawn by formula.
    """

    variant: str = "colored_on_grayscale"
    min_objects: int | None = None
    max_objects: int | None = None
    hues: str = "all"
    min_visible: float = 0.0
    max_visible: float = 1.0
    camouflage: float = 0.0
    shapes: str | Path | None = None

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, VARIANTS)
        require_integer("max_objects", self.counts[1], 1, 16)
        require_integer("min_objects", self.counts[0], 1, self.counts[1])
        require_choice("hues", self.hues, HUES)
        if self.variant == "binarized" and self.hues != "all":
            raise ConfigError(f"data.hues: expected all for binarized scenes, which are white, got {self.hues!r}")
        require_share("camouflage", self.camouflage)
        Bounds(self.min_visible, self.max_visible)
        if not isinstance(self.shapes, str | Path | None):
            raise ConfigError(f"data.shapes: expected the path of the dSprites file, got {self.shapes!r}")

    @property
    def counts(self) -> tuple[int, int]:
        """The fewest and the most objects of a scene."""
        fewest, most = VARIANTS[self.variant]
        return (
            fewest if self.min_objects is None else self.min_objects,
            most if self.max_objects is None else self.max_objects,
        )


class MultiDsprites(GeneratedScenes):
    """Generated scenes, held in memory; factors are padded with zeros to max_objects.

    Factors: shape (1 square, 2 ellipse, 3 heart), scale in [0.5, 1], orientation in radians in [0, 2 pi], x, y (y down)
    in [0, 1] from the first to the last of 32 places, color in [0, 1], shown (the share of its pixels that is seen),
    visibility 0 or 1, num_objects. Object e has mask label e + 1; a later one hides an earlier one.
    """

    def __init__(self, options: MultiDspritesOptions | None = None, split: str = "train", **stream: Any) -> None:
        chosen = options or MultiDspritesOptions()
        shapes = ProceduralShapes() if chosen.shapes is None else read_shapes(Path(chosen.shapes))
        described = DatasetInfo("scenes", NAME, None, (0,), chosen.counts[1] + 1, FACTORS)
        super().__init__(lambda rng: _draw_block(rng, chosen, shapes), described, split, **stream)


def _draw_block(rng: np.random.Generator, options: MultiDspritesOptions, shapes: Shapes) -> Block:
    present = draw_present(rng, *options.counts)
    ground = _draw_ground(rng, options.variant)
    color = camouflaged(_draw_colours(rng, options, present.shape), ground, options.camouflage)
    drawn, masks, shown = arrange(
        rng,
        rng.integers(0, len(shapes), (*present.shape, 1)),
        present,
        lambda rng, old: rng.integers(0, len(shapes), old.shape),
        lambda rows: shapes.cover(rows[..., 0]),
        Bounds(options.min_visible, options.max_visible),
    )
    latents = dict(zip(LATENTS, np.moveaxis(shapes.latents(drawn[..., 0]).astype(np.float32), -1, 0), strict=True))
    factors = {
        **latents,
        "shape": latents["shape"].astype(np.int64),
        "color": (color / 255).astype(np.float32),
        "shown": shown.astype(np.float32),
    }
    return Block(paint(masks, color, ground), masks, padded(present, factors))


def _draw_ground(rng: np.random.Generator, variant: str) -> UInt8[np.ndarray, "scenes 3"]:
    if variant == "binarized":
        return np.zeros((BLOCK, 3), np.uint8)
    if variant == "colored_on_grayscale":
        return np.repeat(rng.integers(0, 256, (BLOCK, 1), np.uint8), 3, axis=1)
    return rng.integers(0, 256, (BLOCK, 3), np.uint8)


def _draw_colours(
    rng: np.random.Generator, options: MultiDspritesOptions, shape: tuple[int, ...]
) -> UInt8[np.ndarray, "scenes objects 3"]:
    if options.variant == "binarized":
        return np.full((*shape, 3), 255, np.uint8)
    color = np.zeros((*shape, 3), np.uint8)
    again = np.ones(shape, bool)
    while again.any():
        color[again] = _draw_any(rng, options.variant, int(again.sum()))
        is_unseen = color[..., 1] < np.minimum(color[..., 0], color[..., 2])
        again = np.zeros(shape, bool) if options.hues == "all" else is_unseen != (options.hues == "unseen")
    return color


def _draw_any(rng: np.random.Generator, variant: str, count: int) -> UInt8[np.ndarray, "objects 3"]:
    if variant == "colored_on_colored":
        return rng.integers(0, 256, (count, 3), np.uint8)
    return from_hsv(rng.uniform((0, LEAST_SATURATION, LEAST_VALUE), (1, 1, 1), (count, 3)))
