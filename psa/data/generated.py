"""What generators of scenes share: streams of blocks by seed and split, held in memory, prepared as files are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from psa.data.description import DatasetInfo, Scene, SceneDataset
from psa.data.options import require_integer
from psa.data.prepare import Preparation
from psa.data.sprites import BLOCK, SPLIT_CODES
from psa.errors import ConfigError
from psa.progress import watched


@dataclass(frozen=True)
class Block:
    """Scenes of one stream: images, masks with object e as label e + 1, and factors by name, scenes first."""

    images: UInt8[np.ndarray, "scenes height width 3"]
    masks: UInt8[np.ndarray, "scenes height width"]
    factors: Mapping[str, np.ndarray]


# What the factors of every generator here are, beside its own.
COMMON_FACTORS = {
    "color": "RGB in [0, 1]",
    "shown": "share of its pixels that is seen, in [0, 1]",
    "visibility": "1 where there is an object, else 0",
    "num_objects": "how many objects, of the scene",
}


class GeneratedScenes(SceneDataset):
    """Scenes of a generator: scene i is a function of (its options, seed, split, i) alone.

    Args:
        draw: BLOCK scenes from a stream.
        described: The generator; the size is that of what it draws.
        split: train, val or test: different streams.
        num_scenes: How many, at least 1.
        seed: Of the streams, at least 0.
        preparation: What is done to each image and mask.
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator], Block],
        described: DatasetInfo,
        split: str = "train",
        num_scenes: int = 1000,
        seed: int = 0,
        preparation: Preparation | None = None,
    ) -> None:
        if split not in SPLIT_CODES:
            expected = f"one of {', '.join(SPLIT_CODES)} for {described.name}"
            raise ConfigError(f"data.split: expected {expected}, got {split!r}")
        require_integer("num_scenes", num_scenes, 1)
        require_integer("seed", seed, 0)
        self._source = f"{described.name}(seed={seed}, split={split})"
        self._preparation = preparation or Preparation()
        numbers = watched(range(-(-num_scenes // BLOCK)), f"making {described.name}, blocks of {BLOCK}")
        seeds = ([seed, SPLIT_CODES[split], block] for block in numbers)
        blocks = [draw(np.random.default_rng(np.random.SeedSequence(words))) for words in seeds]
        self.images = np.concatenate([block.images for block in blocks])[:num_scenes]
        self.masks = np.concatenate([block.masks for block in blocks])[:num_scenes]
        names = blocks[0].factors
        self.factors = {n: np.concatenate([block.factors[n] for block in blocks])[:num_scenes] for n in names}
        self.info = replace(described, size=self._preparation.result_size(*self.images.shape[1:3]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        image, mask = self.images[index], self.masks[index].astype(np.int64)
        factors = {name: values[index, ...] for name, values in self.factors.items()}
        return Scene(self._preparation.image(image), self._preparation.mask(mask), factors)

    def source(self, index: SupportsIndex) -> str:
        """The generator's name with the scene's number."""
        return f"{self._source}[{index}]"


def draw_present(rng: np.random.Generator, fewest: int, most: int) -> Bool[np.ndarray, "scenes objects"]:
    """Which of ``most`` objects are in each scene of a block: the first n, n uniform from ``fewest`` to ``most``."""
    return np.arange(most) < rng.integers(fewest, most + 1, (BLOCK, 1))


def paint(
    masks: UInt8[np.ndarray, "scenes height width"],
    colour: UInt8[np.ndarray, "scenes objects 3"],
    ground: UInt8[np.ndarray, "scenes 3"],
) -> UInt8[np.ndarray, "scenes height width 3"]:
    """Images: label 0 in the background's colour, label e + 1 in object e's."""
    colours = np.concatenate([ground[:, None], colour], axis=1)
    return colours[np.arange(len(masks), dtype=np.int64)[:, None, None], masks]


def padded(present: Bool[np.ndarray, "scenes objects"], factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Factors (scenes, objects, ...) with zeros for absent objects, and visibility (0 or 1) and num_objects."""
    kept = {
        name: values * present.reshape(present.shape + (1,) * (values.ndim - 2)).astype(values.dtype)
        for name, values in factors.items()
    }
    counts: Int64[np.ndarray, " scenes"] = present.sum(axis=1)
    return {**kept, "visibility": present.astype(np.int64), "num_objects": counts}
