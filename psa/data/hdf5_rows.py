"""Rows of an HDF5 data set, read from their place in the file where they lie there unpacked: far faster than h5py."""

import math
import os
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

MAX_CHUNKS = 1 << 20  # whose places are kept in memory
HELD_BYTES = 1 << 23  # a data set up to this is kept in memory itself: the factors, of which a scene has many


class Rows:
    """The rows of one data set, one at a time; those that are compressed or of a rare type are left to h5py.

    Args:
        dataset: With at least one axis.
        descriptor: Of the same file, open for reading.
    """

    def __init__(self, dataset: h5py.Dataset, descriptor: int) -> None:
        self._dataset, self._descriptor = dataset, descriptor
        self._shape, self._dtype = dataset.shape[1:], dataset.dtype
        self._bytes = math.prod(self._shape) * self._dtype.itemsize
        self._per_chunk = dataset.shape[0] if dataset.chunks is None else dataset.chunks[0]
        self._starts = _chunk_starts(dataset)
        is_small = self._starts is not None and self._bytes * dataset.shape[0] <= HELD_BYTES
        self._held = dataset[:] if is_small else None

    def __getitem__(self, row: int) -> NDArray[Any]:
        if self._held is not None:
            return np.array(self._held[row])
        if self._starts is None:
            return np.asarray(self._dataset[row])
        chunk, place = divmod(row, self._per_chunk)
        is_bool = self._dtype.kind == "b"
        values = np.empty(self._shape, np.uint8 if is_bool else self._dtype)
        start = int(self._starts[chunk]) + place * self._bytes
        if os.preadv(self._descriptor, [values.data.cast("B") if values.ndim else values.data], start) != self._bytes:
            raise OSError(f"the file ends before row {row} of {self._dataset.name}")
        return values != 0 if is_bool else values


def _chunk_starts(dataset: h5py.Dataset) -> Int64[np.ndarray, " chunks"] | None:
    """Where in the file each chunk of whole rows starts; None where rows do not lie there as they are in memory."""
    if not _is_plain(dataset):
        return None
    if dataset.chunks is None:
        start = dataset.id.get_offset()
        return None if start is None else np.array([start], np.int64)
    count = -(-dataset.shape[0] // dataset.chunks[0])
    if dataset.chunks[1:] != dataset.shape[1:] or count > MAX_CHUNKS:
        return None
    starts = np.full(count, -1, np.int64)

    def keep(chunk: Any) -> None:
        starts[chunk.chunk_offset[0] // dataset.chunks[0]] = chunk.byte_offset

    dataset.id.chunk_iter(keep)
    return starts if (starts >= 0).all() else None  # a chunk that was never written has no place


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether values are stored in this file, unpacked, and as NumPy has them."""
    if not hasattr(os, "preadv") or dataset.dtype.kind not in "buif" or 0 in dataset.shape:
        return False
    if dataset.is_virtual or dataset.external or dataset.file.userblock_size:
        return False
    if dataset.id.get_create_plist().get_nfilters():
        return False
    return bool(dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype, logical=True)))
