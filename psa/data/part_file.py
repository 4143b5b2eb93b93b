"""The HDF5 file that a conversion is written to: scenes are appended, and what is complete survives an interruption."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int32, Int64
from numpy.typing import NDArray

from psa.data.converted import SHAPES, write_converted
from psa.data.description import DatasetInfo, Scene
from psa.errors import DataError

CHUNK_BYTES, CHUNK_SCENES = 1 << 20, 64  # of images and masks; the smaller of the two counts
CHUNK_ROWS = 256  # of factors
SLACK_BYTES = 1 << 20  # for what HDF5 writes beside the data
WIDER = "psa_wider"  # masks on their way to a larger type
DONE = "done"  # (which split, its next scene, scenes kept of each split), all that going on needs


class PartFile:
    """An HDF5 file that is growing.

    Args:
        file: Open for writing; empty, or left by an earlier ``PartFile``.
        identity: What the scenes are made of and how, JSON by name: attributes of the file.
        num_splits: How many splits there will be.

    Raises:
        DataError: The file was left by a conversion of something else.
    """

    def __init__(self, file: h5py.File, identity: Mapping[str, str], num_splits: int) -> None:
        self._file = file
        self._reserve(0)
        if DONE not in file.attrs:
            for name, text in identity.items():
                file.attrs[name] = text
            file.create_group(SHAPES)
            file.attrs[DONE] = np.zeros(2 + num_splits, np.int64)
        require_identity(file, identity)
        self._done: Int64[np.ndarray, " numbers"] = np.array(file.attrs[DONE], np.int64)
        if WIDER in file and "mask" not in file:
            file.move(WIDER, "mask")
        elif WIDER in file:
            del file[WIDER]
        for dataset in (*self._arrays().values(), *file[SHAPES].values()):
            dataset.resize(self.num_kept, axis=0)  # what was written after the last save is written again

    @property
    def position(self) -> tuple[int, int]:
        """Which split is next, and which of its scenes."""
        return int(self._done[0]), int(self._done[1])

    @property
    def kept(self) -> list[int]:
        """Scenes of each split in the file."""
        return self._done[2:].tolist()

    @property
    def num_kept(self) -> int:
        """Scenes in the file."""
        return sum(self.kept)

    def append(self, scenes: Sequence[Scene], sources: Sequence[str]) -> None:
        """Write scenes after those there are; they count once ``save`` is called.

        Raises:
            DataError: A scene is not as those before it; its source is named.
        """
        if not scenes:
            return
        _require_alike(scenes, sources, self._file)
        self._reserve(_bound(scenes))
        self._write("image", np.stack([scene.image for scene in scenes]))
        masks = [scene.mask for scene in scenes if scene.mask is not None]
        if masks:
            self._write("mask", np.stack(masks))
        names = {name for scene in scenes for name in scene.factors or {}} | set(self._file[SHAPES])
        for name in sorted(names):
            self._write_factor(name, [(scene.factors or {}).get(name) for scene in scenes], sources)

    def save(self, position: tuple[int, int], num_new: int) -> None:
        """Bring to the disk what was appended: ``num_new`` scenes of the split that was next; go on at position."""
        self._file.flush()
        self._done[2 + self._done[0]] += num_new
        self._done[:2] = position
        self._file.attrs.modify(DONE, self._done)
        self._file.flush()

    def finish(self, info: DatasetInfo, splits: Sequence[str]) -> None:
        """Write what the whole file says of itself."""
        self._reserve(0)
        write_converted(self._file, info, dict(zip(splits, self.kept, strict=True)))
        del self._file.attrs[DONE]

    def _reserve(self, num_bytes: int) -> None:
        """Take room on the disk beforehand: a full one is an OSError here, but HDF5 would crash the process."""
        if hasattr(os, "posix_fallocate"):
            size = self._file.id.get_filesize() + num_bytes + SLACK_BYTES
            os.posix_fallocate(self._file.id.get_vfd_handle(), 0, size)

    def _arrays(self) -> dict[str, h5py.Dataset]:
        return {name: item for name, item in self._file.items() if isinstance(item, h5py.Dataset)}

    def _create(
        self, name: str, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any], fill: int = 0
    ) -> h5py.Dataset:
        size = max(1, math.prod(shape) * dtype.itemsize)
        is_picture = name in ("image", "mask", WIDER)
        chunk = max(1, min(CHUNK_SCENES, CHUNK_BYTES // size)) if is_picture else CHUNK_ROWS
        chunks = (chunk, *(max(1, length) for length in shape))
        return self._file.create_dataset(
            name, (rows, *shape), dtype, chunks=chunks, maxshape=(None,) * (1 + len(shape)), fillvalue=fill
        )

    def _write(self, name: str, values: NDArray[Any]) -> None:
        start, stop = self.num_kept, self.num_kept + len(values)
        dtype = values.dtype if name == "image" else np.result_type(*map(np.min_scalar_type, _range(values)))
        if name not in self._file:
            self._create(name, start, values.shape[1:], dtype)
        if not np.can_cast(dtype, self._file[name].dtype):
            self._widen(name, np.promote_types(dtype, self._file[name].dtype))
        self._file[name].resize(stop, axis=0)
        self._file[name][start:stop] = values

    def _widen(self, name: str, dtype: np.dtype[Any]) -> None:
        """Copy a data set to one of a larger type: a label came that is larger than all before."""
        old = self._file[name]
        self._reserve(2 * old.size * dtype.itemsize)
        new = self._create(WIDER, old.shape[0], old.shape[1:], dtype)
        for start in range(0, old.shape[0], CHUNK_SCENES):
            new[start : start + CHUNK_SCENES] = old[start : start + CHUNK_SCENES]
        del self._file[name]
        self._file.move(WIDER, name)

    def _write_factor(self, name: str, values: list[NDArray[Any] | None], sources: Sequence[str]) -> None:
        start, stop = self.num_kept, self.num_kept + len(values)
        first = next((value for value in values if value is not None), None)
        if name not in self._file[SHAPES]:
            assert first is not None
            _require_factor(name, first, sources[0])
            if name in self._file:  # of a run that was interrupted just here
                del self._file[name]
            self._create(name, start, first.shape, first.dtype)
            self._create(f"{SHAPES}/{name}", start, (max(1, first.ndim),), np.dtype(np.int32), fill=-1)
        dataset, shapes = self._file[name], self._file[SHAPES][name]
        for value, source in zip(values, sources, strict=True):
            if value is not None and (value.dtype != dataset.dtype or value.ndim != dataset.ndim - 1):
                was = f"{dataset.dtype} with {dataset.ndim - 1} axes"
                raise DataError(f"{source}: {name!r}: expected {was} as before, got {value.dtype} with {value.ndim}")
        common = tuple(
            max(lengths) for lengths in zip(dataset.shape[1:], *(v.shape for v in values if v is not None), strict=True)
        )
        dataset.resize((stop, *common))
        shapes.resize(stop, axis=0)
        dataset[start:], shapes[start:] = _padded(values, common, dataset.dtype)


def _bound(scenes: Sequence[Scene]) -> int:
    """Bytes that scenes take at most, with the chunks that they begin."""
    pictures = sum(scene.image.nbytes + (0 if scene.mask is None else scene.mask.nbytes) for scene in scenes)
    factors = sum(values.nbytes + 64 for scene in scenes for values in (scene.factors or {}).values())
    return 2 * pictures + 16 * CHUNK_BYTES + 4 * CHUNK_ROWS * factors


def _padded(
    values: Sequence[NDArray[Any] | None], common: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], Int32[np.ndarray, "scenes axes"]]:
    """A factor's values, padded with zeros to one shape, and the shape of each: -1 for none."""
    rows = np.zeros((len(values), *common), dtype)
    told = np.full((len(values), max(1, len(common))), -1, np.int32)
    for row, value in enumerate(values):
        if value is not None:
            place = rows[row, ...]  # a view, of a number too
            place[tuple(slice(length) for length in value.shape)] = value
            told[row] = value.shape or 0
    return rows, told


