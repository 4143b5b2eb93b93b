"""Files of tokens as a data set of points: .npy or .npz, numbers (images, tokens, features), perhaps with labels."""

from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from psa.data.description import DatasetInfo, Points, PointsDataset
from psa.data.splits import split_indices
from psa.data.token_files import NUMPY_SUFFIXES, checked_tokens, map_labels, map_tokens, require_file
from psa.errors import DataError

LARGEST = float(np.finfo(np.float32).max)


class TokenPoints(PointsDataset):
    """The images of one file, divided by a fixed permutation; their tokens stay on the disk until one is asked for."""

    def __init__(self, path: str | Path, split: str = "train") -> None:
        self._path = Path(path)
        require_file(self._path)
        self._rows = split_indices(len(self._tokens), split, str(path))
        most = None if self._labels is None else int(self._labels.max())
        self.info = DatasetInfo("points", self._path.stem, None, (), None if most is None else most + 1)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is mapped: another process maps the file for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_tokens", "_labels")}

    @cached_property
    def _tokens(self) -> NDArray[Any]:
        return map_tokens(self._path)

    @cached_property
    def _labels(self) -> NDArray[np.integer] | None:
        return self._checked_labels()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Points:
        row = int(self._rows[index])
        tokens = checked_tokens(self.source(index), self._tokens[row], LARGEST).astype(np.float32)
        labels = None if self._labels is None else self._labels[row].astype(np.int64)
        return Points(tokens, labels)

    def source(self, index: SupportsIndex) -> str:
        """The file with the number of the image in it."""
        return f"{self._path}[{self._rows[index]}]"

    def _checked_labels(self) -> NDArray[np.integer] | None:
        """(images, tokens), from 0."""
        labels = map_labels(self._path)
        if labels is None:
            return None
        shape = self._tokens.shape[:2]
        if labels.dtype.kind not in "bui" or labels.shape not in (shape, shape[1:] if shape[0] == 1 else shape):
            got = f"{labels.dtype} of shape {labels.shape}"
            raise DataError(f"{self._path}['labels']: expected integers of shape {shape}, got {got}")
        if labels.min() < 0 or labels.max() >= 1 << 31:
            got = f"{labels.min()} to {labels.max()}"
            raise DataError(f"{self._path}['labels']: expected labels from 0, below {1 << 31}, got {got}")
        found: Int64[np.ndarray, "images tokens"] = labels.reshape(shape)
        return found


def recognises(path: Path) -> bool:
    """Whether it is a file that NumPy's names end as: those of images, and of pickles, are to be asked for first."""
    return path.suffix.lower() in NUMPY_SUFFIXES and path.is_file()
