"""The 2-D study of PSA (arXiv 2406.07141): every image is points of a few objects, each of one Gaussian type.

Image i of a split is a function of (options, seed, split, i) alone: images are drawn in blocks of 256, each from a
stream of its own; the types are those of the seed, the same in all splits.
"""

import math
from dataclasses import dataclass, fields
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from psa.data.description import DatasetInfo, Points, PointsDataset
from psa.data.options import require_integer
from psa.data.sprites import BLOCK, SPLIT_CODES
from psa.errors import ConfigError
from psa.progress import watched

NAME = "mixture-2d"
MAX_TYPES = 8  # of which a draw in the square is far enough apart once in some thousands
TYPES_STREAM = 3  # beside the splits' codes
MIXING_ANGLE, MIXING_SLOPE, MIXING_LAYERS = 0.8, 0.2, 2


@dataclass(frozen=True)
class Mixture2dOptions:
    """What the images are made of.

    Attributes:
        num_types: G, Gaussian types with one isotropic covariance, 1 to 8.
        num_objects: different types in an image, 1 to num_types.
        num_points: of an object, at least 1.
        separation: least distance between types' means, in deviations of an object, > 0.
        mixed: whether the points are seen through :func:`mix`.
    """

    num_types: int = 5
    num_objects: int = 3
    num_points: int = 128
    separation: float = 6.0
    mixed: bool = False

    def __post_init__(self) -> None:
        require_integer("num_types", self.num_types, 1, MAX_TYPES)
        require_integer("num_objects", self.num_objects, 1, self.num_types)
        require_integer("num_points", self.num_points, 1)
        number = isinstance(self.separation, int | float) and not isinstance(self.separation, bool)
        if not (number and math.isfinite(self.separation) and self.separation > 0):
            raise ConfigError(f"data.separation: expected a number above 0, got {self.separation!r}")
        if not isinstance(self.mixed, bool):
            raise ConfigError(f"data.mixed: expected true or false, got {self.mixed!r}")

    @property
    def side(self) -> float:
        """Of the square that the types' means are drawn in."""
        return 1.2 * self.separation * math.sqrt(self.num_types)


@dataclass(frozen=True)
class PlantedImages:
    """Images and the truth about them.

    Attributes:
        tokens: (M, N, 2), in deviations of an object; an image's objects one after the other, N / objects points each.
        labels: (M, N), the object of each token.
        loc: (G, 2), the types' means.
        which: (M, objects), the types in each image.
    """

    tokens: Float64[Tensor, "images tokens 2"]
    labels: Int64[Tensor, "images tokens"]
    loc: Float64[Tensor, "types 2"]
    which: Int64[Tensor, "images objects"]

    def __getitem__(self, part: slice) -> "PlantedImages":
        return PlantedImages(self.tokens[part], self.labels[part], self.loc, self.which[part])


def draw_types(options: Mixture2dOptions, generator: torch.Generator) -> Float64[Tensor, "types 2"]:
    """Types' means uniform in a square of 1.2 separations times sqrt(G) a side, drawn again until they are apart."""
    while True:
        loc = options.side * torch.rand(options.num_types, 2, generator=generator, dtype=torch.float64)
        if options.num_types == 1 or float(torch.pdist(loc).min()) >= options.separation:
            return loc


def draw_images(
    loc: Float64[Tensor, "types 2"], options: Mixture2dOptions, num_images: int, generator: torch.Generator
) -> PlantedImages:
    """Images of types with the means ``loc``; points as they are, never mixed."""
    order = torch.rand(num_images, options.num_types, generator=generator).argsort(-1)
    which = order[:, : options.num_objects]
    shape = (num_images, options.num_objects, options.num_points, 2)
    tokens = loc[which][:, :, None] + torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.arange(options.num_objects).repeat_interleave(options.num_points).expand(num_images, -1)
    return PlantedImages(tokens.flatten(1, 2), labels, loc, which)


def mix(tokens: Float[Tensor, "*batch 2"], side: float) -> Float[Tensor, "*batch 2"]:
    """A fixed invertible map of the plane that no affine map undoes: twice u -> LeakyReLU(u R) / 0.6.

    u is about the middle of the square of types, in units of side / sqrt(12), its standard deviation; R turns by 0.8
    radians; the LeakyReLU has slope 0.2. A decoder of affine maps and LeakyReLU can be this map.

    Args:
        tokens: (..., 2).
        side: Of the square.
    """
    cosine, sine = math.cos(MIXING_ANGLE), math.sin(MIXING_ANGLE)
    turn = tokens.new_tensor([[cosine, -sine], [sine, cosine]])
    unit = side / math.sqrt(12.0)
    u = (tokens - 0.5 * side) / unit
    for _ in range(MIXING_LAYERS):
        u = torch.nn.functional.leaky_relu(u @ turn, MIXING_SLOPE) * (2.0 / (1.0 + MIXING_SLOPE))
    return 0.5 * side + unit * u


class Mixture2d(PointsDataset):
    """Generated images of points, held in memory.

    Attributes:
        images: The images as drawn, before mixing, with the types.
        tokens: (M, N, 2) float32, the points as they are seen.
    """

    def __init__(self, options: Mixture2dOptions, split: str = "train", num_scenes: int = 1000, seed: int = 0) -> None:
        if split not in SPLIT_CODES:
            raise ConfigError(f"data.split: expected one of {', '.join(SPLIT_CODES)} for {NAME}, got {split!r}")
        require_integer("num_scenes", num_scenes, 1)
        require_integer("seed", seed, 0)
        self._source = f"{NAME}(seed={seed}, split={split})"
        self.info = DatasetInfo("points", NAME, None, (), options.num_objects)
        loc = draw_types(options, _stream(seed, TYPES_STREAM))
        blocks = [
            draw_images(loc, options, BLOCK, _stream(seed, SPLIT_CODES[split], block))
            for block in watched(range(-(-num_scenes // BLOCK)), f"making {NAME}, blocks of {BLOCK}")
        ]
        tokens, labels, which = (
            torch.cat([getattr(b, name) for b in blocks]) for name in ("tokens", "labels", "which")
        )
        self.images = PlantedImages(tokens, labels, loc, which)[:num_scenes]
        seen = self.images.tokens
        self.tokens = (mix(seen, options.side) if options.mixed else seen).float()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: SupportsIndex) -> Points:
        return Points(self.tokens[index].numpy(), self.images.labels[index].numpy())

    def source(self, index: SupportsIndex) -> str:
        """The generator's name with the image's number."""
        return f"{self._source}[{index}]"


OPTIONS = ("seed", "num_scenes", *(field.name for field in fields(Mixture2dOptions)))


def _stream(*words: int) -> torch.Generator:
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