@contextmanager
def open_part(path: Path, identity: Mapping[str, str], num_splits: int) -> Iterator[PartFile]:
    """The partial file, new or as an earlier call left it; closed afterwards.

    Raises:
        DataError: It is another conversion's or damaged, or cannot be written.
    """
    was_there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = h5py.File(path, "r+" if was_there else "x")
    except OSError as error:
        hint = "; if nothing else writes it, remove it and begin anew" if was_there else ""
        raise DataError(f"{path}: expected a partial file that can be written, got {_reason(error)}{hint}") from error
    try:
        with writing(path):
            part = PartFile(file, identity, num_splits)
        yield part
    finally:
        with writing(path):
            file.close()
            h5py.File(path, "r+").close()  # it finds the file larger than its content, and gives back what was reserved


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what HDF5 raises when it cannot write into one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{path}: expected to write a partial file, got {_reason(error)}") from error


def require_identity(file: h5py.File, identity: Mapping[str, str]) -> None:
    """Refuse a file that was made of something else, or otherwise.

    Raises:
        DataError: The first difference is named.
    """
    for name, text in identity.items():
        if file.attrs.get(name) != text:
            found = file.attrs.get(name, "none")
            raise DataError(
                f"{file.filename}: expected a file of the same conversion, with {name} {text}, found {found}; "
                "remove it or write elsewhere"
            )


def _require_alike(scenes: Sequence[Scene], sources: Sequence[str], file: h5py.File) -> None:
    """Refuse scenes that differ in size, or of which some have a mask."""
    size = file["image"].shape[1:] if "image" in file else scenes[0].image.shape
    has_mask = "mask" in file if "image" in file else scenes[0].mask is not None
    for scene, source in zip(scenes, sources, strict=True):
        if scene.image.shape != size:
            raise DataError(f"{source}: expected an image of shape {size} as before, got {scene.image.shape}")
        if (scene.mask is not None) != has_mask:
            raise DataError(f"{source}: expected {'a' if has_mask else 'no'} mask, as the scenes before have it")


def _require_factor(name: str, value: NDArray[Any], source: str) -> None:
    if name in ("image", "mask", WIDER, SHAPES) or "/" in name or name in (".", ""):
        raise DataError(f"{source}: expected factors with other names than the file's own, got {name!r}")
    if value.dtype.kind not in "buif":
        raise DataError(f"{source}: {name!r}: expected numbers, got {value.dtype}")


def _range(values: NDArray[Any]) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}".splitlines()[0]
