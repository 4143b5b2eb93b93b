"""The dSprites file, dsprites_ndarray_*.npz: the shapes that Multi-dSprites scenes are composed of.

Source: github.com/google-deepmind/dsprites-dataset. Of its arrays ``imgs`` and ``latents_values`` are read;
``metadata`` is a pickle and never opened.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from psa.data.npz_arrays import map_array
from psa.errors import DataError

NUM_LATENTS = 6  # colour, which is white, then those of dsprites_shapes.LATENTS


class FileShapes:
    """The rows of the file, images left on the disk; a :class:`~psa.data.dsprites_shapes.Shapes`."""

    def __init__(
        self,
        path: Path,
        images: UInt8[np.ndarray, "rows height width"] | Bool[np.ndarray, "rows height width"],
        values: Float64[np.ndarray, "rows 6"],
    ) -> None:
        self._path, self._images, self._values = path, images, values

    def __len__(self) -> int:
        return len(self._images)

    def latents(self, rows: Int64[np.ndarray, "*rows"]) -> Float64[np.ndarray, "*rows 5"]:
        """Shape 1 to 3, scale, orientation in radians, x and y in [0, 1]."""
        return self._values[rows, 1:]

    def cover(self, rows: Int64[np.ndarray, "*rows"]) -> UInt8[np.ndarray, "*rows height width"]:
        """Of each row the pixels, 1 where the shape is."""
        pixels = self._images[rows].astype(np.uint8)
        if (pixels > 1).any():
            row = int(rows[(pixels > 1).any(axis=(-2, -1))][0])
            raise DataError(f"{self._path}['imgs'][{row}]: expected pixels of 0 or 1, got {pixels.max()}")
        return pixels


def read_shapes(path: Path) -> FileShapes:
    """The shapes of a dSprites file; its images take as much disk as they have pixels, 3 GB, if they are compressed.

    Raises:
        DataError: No such file, or something else.
    """
    images, values = map_array(path, "imgs"), map_array(path, "latents_values")
    size = images.shape[1:]
    if images.dtype not in (np.uint8, np.bool_) or len(size) != 2 or size[0] != size[1] or images.size == 0:
        raise DataError(f"{path}['imgs']: expected uint8 of shape (N, side, side), got {_written(images)}")
    if values.dtype.kind != "f" or values.shape != (len(images), NUM_LATENTS):
        expected = (len(images), NUM_LATENTS)
        raise DataError(f"{path}['latents_values']: expected floats of shape {expected}, got {_written(values)}")
    latents = np.asarray(values, np.float64)
    if not np.isfinite(latents).all() or not np.isin(latents[:, 1], (1, 2, 3)).all():
        raise DataError(f"{path}['latents_values']: expected finite numbers and shapes 1, 2 or 3, got others")
    if not any(images[row].any() for row in range(len(images))):
        raise DataError(f"{path}['imgs']: expected shapes, got black images")
    return FileShapes(path, images, latents)


def _written(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
