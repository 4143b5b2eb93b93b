"""What an HDF5 file that ``convert`` wrote says of itself: its source's description, splits, and uneven factors.

Attributes of the file hold JSON: those of ``DatasetInfo`` but kind and size, ``splits`` (the number of scenes of each,
in the order of the rows), ``uneven``; and ``source``, ``preparation`` and ``source_scenes``, which tell a conversion
from others. The group ``psa_shapes`` has for each factor the shape that it had in each scene, -1 for none, since rows
of a data set have one shape: that of the largest, padded with zeros.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int64

from psa.data.description import DatasetInfo
from psa.data.splits import SPLITS, split_indices
from psa.errors import DataError

SHAPES = "psa_shapes"
DESCRIBED = tuple(field.name for field in fields(DatasetInfo) if field.name not in ("kind", "size"))


@dataclass(frozen=True)
class Converted:
    """What such a file says; with ``all`` alone it has no splits, and is divided as other files are.

    Attributes:
        described: The fields of ``DESCRIBED``.
        splits: How many scenes each has, in the order of the rows.
        uneven: Factors that some scene lacks, or has in another shape than the data set.
    """

    described: Mapping[str, Any]
    splits: Mapping[str, int]
    uneven: tuple[str, ...]

    def rows(self, split: str, source: str) -> Int64[np.ndarray, " scenes"]:
        """The rows of a split; of all where it is ``all``.

        Raises:
            DataError: The file has none of that split.
        """
        num_scenes = sum(self.splits.values())
        if split == "all" or "all" in self.splits:
            return split_indices(num_scenes, split, source)
        if not self.splits.get(split):
            held = ", ".join(name for name, count in self.splits.items() if count)
            raise DataError(f"{source}: expected a file with scenes of split {split!r}, found {held} only")
        start = sum(list(self.splits.values())[: list(self.splits).index(split)])
        return np.arange(start, start + self.splits[split], dtype=np.int64)


def write_converted(file: h5py.File, info: DatasetInfo, splits: Mapping[str, int]) -> None:
    """Write what ``read_converted`` reads; the shapes are there."""
    uneven = [name for name, shapes in file[SHAPES].items() if _is_uneven(shapes, file[name].shape[1:])]
    for name in DESCRIBED:
        file.attrs[name] = json.dumps(getattr(info, name))
    file.attrs["uneven"] = json.dumps(uneven)
    file.attrs["splits"] = json.dumps(dict(splits))  # last: it is what tells such a file


def read_converted(path: Path, file: h5py.File, num_scenes: int) -> Converted | None:
    """What a file says of itself; None where ``convert`` did not write it.

    Raises:
        DataError: It says what cannot be.
    """
    if "splits" not in file.attrs or SHAPES not in file:
        return None
    described = {name: _read(path, file, name) for name in DESCRIBED if name in file.attrs}
    splits = _read(path, file, "splits")
    if sum(splits.values()) != num_scenes:
        raise DataError(f"{path}: attribute 'splits': expected {num_scenes} scenes, got {sum(splits.values())}")
    uneven = _read(path, file, "uneven")
    for name in uneven:
        _require_shapes(path, file, name)
    return Converted(described, splits, uneven)


def shape_of(row: Int64[np.ndarray, " axes"], ndim: int) -> tuple[int, ...] | None:
    """The shape that a row of ``psa_shapes`` tells; None where the scene lacks the factor."""
    return None if row[0] < 0 else tuple(row[:ndim].tolist())


def _is_uneven(shapes: h5py.Dataset, common: tuple[int, ...]) -> bool:
    return bool((shapes[:] != np.array(common or (0,))).any())


def _require_shapes(path: Path, file: h5py.File, name: str) -> None:
    known = name not in ("image", "mask") and isinstance(file.get(name), h5py.Dataset)
    if not known or not isinstance(file[SHAPES].get(name), h5py.Dataset):
        raise DataError(f"{path}: attribute 'uneven': expected names of factors, got {name!r}")
    shapes, values = file[SHAPES][name], file[name]
    expected = (len(values), max(1, values.ndim - 1))
    if shapes.shape != expected or shapes.dtype.kind != "i":
        raise DataError(f"{path}: '{SHAPES}/{name}': expected integers of shape {expected}, got others")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def _is_labels(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_label, value))


def _is_counts(value: Any) -> bool:
    if not isinstance(value, dict) or not value or not set(value) <= set(SPLITS) or ("all" in value and len(value) > 1):
        return False
    return all(_is_label(count) and count >= 0 for count in value.values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


# What an attribute has to be, and whether it is.
KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a string", lambda value: isinstance(value, str)),
    "num_slots": ("an integer or null", lambda value: value is None or (_is_label(value) and value > 0)),
    "factors": ("texts by name", _is_texts),
    "label_kind": ("instance or class", lambda value: value in ("instance", "class")),
    "splits": ("numbers of scenes of train, val and test, or of all", _is_counts),
    "uneven": ("names", _is_names),
}
LABELS = ("integers", _is_labels)


def _read(path: Path, file: h5py.File, name: str) -> Any:
    expected, fits = KINDS.get(name, LABELS)
    text = file.attrs.get(name)
    value = json.loads(text) if isinstance(text, str) else text
    if not fits(value):
        raise DataError(f"{path}: attribute {name!r}: expected {expected}, got {str(text)[:40]!r}")
    return tuple(value) if isinstance(value, list) else value
