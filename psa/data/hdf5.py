"""HDF5 files of the object-centric library: ``image``, optionally ``mask``, and factors, with scenes along axis 0."""

import math
import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, SupportsIndex

import h5py
import numpy as np

from psa.data.converted import SHAPES, read_converted, shape_of
from psa.data.description import DatasetInfo, Scene, SceneDataset
from psa.data.hdf5_rows import Rows
from psa.data.image_files import MAX_PIXELS
from psa.data.labels import require_labels
from psa.data.prepare import Preparation
from psa.data.splits import split_indices
from psa.errors import DataError
from psa.progress import watched

HDF5_SUFFIXES = (".h5", ".hdf5")
CHUNK_CACHE_BYTES = 1 << 26
# A header may promise any number without the data for it; these have an end that memory has too.
MAX_SCENES = 10**8
MAX_VALUES = 3 * MAX_PIXELS
# The library's own files, {name}-full.hdf5: (labels including the background, how many of the first are background).
KNOWN_LABELS = {
    "clevr_10": (11, 1),
    "clevrtex": (11, 1),
    "multidsprites": (6, 1),
    "objects_room": (7, 4),
    "shapestacks": (7, 1),
    "tetrominoes": (4, 1),
}


class Hdf5Scenes(SceneDataset):
    """The scenes of one file; pixels are read when an item is asked for.

    A file that ``convert`` wrote has splits and a description of its own; another is divided by a fixed permutation.
    """

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        self._path = Path(path)
        self._preparation = preparation or Preparation()
        with _reading(str(path)), h5py.File(path, "r") as file:
            shapes = _checked_shapes(self._path, file)
            num_scenes, *size = shapes["image"]
            converted = read_converted(self._path, file, num_scenes)
        self._names = tuple(shapes)
        self._uneven = converted.uneven if converted else ()
        self._rows = (converted.rows if converted else partial(split_indices, num_scenes))(split, str(path))
        name = self._path.stem.removesuffix("-full")
        num_slots, num_background = KNOWN_LABELS.get(name, (None, 1))
        described = {
            "name": name,
            "background_labels": tuple(range(num_background)) if "mask" in shapes else (),
            "num_slots": num_slots if "mask" in shapes else None,
            **(converted.described if converted else {}),
        }
        self.info = DatasetInfo(kind="scenes", size=self._preparation.result_size(size[0], size[1]), **described)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is open: another process opens the file for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_file", "_arrays")}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        row = int(self._rows[index])
        with _reading(self.source(index)):
            arrays = {name: self._arrays[name][row] for name in self._names}
            for name in self._uneven:
                self._cut(arrays, name, self._arrays[f"{SHAPES}/{name}"][row])
        image, mask = self._preparation.image(arrays.pop("image")), arrays.pop("mask", None)
        if mask is not None:
            labels = mask.reshape(mask.shape[:2]).astype(np.int64)
            require_labels(labels, self.info, self.source(index))
            mask = self._preparation.mask(labels)
        return Scene(image, mask, arrays or None)

    def __getitems__(self, indices: Iterable[SupportsIndex]) -> list[Scene]:
        """In the order asked for, but read in the file's: one by one, so that the chunk cache serves neighbours.

        A list of rows given to h5py at once is 3 to 20 times slower than this (h5py 3.16, chunked gzip).
        """
        rows = np.array([int(index) for index in indices], dtype=np.int64)
        unique, position = np.unique(rows, return_inverse=True)
        scenes = [self[index] for index in watched(unique.tolist(), f"reading {self.info.name}")]
        return [scenes[i] for i in position]

    def source(self, index: SupportsIndex) -> str:
        """The file with the row of the scene in it."""
        return f"{self._path}[{self._rows[index]}]"

    @cached_property
    def _file(self) -> h5py.File:
        return h5py.File(self._path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)

    @cached_property
    def _arrays(self) -> dict[str, Rows]:
        descriptor = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        names = (*self._names, *(f"{SHAPES}/{name}" for name in self._uneven))
        return {name: Rows(self._file[name], descriptor) for name in names}

    @staticmethod
    def _cut(arrays: dict[str, np.ndarray], name: str, told: np.ndarray) -> None:
        """Bring a factor to the shape that it had in its scene."""
        shape = shape_of(told.astype(np.int64), arrays[name].ndim)
        if shape is None:
            del arrays[name]
        elif shape:
            arrays[name] = arrays[name][tuple(slice(length) for length in shape)]


def recognises(path: Path) -> bool:
    """Whether it is a file that ends as HDF5 files do."""
    return path.suffix.lower() in HDF5_SUFFIXES and path.is_file()


def _checked_shapes(path: Path, file: h5py.File) -> dict[str, tuple[int, ...]]:
    """The datasets at the top of the file, each found fit to be read as scenes; groups are left alone."""
    found = {name: item for name in file if isinstance(item := file.get(name), h5py.Dataset)}
    if "image" not in found:
        raise DataError(f"{path}: expected a dataset 'image', found {', '.join(found) or 'no datasets'}")
    image = found["image"]
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3 or 0 in image.shape:
        raise DataError(f"{path}: 'image': expected uint8 of shape (N, H, W, 3), got {_written(image)}")
    for name, item in found.items():
        if item.shape and (item.shape[0] > MAX_SCENES or math.prod(item.shape[1:]) > MAX_VALUES):
            most = f"at most {MAX_SCENES} scenes of {MAX_VALUES} values"
            raise DataError(f"{path}: {name!r}: expected {most}, got {_written(item)}")
        if item.dtype.kind not in "buif" or item.shape[:1] != image.shape[:1]:
            rows = image.shape[0]
            raise DataError(f"{path}: {name!r}: expected numbers, {rows} along axis 0 as 'image', got {_written(item)}")
    if "mask" in found:
        _require_mask(path, found["mask"], image.shape[:3])
    return {name: item.shape for name, item in found.items()}


def _require_mask(path: Path, mask: h5py.Dataset, shape: tuple[int, ...]) -> None:
    if mask.dtype.kind not in "bui" or mask.shape not in (shape, (*shape, 1)):
        raise DataError(f"{path}: 'mask': expected integers of shape {shape} or {(*shape, 1)}, got {_written(mask)}")


def _written(dataset: h5py.Dataset) -> str:
    return f"{dataset.dtype} of shape {dataset.shape}"


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{source}: expected a readable HDF5 file, got {reason}") from error
