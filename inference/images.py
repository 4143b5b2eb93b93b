"""The images of a run, in memory or read when they are needed, and which of them each training step sees."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float, Int16, Int64, UInt8
from torch import Tensor

from psa.data import Indices, SceneBatch, SceneDataset, as_float, streamed
from psa.progress import long_work

READ_AT_ONCE = 64
MASK_BYTES = 8  # of a pixel, int64
TENSORS = ("images", "masks", "classes")  # of an ImageSet


class Images(ABC):
    """Images of one size, in memory or not, with what is known of them.

    Attributes:
        background: Mask labels that are no objects.
        label_kind: What mask labels stand for, ``instance`` or ``class``.
    """

    background: tuple[int, ...]
    label_kind: str

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(H, W)."""

    @property
    @abstractmethod
    def has_masks(self) -> bool:
        """Whether every image has one."""

    @abstractmethod
    def stream(self, order: Iterable[Indices], with_masks: bool = True) -> AbstractContextManager[Iterator["ImageSet"]]:
        """For use within ``with``: the images of each list of indices, in turn, with or without their masks."""

    @abstractmethod
    def first(self, count: int) -> "Images":
        """The first so many, or all where there are fewer."""

    def chunks(self, length: int) -> AbstractContextManager[Iterator["ImageSet"]]:
        """For use within ``with``: all images in their order, ``length`` at a time."""
        spans = (range(start, min(start + length, len(self))) for start in range(0, len(self), length))
        return self.stream(spans)

    def pick(self, indices: Indices) -> "ImageSet":
        """Some of them, in memory."""
        with self.stream([indices]) as sets:
            return next(sets)

    def in_memory(self) -> "ImageSet":
        """All of them."""
        held: dict[str, Tensor] = {}
        done = 0
        with self.chunks(READ_AT_ONCE) as sets, long_work("reading images", len(self)) as tell:
            for part in sets:
                tensors = {name: values for name in TENSORS if (values := getattr(part, name)) is not None}
                for name, values in tensors.items():
                    if name not in held:
                        held[name] = values.new_empty((len(self), *values.shape[1:]))
                    held[name][done : done + len(part)] = values
                done += len(part)
                tell(done)
        return ImageSet(held["images"], held.get("masks"), self.background, self.label_kind, held.get("classes"))


