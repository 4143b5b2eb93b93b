"""Scenes of which each is a picture's file: what the readers of folders share. They differ in what belongs to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64

from psa.data.description import DatasetInfo, Scene, SceneDataset
from psa.data.image_files import read_image, read_size
from psa.data.labels import require_labels
from psa.data.prepare import Preparation
from psa.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class PictureScenes(SceneDataset):
    """Pictures in a fixed order; the first one's header tells the size, pixels are read when an item is asked for.

    Args:
        pictures: Their files, at least one.
        preparation: What is done to each and its mask.
        described: The fields of ``DatasetInfo`` beside kind and size.
    """

    def __init__(self, pictures: Sequence[Path], preparation: Preparation | None, **described: Any) -> None:
        self._pictures = pictures
        self._preparation = preparation or Preparation()
        size = self._preparation.result_size(*read_size(pictures[0]))
        self.info = DatasetInfo(kind="scenes", size=size, **described)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        position = range(len(self))[index]
        image = read_image(self._pictures[position])
        self._require_common(position, image.shape[:2])
        mask, found = None, self._labels(position)
        if found is not None:
            source, labels = found
            require_size(source, labels.shape, image.shape[:2], f"as its image {self._pictures[position].name}")
            require_labels(labels, self.info, source)
            mask = self._preparation.mask(labels)
        return Scene(self._preparation.image(image), mask, self._factors(position))

    def source(self, index: SupportsIndex) -> str:
        """The picture's path."""
        return str(self._pictures[int(index)])

    def _require_common(self, position: int, size: tuple[int, ...]) -> None:
        """Refuse a picture of another size than the first one's, once both are prepared."""
        why = "as its header said" if position == 0 else f"like {self._pictures[0].name}"
        hint = "; data.size=... makes all images one size"
        assert self.info.size is not None
        require_size(str(self._pictures[position]), self._preparation.result_size(*size), self.info.size, why, hint)

    def _labels(self, position: int) -> tuple[str, Int64[np.ndarray, "height width"]] | None:
        """What to name in errors about a picture's mask, and the mask; None where there are no masks."""
        return None

    def _factors(self, position: int) -> dict[str, np.ndarray] | None:
        return None


def listed(folder: Path) -> list[Path]:
    """What a folder holds, by name; hidden files, such as the ``._x.png`` that macOS leaves, are left out.

    Raises:
        DataError: It is no folder that can be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise DataError(f"{folder}: expected a folder that can be listed, got {error.strerror}") from error


def list_pictures(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """The pictures in a folder, not below it, by name.

    Raises:
        DataError: It is no folder that can be listed, or a picture's name is no file's.
    """
    found = [path for path in listed(folder) if path.suffix.lower() in suffixes and not path.is_dir()]
    for path in found:
        if not path.is_file():
            raise DataError(f"{path}: expected a picture, found a link that leads nowhere or no regular file")
    return found


def require_size(source: str, got: tuple[int, ...], expected: tuple[int, int], why: str, hint: str = "") -> None:
    """Refuse a size (height, width) that is not the expected one; the error says why that one, and may give a hint."""
    if got != expected:
        raise DataError(f"{source}: expected {_written(expected)} {why}, got {_written(got)}{hint}")


def _written(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]} (height x width)"
