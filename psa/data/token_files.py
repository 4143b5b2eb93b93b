"""A user's tokens from a NumPy file, or the pixels of a picture as tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from psa.data.image_files import read_image
from psa.data.pictures import IMAGE_SUFFIXES
from psa.data.prepare import Preparation
from psa.errors import DataError

NUMPY_SUFFIXES = (".npy", ".npz")
NAME = "tokens"  # of the array in an .npz that holds several
ZIP = b"PK"  # how an .npz starts
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
    _require_file(path)
    if suffix in IMAGE_SUFFIXES:
        if item != 0:
            raise DataError(f"{path}: expected item 0, a picture is one image, got item {item}")
        return _of_picture(Preparation((size, size)).image(read_image(path)))
    if suffix in NUMPY_SUFFIXES:
        return Tokens(_checked(path, _chosen(path, _read_array(path), item)))
    known = ", ".join((*NUMPY_SUFFIXES, *IMAGE_SUFFIXES))
    raise DataError(f"{path}: expected a file ending in one of {known}")


def _require_file(path: Path) -> None:
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


def _read_array(path: Path) -> NDArray[Any]:
    try:
        with open(path, "rb") as handle:
            start = handle.read(len(MAGIC_PREFIX))
            if not start.startswith((MAGIC_PREFIX, ZIP)):
                raise DataError(f"{path}: expected a NumPy file, got one that starts with {start!r}")
            handle.seek(0)
            loaded = np.load(handle, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else np.asarray(loaded[_name(path, loaded)])
    except DataError:
        raise
    except Exception as error:
        # Damaged files make NumPy raise ValueError, EOFError, OSError, BadZipFile, zlib.error, MemoryError and others.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path}: expected a readable NumPy file without pickled objects, got {reason}") from error


def _name(path: Path, arrays: Mapping[str, Any]) -> str:
    names = list(arrays)
    if NAME in names or len(names) == 1:
        return NAME if NAME in names else names[0]
    found = ", ".join(names) or "none"
    raise DataError(f"{path}: expected an array called {NAME}, or one array and no other, got {found}")


def _chosen(path: Path, array: NDArray[Any], item: int) -> NDArray[Any]:
    """(N, D), still of the file's type."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected real numbers, got dtype {array.dtype}")
    if array.ndim not in (1, 2, 3):
        raise DataError(f"{path}: expected shape (tokens, features) or (images, tokens, features), got {array.shape}")
    if array.size == 0:
        raise DataError(f"{path}: expected at least one token and one feature, got shape {array.shape}")
    images = array if array.ndim == 3 else array.reshape(1, len(array), -1)
    if not 0 <= item < len(images):
        raise DataError(f"{path}: expected an item from 0 to {len(images) - 1}, got item {item}")
    return images[item]


def _checked(path: Path, tokens: NDArray[Any]) -> Float64[np.ndarray, "tokens features"]:
    with np.errstate(over="ignore"):  # a long double that is out of float64's range becomes infinite
        values = tokens.astype(np.float64)
    bad = ~(np.abs(values) <= MAX_ABS)
    if bad.any():
        token, feature = np.argwhere(bad)[0]
        raise DataError(
            f"{path}: expected finite numbers of at most {MAX_ABS:g}, "
            f"got {values[token, feature]:g} in feature {feature} of token {token}"
        )
    return values
