"""What a data set is made of: scenes or points, a description of the whole, and the batch that models take."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, SupportsIndex, TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from psa.progress import watched


@dataclass(frozen=True)
class Scene:
    """One picture with what is known of it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W), the label of each pixel; None where the data set has no masks.
        factors: per-object or per-scene truths by name, the first axis objects where there is one.
    """

    image: UInt8[np.ndarray, "height width 3"]
    mask: Int64[np.ndarray, "height width"] | None = None
    factors: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Points:
    """One set of points: tokens (N, D) and the group of each, (N,), where known."""

    tokens: Float32[np.ndarray, "tokens features"]
    labels: Int64[np.ndarray, " tokens"] | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """What holds for every item of a data set.

    Attributes:
        kind: whether items are ``Scene`` or ``Points``.
        name: the generator's name, or the file's or folder's.
        size: (height, width) of every image; None for points.
        background_labels: mask labels that are no objects.
        num_slots: the number of labels including the background, where known.
        factors: what each factor that scenes may have is, and its unit, by name; empty where that is not known.
        label_kind: what the other mask labels stand for, ``instance`` or ``class``.
    """

    kind: Literal["scenes", "points"]
    name: str
    size: tuple[int, int] | None
    background_labels: tuple[int, ...]
    num_slots: int | None
    factors: Mapping[str, str] = field(default_factory=dict)
    label_kind: str = "instance"


Item = TypeVar("Item", Scene, Points)


class MapDataset(ABC, Generic[Item]):
    """A map-style data set: indices from 0, IndexError past the end."""

    info: DatasetInfo

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: SupportsIndex) -> Item: ...

    @abstractmethod
    def source(self, index: SupportsIndex) -> str:
        """The file, or ``file[i]``, that an item came from: for error messages."""

    def __getitems__(self, indices: Iterable[SupportsIndex]) -> list[Item]:
        """Several items at once, in the order asked for; torch's DataLoader calls this where it exists."""
        return [self[index] for index in watched(indices, f"reading {self.info.name}")]


class SceneDataset(MapDataset[Scene]):
    """Of scenes.

    Attributes:
        mask_options: what the reader's option ``masks`` can be, where there is one: what labels shall stand for.
    """

    mask_options: ClassVar[tuple[str, ...]] = ()


class PointsDataset(MapDataset[Points]):
    """Of sets of points."""


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one size, stacked; masks is None unless every scene has one."""

    images: UInt8[Tensor, "batch height width 3"]
    masks: Int64[Tensor, "batch height width"] | None


def collate(scenes: Sequence[Scene]) -> SceneBatch:
    """Stacks scenes of one size; factors are left behind."""
    masks = [scene.mask for scene in scenes if scene.mask is not None]
    return SceneBatch(
        images=torch.from_numpy(np.stack([scene.image for scene in scenes])),
        masks=torch.from_numpy(np.stack(masks)) if len(masks) == len(scenes) else None,
    )


def as_float(images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """Images as float32 in [0, 1], channels first."""
    return rearrange(images, "b h w c -> b c h w").contiguous().float() / 255
