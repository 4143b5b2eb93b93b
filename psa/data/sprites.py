"""Sprite scenes: flat shapes of six colours that collide and occlude one another, made from a seed.

Scene i of a split is a function of (options, seed, split, i) alone: scenes are drawn in blocks of 256, each from a
stream of its own. Colours are drawn independently, so grouping pixels by colour does not recover the objects. Scenes of
continuous hues are for factors to be told from: there every object has a colour of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from psa.data.colours import camouflaged
from psa.data.description import DatasetInfo, Scene, SceneDataset
from psa.data.layers import Bounds, out_of_reach
from psa.data.options import require_choice, require_integer, require_share
from psa.data.sprite_raster import SHAPES, Objects, rasterise
from psa.errors import ConfigError
from psa.progress import watched

# hues in turns
PALETTE = {"red": 0 / 6, "green": 2 / 6, "blue": 4 / 6, "yellow": 1 / 6, "magenta": 5 / 6, "cyan": 3 / 6}
HUES: Mapping[str, Sequence[float] | None] = {  # None: any
    "palette": tuple(PALETTE.values()),
    "continuous": None,
    "unseen": tuple(hue + 1 / 12 for hue in PALETTE.values()),
}
BACKGROUNDS = ("black", "gray", "colour")
SPLIT_CODES = {"train": 0, "val": 1, "test": 2}
RADII = (0.11, 0.19)
MIN_CONTRAST = 0.35
BLOCK = 256
# Enough that four objects always end up seen whole.
MAX_REDRAWS = 200
MAX_HIDING_REDRAWS = 2000
ALL_EVERY = 10


@dataclass(frozen=True)
class SpriteOptions:
    """What the scenes look like.

    Attributes:
        size: side of the square image in pixels, 8 to 256.
        min_objects: fewest objects in a scene, at least 1.
        max_objects: most objects in a scene, at most 16.
        background: black, one gray level a scene, or one colour a scene that stands out from its objects'.
        min_visible: least share of its own pixels that an object shows, in [0, 1].
        hues: palette, six that collide; continuous, uniform over the colour circle; or unseen, the six half way
            between those of the palette.
        max_visible: where there are two objects or more, the most that the one that shows least shows, in [0, 1].
        camouflage: share of the way from an object's colour to the background's, in [0, 1].
    """

    size: int = 32
    min_objects: int = 1
    max_objects: int = 4
    background: str = "black"
    min_visible: float = 0.95
    hues: str = "palette"
    max_visible: float = 1.0
    camouflage: float = 0.0

    def __post_init__(self) -> None:
        require_integer("size", self.size, 8, 256)
        require_integer("max_objects", self.max_objects, 1, 16)
        require_integer("min_objects", self.min_objects, 1, self.max_objects)
        require_choice("background", self.background, BACKGROUNDS)
        Bounds(self.min_visible, self.max_visible)
        require_choice("hues", self.hues, HUES)
        require_share("camouflage", self.camouflage)


class Sprites(SceneDataset):
    """Generated scenes, held in memory; factors are padded with zeros to max_objects.

    Factors: shape (1 square, 2 circle, 3 triangle), color in [0, 1], its hue in turns in [0, 1) (0 red, 1/3 green),
    centre x, y (y down) and radius size as fractions of the side, depth (1 furthest; a higher one occludes), visibility
    0 or 1, num_objects. Object e has mask label e+1.
    """

    def __init__(self, options: SpriteOptions, split: str = "train", num_scenes: int = 1000, seed: int = 0) -> None:
        if split not in SPLIT_CODES:
            raise ConfigError(f"data.split: expected one of {', '.join(SPLIT_CODES)} for sprites, got {split!r}")
        require_integer("num_scenes", num_scenes, 1)
        require_integer("seed", seed, 0)
        self._source = f"sprites(seed={seed}, split={split})"
        self.info = DatasetInfo("scenes", "sprites", (options.size, options.size), (0,), options.max_objects + 1)
        numbers = watched(range(-(-num_scenes // BLOCK)), f"making sprites, blocks of {BLOCK}")
        seeds = ([seed, SPLIT_CODES[split], block] for block in numbers)
        blocks = [_draw_block(np.random.default_rng(np.random.SeedSequence(words)), options) for words in seeds]
        images, masks, factors = zip(*blocks, strict=True)
        self.images = np.concatenate(images)[:num_scenes]
        self.masks = np.concatenate(masks)[:num_scenes]
        self.factors = {name: np.concatenate([f[name] for f in factors])[:num_scenes] for name in factors[0]}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        factors = {name: values[index, ...] for name, values in self.factors.items()}
        return Scene(self.images[index], self.masks[index].astype(np.int64), factors)

    def source(self, index: SupportsIndex) -> str:
        """The generator's name with the scene's number."""
        return f"{self._source}[{index}]"


def _draw_objects(rng: np.random.Generator, options: SpriteOptions) -> Objects:
    shape = (BLOCK, options.max_objects)
    count = rng.integers(options.min_objects, options.max_objects + 1, (BLOCK, 1))
    present = np.arange(options.max_objects) < count
    rank = (rng.random(shape) + ~present).argsort(axis=1).argsort(axis=1) + 1
    radius = (rng.uniform(*RADII, shape) * present).astype(np.float32)
    return Objects(
        shape=rng.integers(1, len(SHAPES) + 1, shape) * present,
        hue=_draw_hues(rng, options.hues, shape),
        depth=rank * present,
        radius=radius,
        centre=_draw_centres(rng, radius),
    )


def _draw_hues(rng: np.random.Generator, hues: str, shape: tuple[int, int]) -> Float64[np.ndarray, "scenes objects"]:
    values = HUES[hues]
    if values is not None:
        return np.array(values)[rng.integers(len(values), size=shape)]
    return rng.random(shape, dtype=np.float32).astype(np.float64)  # float32, else a factor could round to 1


def _hue_colour(hue: Float64[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """The saturated colour of a hue in turns: 0 red, 1/3 green, 2/3 blue."""
    from_channel = (6 * hue[..., None] - np.array([0, 2, 4]) + 3) % 6 - 3  # in sixths of a turn, -3 to 3
    return np.round(255 * np.clip(2 - np.abs(from_channel), 0, 1)).astype(np.uint8)


def _draw_centres(
    rng: np.random.Generator, radius: Float32[np.ndarray, "scenes objects"]
) -> Float32[np.ndarray, "scenes objects 2"]:
    """Uniform over the centres that keep an object inside the frame."""
    margin = radius[..., None].astype(np.float64)
    centre = margin + (1 - 2 * margin) * rng.random((*radius.shape, 2))
    return (centre * (margin > 0)).astype(np.float32)


def _arrange(
    rng: np.random.Generator, objects: Objects, size: int, bounds: Bounds
) -> tuple[Objects, UInt8[np.ndarray, "scenes size size"]]:
    """Moves the objects that are hidden too much or too little, now and then all of their scene, in bounded rounds.

    Raises:
        ConfigError: Scenes are left in which no object is hidden as much as it should be.
    """
    mask, hidden = rasterise(objects, size, bounds)
    for redraw in range(1, (MAX_REDRAWS if bounds.most == 1 else MAX_HIDING_REDRAWS) + 1):
        rows = np.flatnonzero(hidden.any(axis=1))
        if not rows.size:
            break
        moved = hidden[rows] | (redraw % ALL_EVERY == 0)
        centre = objects.centre.copy()
        centre[rows] = np.where(moved[..., None], _draw_centres(rng, objects.radius[rows]), centre[rows])
        objects = replace(objects, centre=centre)
        if bounds.most < 1 and redraw % ALL_EVERY == 0:  # what lies below may be too large to be hidden
            objects = replace(objects, depth=objects.depth.copy())
            objects.depth[rows] = _upside_down(objects.depth[rows])
        mask[rows], hidden[rows] = rasterise(objects.take(rows), size, bounds)
    if bounds.most < 1 and hidden.any():
        raise out_of_reach(bounds, objects.depth.shape[1])
    return objects, mask


def _upside_down(depth: Int64[np.ndarray, "scenes objects"]) -> Int64[np.ndarray, "scenes objects"]:
    """The first behind the others comes last; absent objects stay 0."""
    present = depth > 0
    return np.where(present, present.sum(axis=1, keepdims=True) + 1 - depth, 0)


def _draw_backgrounds(
    rng: np.random.Generator, background: str, color: UInt8[np.ndarray, "scenes objects 3"]
) -> UInt8[np.ndarray, "scenes 3"]:
    """One colour a scene; gray in [0.2, 0.6]; ``colour`` at least MIN_CONTRAST in RGB distance from its objects'."""
    scenes = len(color)
    if background == "black":
        return np.zeros((scenes, 3), np.uint8)
    if background == "gray":
        return np.repeat(rng.integers(51, 154, (scenes, 1), np.uint8), 3, axis=1)
    drawn = np.zeros((scenes, 3), np.uint8)
    rows = np.arange(scenes)
    while rows.size:
        drawn[rows] = rng.integers(0, 256, (rows.size, 3), np.uint8)
        apart = np.linalg.norm(color[rows] / 255 - drawn[rows, None] / 255, axis=-1)
        rows = rows[(apart < MIN_CONTRAST).any(axis=1)]
    return drawn


def _draw_block(
    rng: np.random.Generator, options: SpriteOptions
) -> tuple[UInt8[np.ndarray, "scenes size size 3"], UInt8[np.ndarray, "scenes size size"], dict[str, np.ndarray]]:
    objects, mask = _arrange(
        rng, _draw_objects(rng, options), options.size, Bounds(options.min_visible, options.max_visible)
    )
    present = objects.depth > 0
    color = _hue_colour(objects.hue)
    # An absent object has its neighbour's colour here, the first object's, so that it bars no other background.
    color = np.where(present[..., None], color, color[:, :1])
    ground = _draw_backgrounds(rng, options.background, color)
    color = camouflaged(color, ground, options.camouflage)
    paint = np.concatenate([ground[:, None], color], axis=1)
    factors = {
        "shape": objects.shape,
        "color": (color / 255).astype(np.float32) * present[..., None].astype(np.float32),
        "hue": (objects.hue * present).astype(np.float32),
        "x": objects.centre[..., 0],
        "y": objects.centre[..., 1],
        "size": objects.radius,
        "depth": objects.depth,
        "visibility": present.astype(np.int64),
        "num_objects": present.sum(axis=1),
    }
    return paint[np.arange(BLOCK)[:, None, None], mask], mask, factors