@dataclass(frozen=True)
class ImageSet(Images):
    """Images in memory.

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

    @property
    def has_masks(self) -> bool:
        """Whether there are masks."""
        return self.masks is not None

    @contextmanager
    def stream(self, order: Iterable[Indices], with_masks: bool = True) -> Iterator[Iterator["ImageSet"]]:
        """Copies of the images of each list of indices."""
        whole = self if with_masks else replace(self, masks=None, classes=None)
        lists = (torch.from_numpy(np.asarray(indices, np.int64)) for indices in order)
        yield (whole.part(indices) for indices in lists)

    def first(self, count: int) -> "ImageSet":
        """The first so many, or all where there are fewer."""
        return self.part(slice(count))

    def part(self, index: Tensor | slice) -> "ImageSet":
        """Some of them; a slice is a view."""
        masks, classes = (None if values is None else values[index] for values in (self.masks, self.classes))
        return replace(self, images=self.images[index], masks=masks, classes=classes)

    def in_memory(self) -> "ImageSet":
        """Itself."""
        return self

    def batch(self, index: Tensor | slice) -> Float[Tensor, "batch channels height width"]:
        """Some images as float in [0, 1]; of a set of features their maps."""
        return as_float(self.images[index])


class ImageStream(Images):
    """The first images of a data set, read whenever they are asked for; none is kept.

    Args:
        dataset: Where they are.
        limit: The most images; None for all.
        workers: Processes that read ahead.
    """

    def __init__(self, dataset: SceneDataset, limit: int | None = None, workers: int = 0) -> None:
        self.dataset, self.workers = dataset, workers
        self.background, self.label_kind = dataset.info.background_labels, dataset.info.label_kind
        self._length = len(dataset) if limit is None else min(limit, len(dataset))
        self._has_masks = dataset[0].mask is not None

    def __len__(self) -> int:
        return self._length

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        size = self.dataset.info.size
        assert size is not None  # scenes have one
        return size

    @property
    def has_masks(self) -> bool:
        """Whether the first image has one; a data set has masks for all or for none."""
        return self._has_masks

    @property
    def num_bytes(self) -> int:
        """What the images and masks would take in memory."""
        height, width = self.size
        return len(self) * height * width * (3 + MASK_BYTES * self.has_masks)

    @contextmanager
    def stream(self, order: Iterable[Indices], with_masks: bool = True) -> Iterator[Iterator[ImageSet]]:
        """The images of each list of indices, read ahead by the workers."""
        with streamed(self.dataset, order, self.workers, with_masks=with_masks) as batches:
            yield map(self._set_of, batches)

    def _set_of(self, batch: SceneBatch) -> ImageSet:
        classes = None if batch.masks is None or self.label_kind != "class" else batch.masks.to(torch.int16)
        return ImageSet(batch.images, batch.masks, self.background, self.label_kind, classes)

    def first(self, count: int) -> "ImageStream":
        """The first so many, or all where there are fewer."""
        return ImageStream(self.dataset, min(count, len(self)), self.workers)


def read_images(dataset: SceneDataset, limit: int | None = None, workers: int = 0) -> ImageSet:
    """The first images of a data set, decoded."""
    return ImageStream(dataset, limit, workers).in_memory()


class Batches:
    """Which images each step sees: a function of the seed and the step alone, so that resuming needs no state.

    Args:
        num_images: M.
        batch_size: Images of a step, over all processes.
        seed: Of the order.
        share: (rank, size): the part of each batch that is this process's, in order of rank.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, share: tuple[int, int] = (0, 1)) -> None:
        self.num_images, self.seed, self.share = num_images, seed, share
        self.batch_size = min(batch_size, num_images)
        self.per_epoch = num_images // self.batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Int64[Tensor, " batch"]:
        """Indices of this process's images of a step; each epoch is a permutation of its own."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.num_images, generator=generator)
        rank, size = self.share
        return self._order[place * self.batch_size : (place + 1) * self.batch_size].tensor_split(size)[rank]


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        images: (B, 3, H, W) in [0, 1], or maps of features.
        index: (B,), the place of each in the data set.
        epoch: How often the data set was read before.
    """

    images: Float[Tensor, "batch channels height width"]
    index: Int64[Tensor, " batch"]
    epoch: int


class StepImages:
    """The images of each step: of any step at any time; those that follow it are read ahead.

    Used within ``with``, at the end of which nothing is read any more.

    Args:
        images: In memory or not; the batches are the same.
        batches: Which of them a step sees.
    """

    def __init__(self, images: Images, batches: Batches) -> None:
        self.images, self.batches = images, batches
        self._next = -1
        self._ahead: deque[Int64[Tensor, " batch"]] = deque()
        self._open = ExitStack()

    def __enter__(self) -> "StepImages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._next = -1
        return self._open.__exit__(kind, error, traceback)

    def batch(self, step: int) -> Batch:
        """The images of a step, from 0.

        Raises:
            PsaError: If they cannot be read.
        """
        if step != self._next:
            self._open.close()
            self._ahead.clear()
            self._sets = self._open.enter_context(self.images.stream(self._order(step), with_masks=False))
        self._next = step + 1
        images = next(self._sets).batch(slice(None))
        return Batch(images, self._ahead.popleft(), step // self.batches.per_epoch)

    def _order(self, step: int) -> Iterator[Int64[Tensor, " batch"]]:
        while True:
            self._ahead.append(self.batches(step))
            yield self._ahead[-1]
            step += 1
