"""Pictures and label images read with Pillow; whatever is wrong with a file comes out as one DataError naming it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import ExifTags, Image, ImageOps

from psa.errors import DataError

LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
SIDEWAYS = (5, 6, 7, 8)
MAX_PIXELS = 1 << 26  # 8192 x 8192: what a few bytes of a PNG may decode to has to have an end


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) as the picture is meant to be seen, from the header alone."""
    with _opened(path) as image:
        width, height = image.size
        # PngImageFile.getexif would decode the whole picture to find a tag behind it; read_image sees that one.
        sideways = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in SIDEWAYS
    return (width, height) if sideways else (height, width)


def read_image(path: Path | str, data: bytes | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """The picture as 8-bit RGB, turned as its EXIF orientation says; transparency is dropped.

    Args:
        path: The file, or with ``data`` what to name in errors.
        data: The picture's bytes, where it is no file of its own.
    """
    with _opened(path, data) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            gray = np.asarray(upright).astype(np.int64).clip(0, 65535) >> 8
            return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
        if "transparency" in upright.info:
            upright = upright.convert("RGBA")
        return np.array(upright.convert("RGB"))


def read_labels(path: Path) -> Int64[np.ndarray, "height width"]:
    """A label image: integers as they are; in an RGB one each colour is a label, black 0, the others by their order."""
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in LABEL_MODES:
            return np.asarray(upright).astype(np.int64)
        if upright.mode not in ("RGB", "RGBA"):
            raise DataError(f"{path}: expected a mask of integers or RGB colours, got image mode {upright.mode}")
        codes = np.asarray(upright.convert("RGB")).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    colours = np.union1d(codes, [0])
    return np.searchsorted(colours, codes).astype(np.int64)


@contextmanager
def _opened(path: Path | str, data: bytes | None = None) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            opened = Image.open(path if data is None else BytesIO(data), formats=("PNG", "JPEG"))
        with opened as image:
            _require_limit(path, *image.size)
            yield image
    except DataError:
        raise
    except Exception as error:
        # Bad bytes make Pillow raise OSError, SyntaxError, ValueError, struct.error, DecompressionBombError and others.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path}: expected a readable PNG or JPEG image, got {reason}") from error


def _require_limit(path: Path | str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: expected an image of at most {MAX_PIXELS} pixels, got {height}x{width}")
