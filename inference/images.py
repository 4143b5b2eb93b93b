"""The images of a run in memory, and which of them each training step sees."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int16, Int64, UInt8
from torch import Tensor

from psa.data import SceneDataset, as_float, collate


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, with what is known of them.

    Attributes:
        images: (M, H, W, 3) uint8.
        masks: (M, H, W) or None.
        background: Mask labels that are no objects.
        label_kind: What mask labels stand for, ``instance`` or ``class``.
        classes: (M, H, W), the classes' labels, where the data set has them; background as for masks.
    """

    images: UInt8[Tensor, "images height width 3"]
    masks: Int64[Tensor, "images height width"] | None
    background: tuple[int, ...]
    label_kind: str = "instance"
    classes: Int16[Tensor, "images height width"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.images.shape[1], self.images.shape[2]

    def batch(self, index: Tensor | slice) -> Float[Tensor, "batch 3 height width"]:
        """Some images as float in [0, 1]."""
        return as_float(self.images[index])


def read_images(dataset: SceneDataset, limit: int | None = None) -> ImageSet:
    """The first images of a data set, decoded."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    batch = collate(dataset.__getitems__(range(count)))
    info = dataset.info
    classes = None if batch.masks is None or info.label_kind != "class" else batch.masks.to(torch.int16)
    return ImageSet(batch.images, batch.masks, info.background_labels, info.label_kind, classes)


class Batches:
    """Which images each step sees: a function of the seed and the step alone, so that resuming needs no state."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images, self.seed = num_images, seed
        self.batch_size = min(batch_size, num_images)
        self.per_epoch = num_images // self.batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Int64[Tensor, " batch"]:
        """Indices of a step's images; each epoch is a permutation of its own."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.num_images, generator=generator)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        index: (B,), the place of each in the data set.
        epoch: How often the data set was read before.
    """

    images: Float[Tensor, "batch 3 height width"]
    index: Int64[Tensor, " batch"]
    epoch: int


class StepImages(Protocol):
    """Where the images of a step come from: a function of the step, so that any step can be asked for at any time."""

    def batch(self, step: int) -> Batch:
        """The images of a step, from 0."""


@dataclass(frozen=True)
class ImagesInMemory:
    """The images of each step, from a set in memory."""

    images: ImageSet
    batches: Batches

    def batch(self, step: int) -> Batch:
        """The images of a step, from 0."""
        index = self.batches(step)
        return Batch(self.images.batch(index), index, step // self.batches.per_epoch)
