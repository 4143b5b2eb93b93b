"""Sprites of Brady et al. (2023, Provably Learning Object-Centric Representations), as their generator saves them.

An .npz of unnamed arrays: ``arr_0`` images, ``arr_1`` five factors an object, ``arr_2`` the number of objects. No
masks.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from psa.data.description import DatasetInfo, Scene, SceneDataset
from psa.data.npz_arrays import array_names, map_array
from psa.data.prepare import Preparation
from psa.data.splits import split_indices
from psa.errors import DataError

IMAGES, FACTORS, COUNTS = "arr_0", "arr_1", "arr_2"
FACTOR_NAMES = {
    "x": "of the middle, in [0, 1]",
    "y": "of the middle, in [0, 1], from the bottom",
    "scale": "side as a fraction of the image's",
    "hue": "in turns, in [0, 1)",
    "shape": "a code of the file's",
}
COUNT_NAMES = {"visibility": "1 where there is an object, else 0", "num_objects": "how many objects, of the scene"}


class BradyScenes(SceneDataset):
    """The scenes of one file, divided by a fixed permutation; images stay on the disk until an item is asked for.

    Factors of K objects: x, y in [0, 1] (y up), scale (the side as a fraction of the image's), hue in turns in [0, 1),
    shape a code of the file's, zeros for absent objects; visibility 0 or 1 and num_objects, where the file tells how
    many there are.
    """

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        self._path = Path(path)
        self._preparation = preparation or Preparation()
        self._require_layout()
        self._rows = split_indices(len(self._images), split, str(path))
        self.info = DatasetInfo(
            kind="scenes",
            name=self._path.stem,
            size=self._preparation.result_size(*self._images.shape[1:3]),
            background_labels=(),
            num_slots=None if self._factors is None else self._factors.shape[1] + 1,
            factors=({} if self._factors is None else FACTOR_NAMES) | ({} if self._counts is None else COUNT_NAMES),
        )

    def __getstate__(self) -> dict[str, Any]:
        """All but what is mapped: another process maps the file for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_images", "_factors", "_counts")}

    @cached_property
    def _images(self) -> NDArray[Any]:
        return map_array(self._path, IMAGES)

    @cached_property
    def _factors(self) -> NDArray[Any] | None:
        return self._mapped(FACTORS)

    @cached_property
    def _counts(self) -> NDArray[Any] | None:
        return self._mapped(COUNTS)

    def _mapped(self, name: str) -> NDArray[Any] | None:
        return map_array(self._path, name) if name in array_names(self._path) else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        row = int(self._rows[index])
        image: UInt8[np.ndarray, "height width 3"] = np.array(self._images[row])
        return Scene(self._preparation.image(image), None, self._factors_of(row) or None)

    def source(self, index: SupportsIndex) -> str:
        """The file with the row of the scene in it."""
        return f"{self._path}[{self._rows[index]}]"

    def _factors_of(self, row: int) -> dict[str, np.ndarray]:
        factors: dict[str, np.ndarray] = {}
        if self._factors is not None:
            values = np.array(self._factors[row])
            if not np.isfinite(values).all():
                raise DataError(f"{self._path}[{row}]: {FACTORS!r}: expected finite numbers, got others")
            factors |= dict(zip(FACTOR_NAMES, values.T, strict=True))
        if self._counts is not None:
            count = int(self._counts.reshape(-1)[row])
            most = count if self._factors is None else self._factors.shape[1]
            if not 0 <= count <= most:
                raise DataError(f"{self._path}[{row}]: {COUNTS!r}: expected from 0 to {most} objects, got {count}")
            factors |= {"num_objects": np.array(count), "visibility": (np.arange(most) < count).astype(np.int64)}
        return factors

    def _require_layout(self) -> None:
        images, factors, counts = self._images, self._factors, self._counts
        rows = len(images) if images.ndim else 0
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise self._refusal(IMAGES, "uint8 of shape (N, H, W, 3)", images)
        if factors is not None and (factors.ndim != 3 or factors.shape[::2] != (rows, len(FACTOR_NAMES))):
            raise self._refusal(FACTORS, f"numbers of shape ({rows}, K, {len(FACTOR_NAMES)})", factors)
        if counts is not None and (counts.dtype.kind not in "iu" or counts.shape not in ((rows,), (rows, 1))):
            raise self._refusal(COUNTS, f"integers of shape ({rows},)", counts)

    def _refusal(self, name: str, expected: str, got: np.ndarray) -> DataError:
        return DataError(f"{self._path}: {name!r}: expected {expected}, got {got.dtype} of shape {got.shape}")


def recognises(path: Path) -> bool:
    """Whether it is an .npz that holds unnamed arrays, which a file of tokens does not."""
    return path.suffix.lower() == ".npz" and path.is_file() and array_names(path) >= {IMAGES, FACTORS}
