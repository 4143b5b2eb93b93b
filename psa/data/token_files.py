"""A user's tokens from a NumPy file, or the pixels of a picture as tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray

from psa.data.image_files import read_image
from psa.data.npy_arrays import map_npy
from psa.data.npz_arrays import array_names, map_array
from psa.data.pictures import IMAGE_SUFFIXES
from psa.data.prepare import Preparation
from psa.errors import DataError

NUMPY_SUFFIXES = (".npy", ".npz")
NAME, LABELS = "tokens", "labels"  # of the arrays in an .npz that holds several
MAX_ABS = 1e100  # squares of tokens, and sums of them, are finite


@dataclass(frozen=True)
class Tokens:
    """The tokens of one image.

    Attributes:
        values: (N, D), in the file's units; of a picture N = size^2 pixels, row by row, and D = 5: x to the right and y
            down, of the pixel's middle as a fraction of the side, then red, green, blue, all in [0, 1].
        picture: (size, size, 3), what the tokens are the pixels of; None for those of a NumPy file.
    """

    values: Float64[np.ndarray, "tokens features"]
    picture: UInt8[np.ndarray, "size size 3"] | None = None


def read_tokens(path: str | Path, *, size: int = 24, item: int = 0) -> Tokens:
    """Read tokens from an .npy or .npz file, or make them from a PNG or JPEG; nothing is ever unpickled.

    Args:
        path: An array (N, D), (N,) taken as (N, 1), or (B, N, D); an .npz holds it as ``tokens`` or holds no other.
            A picture is resized to a square, without a crop.
        size: Pixels a side that a picture is made.
        item: Which image of (B, N, D), from 0.

    Raises:
        DataError: If there is nothing that can be read, or it is no array of finite numbers.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    require_file(path)
    if suffix in IMAGE_SUFFIXES:
        if item != 0:
            raise DataError(f"{path}: expected item 0, a picture is one image, got item {item}")
        return _of_picture(Preparation((size, size)).image(read_image(path)))
    if suffix in NUMPY_SUFFIXES:
        return Tokens(checked_tokens(str(path), _chosen(path, map_tokens(path), item)))
    known = ", ".join((*NUMPY_SUFFIXES, *IMAGE_SUFFIXES))
    raise DataError(f"{path}: expected a file ending in one of {known}")


def require_file(path: Path) -> None:
    """Refuse what is no file, or an empty one."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing of that name"
        raise DataError(f"{path}: expected a file of tokens or a picture, found {found}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: expected tokens or a picture, got an empty file")


def _of_picture(picture: UInt8[np.ndarray, "size size 3"]) -> Tokens:
    size = len(picture)
    middle = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(middle, middle, indexing="ij")
    values = np.concatenate([x[..., None], y[..., None], picture / 255.0], axis=-1)
    return Tokens(values.reshape(size * size, 5), picture)


def map_tokens(path: Path) -> NDArray[Any]:
    """The numbers of a NumPy file as (images, tokens, features), of the file's type and still on the disk.

    Args:
        path: An .npy of shape (B, N, D), or of one image (N, D) or (N,); an .npz holds it as ``tokens`` or holds no
            other.

    Raises:
        DataError: A file that cannot be read, or another array.
    """
    array = map_npy(path) if path.suffix.lower() == ".npy" else map_array(path, _name(path))
    if array.ndim not in (1, 2, 3):
        raise DataError(f"{path}: expected shape (tokens, features) or (images, tokens, features), got {array.shape}")
    if array.size == 0:
        raise DataError(f"{path}: expected at least one token and one feature, got shape {array.shape}")
    return array if array.ndim == 3 else array.reshape(1, len(array), -1)


def map_labels(path: Path) -> NDArray[Any] | None:
    """The array ``labels`` beside ``tokens`` in an .npz, as it is; None where there is none."""
    is_archive = path.suffix.lower() == ".npz"
    return map_array(path, LABELS) if is_archive and {NAME, LABELS} <= array_names(path) else None


def _name(path: Path) -> str:
    """Of the array that is read; that of the tokens where the archive cannot be read, and the error will say so."""
    names = sorted(array_names(path))
    if NAME in names or not names:
        return NAME
    if len(names) == 1:
        return names[0]
    raise DataError(f"{path}: expected an array called {NAME}, or one array and no other, got {', '.join(names)}")


def _chosen(path: Path, images: NDArray[Any], item: int) -> NDArray[Any]:
    """(N, D), still of the file's type."""
    if not 0 <= item < len(images):
        raise DataError(f"{path}: expected an item from 0 to {len(images) - 1}, got item {item}")
    return images[item]


def checked_tokens(source: str, tokens: NDArray[Any], most: float = MAX_ABS) -> Float64[np.ndarray, "tokens features"]:
    """Tokens as float64.

    Raises:
        DataError: One that is not finite, or larger than ``most``; the source is named.
    """
    with np.errstate(over="ignore"):  # a long double that is out of float64's range becomes infinite
        values = tokens.astype(np.float64)
    bad = ~(np.abs(values) <= most)
    if bad.any():
        token, feature = np.argwhere(bad)[0]
        raise DataError(
            f"{source}: expected finite numbers of at most {most:g}, "
            f"got {values[token, feature]:g} in feature {feature} of token {token}"
        )
    return values
