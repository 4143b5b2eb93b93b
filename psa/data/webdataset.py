"""Tar shards as webdataset writes them.

A scene has an image (KEY.image.npy.gz, KEY.jpg or KEY.png), perhaps a mask (KEY.mask.npy.gz or
KEY.instance_mask.npy.gz) and factors (KEY.NAME.npy.gz), arrays also without .gz. Members of other kinds, such as
pickles, are never opened.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from psa.data.description import DatasetInfo, Scene, SceneDataset
from psa.data.image_files import read_image
from psa.data.labels import require_labels
from psa.data.pictures import require_size
from psa.data.prepare import Preparation
from psa.data.tar_samples import TAR_SUFFIX, Sample, find_samples, find_shards, split_folders
from psa.errors import DataError

ARRAYS = (".npy.gz", ".npy")
PICTURES = ("jpg", "jpeg", "png", "image.jpg", "image.jpeg", "image.png")
IMAGES = (*(f"image{suffix}" for suffix in ARRAYS), *PICTURES)
MASKS = tuple(f"{name}{suffix}" for name in ("mask", "instance_mask") for suffix in ARRAYS)
ON = 255  # the value of pixels that belong to the entity, in masks of 0 and 255


class WebdatasetScenes(SceneDataset):
    """The scenes of a shard or of a folder of shards: headers are read at once, members when an item is asked for.

    A mask of labels is (H, W), (H, W, 1) or (1, H, W); 0 and 255 alone are taken as 0 and 1. A mask of entities, 0
    where they are not, has them along the third axis or the first: of ``mask`` entity 0 is the background, of
    ``instance_mask`` entity e has label e + 1. A pixel that several claim belongs to the last, one that none claims to
    label 0. Factors are as the file has them.
    """

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        root = Path(path)
        self._preparation = preparation or Preparation()
        self._samples = find_samples(root, split)
        has_masks = _agree_on_masks(self._samples)
        self.info = DatasetInfo(
            kind="scenes",
            name=root.resolve().stem,
            size=self._preparation.result_size(*_read_image(self._samples[0]).shape[:2]),
            background_labels=(0,) if has_masks else (),
            num_slots=None,
        )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        sample = self._samples[index]
        image = _read_image(sample)
        size = self._preparation.result_size(*image.shape[:2])
        assert self.info.size is not None
        hint = "; data.size=... makes all images one size"
        require_size(sample.source(), size, self.info.size, f"as {self._samples[0].key}", hint)
        mask, extension = None, sample.find(MASKS)
        if extension is not None:
            labels = _labels(sample.read_array(extension), extension, image.shape[:2], sample.source(extension))
            require_labels(labels, self.info, sample.source(extension))
            mask = self._preparation.mask(labels)
        return Scene(self._preparation.image(image), mask, _read_factors(sample) or None)

    def source(self, index: SupportsIndex) -> str:
        """The shard with the scene's key in it."""
        return self._samples[index].source()


def recognises(path: Path) -> bool:
    """Whether it is a file that ends in .tar, or a folder that holds such files or has train, val or test that do."""
    if path.is_file():
        return path.suffix.lower() == TAR_SUFFIX
    return bool(find_shards(path) or split_folders(path))


def _agree_on_masks(samples: Sequence[Sample]) -> bool:
    """Whether there are masks; every scene has an image, and a mask if another has one."""
    for sample in samples:
        if sample.find(IMAGES) is None:
            found = ", ".join(sample.members)
            raise DataError(f"{sample.source()}: expected one of {', '.join(IMAGES)}, found {found}")
    without = [sample for sample in samples if sample.find(MASKS) is None]
    if without and len(without) < len(samples):
        raise DataError(
            f"{without[0].source()}: expected a mask, since other scenes have one, found none "
            f"({len(without)} of {len(samples)} scenes lack one)"
        )
    return not without


def _read_image(sample: Sample) -> UInt8[np.ndarray, "height width 3"]:
    extension = sample.find(IMAGES)
    assert extension is not None  # looked for when the shards were opened
    if extension in PICTURES:
        return read_image(sample.source(extension), sample.read(extension))
    values = sample.read_array(extension)
    image = values[..., None] if values.ndim == 2 else values
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        found = f"{values.dtype} of shape {values.shape}"
        raise DataError(f"{sample.source(extension)}: expected uint8 of shape (H, W, 3), got {found}")
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))


def _read_factors(sample: Sample) -> dict[str, np.ndarray]:
    taken = (sample.find(IMAGES), sample.find(MASKS))
    names = [extension for extension in sample.members if extension.endswith(ARRAYS) and extension not in taken]
    return {name.removesuffix(".gz").removesuffix(".npy"): np.array(sample.read_array(name)) for name in names}


def _labels(
    values: NDArray[Any], extension: str, size: tuple[int, ...], source: str
) -> Int64[np.ndarray, "height width"]:
    if values.dtype.kind not in "bui" or values.dtype == np.uint64:
        raise DataError(f"{source}: expected a mask of integers below 2**63, got {values.dtype}")
    height, width = size
    if values.shape in ((height, width), (height, width, 1), (1, height, width)):
        labels = values.reshape(height, width).astype(np.int64)
        return labels // ON if np.isin(labels, (0, ON)).all() else labels
    flat = values.reshape(values.shape[:3]) if values.shape[3:] == (1,) else values
    if flat.ndim != 3 or (height, width) not in (flat.shape[:2], flat.shape[1:]):
        raise DataError(f"{source}: expected masks of {height}x{width} as the image, got shape {values.shape}")
    masks = np.moveaxis(flat, 2, 0) if flat.shape[:2] == (height, width) else flat
    first = 0 if extension.startswith("mask") else 1
    labels = np.zeros((height, width), np.int64)
    for entity, claimed in enumerate(masks != 0):
        labels[claimed] = entity + first
    return labels
