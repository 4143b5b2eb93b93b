"""The slots of a whole data set, a chunk of images at a time and as often as wanted; HDF5 files of them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import h5py
import torch
from jaxtyping import Float
from torch import Tensor

from psa.errors import DataError
from psa.files import write_atomically

FILE_BYTES = 1 << 23  # of a file's means at once
NAMES = ("weights", "loc", "var")


@runtime_checkable
class Chunk(Protocol):
    """Slots of some images: a :class:`psa.records.SlotPosterior`, or anything that has these three of it."""

    @property
    def weights(self) -> Tensor:
        """(B, K), non-negative, sums to 1 over K."""

    @property
    def loc(self) -> Tensor:
        """(B, K, D)."""

    @property
    def var(self) -> Tensor:
        """(B, K, D), positive."""


@dataclass(frozen=True)
class SlotChunk:
    """Normal(loc, diag var) of the slots of some images, with their weights.

    Attributes:
        weights: (B, K).
        loc: (B, K, D).
        var: (B, K, D), positive.
    """

    weights: Float[Tensor, "batch slots"]
    loc: Float[Tensor, "batch slots features"]
    var: Float[Tensor, "batch slots features"]

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, index: slice | Tensor) -> "SlotChunk":
        return SlotChunk(self.weights[index], self.loc[index], self.var[index])

    def to(self, device: torch.device) -> "SlotChunk":
        """The same on a device."""
        return SlotChunk(*(getattr(self, name).to(device) for name in NAMES))


Source = Callable[[], Iterable[Chunk]] | str | Path


def joined(chunks: list[SlotChunk]) -> SlotChunk:
    """The images of all, in order."""
    if len(chunks) == 1:
        return chunks[0]
    return SlotChunk(*(torch.cat([getattr(chunk, name) for chunk in chunks]) for name in NAMES))


class SlotStream:
    """A source that has been checked, to be read any number of times.

    Args:
        source: A callable that returns the chunks anew each time it is called; or a file that :func:`save_posteriors`
            wrote.
        normalised: Whether weights must sum to 1 over an image's slots.

    Raises:
        ValueError: If the source can be read only once. While reading: if a chunk is not as a posterior should be, or
            the source does not hold the same number of images every time.
    """

    def __init__(self, source: Source, normalised: bool = True) -> None:
        if not isinstance(source, str | Path) and not callable(source):
            raise ValueError(
                "source must be readable more than once: pass a callable that returns the chunks anew each time "
                f"(lambda: encode(loader)), or the path of an HDF5 file, got a {type(source).__name__}"
            )
        self._read = partial(read_chunks, Path(source)) if isinstance(source, str | Path) else source
        self._normalised = normalised
        self._num_images: int | None = None

    def __iter__(self) -> Iterator[SlotChunk]:
        """All chunks, without the empty ones."""
        count, shape = 0, None
        for chunk in self._read():
            checked = _checked(chunk, shape)
            if self._normalised and not bool(((checked.weights.sum(1) - 1.0).abs() < 1e-3).all()):
                raise ValueError("source must hold weights that sum to 1 over an image's slots")
            shape = checked.loc.shape[1:]
            count += len(checked)
            if len(checked) > 0:
                yield checked
        if count == 0 and not self._num_images:
            raise ValueError("source must hold at least one image, got none")
        if self._num_images not in (None, count):
            raise ValueError(
                f"source must give the same images each time it is read, got {self._num_images} and then {count}: "
                "the callable must return a new iterable each time it is called"
            )
        self._num_images = count

    def blocks(self, size: int) -> Iterator[SlotChunk]:
        """The same images, ``size`` at a time, so that sums over them do not depend on how they came."""
        held: list[SlotChunk] = []
        room = size
        for chunk in self:
            while len(chunk) >= room:
                yield joined([*held, chunk[:room]])
                held, chunk, room = [], chunk[room:], size
            if len(chunk) > 0:
                held.append(chunk)
                room -= len(chunk)
        if held:
            yield joined(held)


def _checked(chunk: Chunk, shape: torch.Size | None) -> SlotChunk:
    """The three tensors of a posterior.

    Raises:
        ValueError: If they are not those of the slots' diagonal Gaussians.
    """
    if getattr(chunk, "covariance", None) is not None:
        raise ValueError("source must hold posteriors with diagonal covariances, got full ones")
    weights, loc, var = chunk.weights.detach(), chunk.loc.detach(), chunk.var.detach()
    if loc.ndim != 3 or var.shape != loc.shape or weights.shape != loc.shape[:2]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (weights, loc, var))
        raise ValueError(f"source must hold weights (B, K), loc (B, K, D) and var (B, K, D), got {shapes}")
    if shape is not None and loc.shape[1:] != shape:
        raise ValueError(f"source must hold the same K and D everywhere, got {tuple(shape)}, then {tuple(loc.shape)}")
    if not bool((weights >= 0).all()):
        raise ValueError("source must hold non-negative weights")
    # a sum is not finite where an entry is not, and needs no tensor of its own
    if not bool(torch.isfinite(loc.sum() + var.sum())) or not bool((var > 0).all()):
        raise ValueError("source must hold finite loc and positive finite var")
    return SlotChunk(weights, loc, var)


def save_posteriors(source: Source, path: str | Path) -> None:
    """Write a source as an HDF5 file, whole or not at all: weights (M, K), loc (M, K, D), var (M, K, D).

    Raises:
        ValueError: As :class:`SlotStream`.
    """
    stream = SlotStream(source)
    write_atomically(Path(path), lambda temporary: write_chunks(stream, temporary))


def write_chunks(chunks: Iterable[SlotChunk], path: Path) -> None:
    """Write chunks as they come, unchecked, to a file that :func:`read_chunks` reads."""
    with h5py.File(path, "w") as file:
        for chunk in chunks:
            for name in NAMES:
                _append(file, name, getattr(chunk, name))


def _append(file: h5py.File, name: str, tensor: Tensor) -> None:
    array = tensor.cpu().numpy()
    if name not in file:
        rows = max(1, FILE_BYTES // (8 * array[0].nbytes))
        shape = array.shape[1:]
        file.create_dataset(name, (0, *shape), array.dtype, maxshape=(None, *shape), chunks=(rows, *shape))
    dataset = file[name]
    dataset.resize(len(dataset) + len(array), axis=0)
    dataset[-len(array) :] = array


def read_chunks(path: Path) -> Iterator[SlotChunk]:
    """The chunks from the first on, of a file that is open only while they are read.

    Raises:
        DataError: If it is no file of posteriors.
    """
    with _reading(path), h5py.File(path, "r") as file:
        datasets = [_dataset(path, file, name) for name in NAMES]
        loc = datasets[1]
        for name, dataset in zip(NAMES, datasets, strict=True):
            if len(dataset) != len(loc):
                found = f"found {len(dataset)} in {name!r}"
                raise DataError(f"{path}: expected {len(loc)} images in every dataset, {found}")
        rows = max(1, FILE_BYTES * len(loc) // max(1, loc.nbytes))
        for first in range(0, len(loc), rows):
            yield SlotChunk(*(torch.from_numpy(dataset[first : first + rows]) for dataset in datasets))


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    found = file.get(name)
    axes = 2 if name == "weights" else 3
    if not isinstance(found, h5py.Dataset) or found.ndim != axes or found.dtype.kind != "f":
        raise DataError(f"{path}: expected a dataset {name!r} of real numbers with {axes} axes, found none")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: expected a readable HDF5 file of posteriors, got {reason}") from error
