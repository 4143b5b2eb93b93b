"""A user's folder of PNG or JPEG pictures, with or without a mask for each.

Layouts: pictures in DIR or DIR/images with masks in DIR/masks, divided by a fixed permutation of the sorted names; or
DIR/{train,val,test}/images and .../masks. ``image`` and ``mask`` do as well. A mask is a PNG with its picture's stem.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

from psa.data.description import DatasetInfo, Scene, SceneDataset
from psa.data.image_files import read_image, read_labels, read_size
from psa.data.prepare import Preparation
from psa.data.splits import split_indices
from psa.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MASK_SUFFIXES = (".png",)


@dataclass(frozen=True)
class _Item:
    image: Path
    mask: Path | None


class FolderScenes(SceneDataset):
    """The pictures of a folder, or a single one: headers are read at once, pixels when an item is asked for."""

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        root = Path(path)
        self._preparation = preparation or Preparation()
        try:
            self._items = _find_items(root, split)
        except OSError as error:
            raise DataError(f"{root}: expected a folder that can be listed, got {error.strerror}") from error
        self._sizes = [_item_size(item) for item in self._items]
        self.info = DatasetInfo(
            kind="scenes",
            name=root.resolve().name,
            size=self._common_size(),
            background_labels=(0,) if self._items[0].mask else (),
            num_slots=None,
        )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        item, size = self._items[index], self._sizes[index]
        image = read_image(item.image)
        _require_size(item.image, image.shape[:2], size, "as its header said")
        if item.mask is None:
            return Scene(self._preparation.image(image))
        labels = read_labels(item.mask)
        _require_size(item.mask, labels.shape, size, f"as its image {item.image.name}")
        return Scene(self._preparation.image(image), self._preparation.mask(labels))

    def source(self, index: SupportsIndex) -> str:
        """The picture's path."""
        return str(self._items[index].image)

    def _common_size(self) -> tuple[int, int]:
        sizes = [self._preparation.result_size(*size) for size in self._sizes]
        for item, size in zip(self._items, sizes, strict=True):
            if size != sizes[0]:
                raise DataError(
                    f"{item.image}: expected {_written(sizes[0])} like {self._items[0].image.name}, "
                    f"got {_written(size)}; data.size=... makes all images one size"
                )
        return sizes[0]


def _find_items(root: Path, split: str) -> list[_Item]:
    if root.is_file():
        return [_Item(root, None)]
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of images, found none of that name")
    splits = [name for name in ("train", "val", "test") if _subfolder(root / name, "image")]
    if not splits:
        items = _pair(root)
        return [items[i] for i in split_indices(len(items), split, str(root))]
    if split not in (*splits, "all"):
        raise DataError(f"{root}: expected a folder {split}/images for split {split!r}, found {', '.join(splits)} only")
    items = [item for name in splits if split in (name, "all") for item in _pair(root / name)]
    _require_masks(items, any(item.mask for item in items))
    return items


def _pair(folder: Path) -> list[_Item]:
    images = _pictures(_subfolder(folder, "image") or folder, IMAGE_SUFFIXES)
    if not images:
        raise DataError(
            f"{folder}: expected PNG or JPEG images in it, in its images folder, "
            "or in train/images, val/images and test/images, found none"
        )
    mask_folder = _subfolder(folder, "mask")
    masks = {path.stem: path for path in _pictures(mask_folder, MASK_SUFFIXES)} if mask_folder else {}
    items = [_Item(image, masks.get(image.stem)) for image in images]
    _require_masks(items, bool(masks))
    return items


def _require_masks(items: Sequence[_Item], expected: bool) -> None:
    without = [item.image for item in items if item.mask is None]
    if expected and without:
        raise DataError(
            f"{without[0]}: expected a mask {without[0].stem}.png, since the folder has masks, found none "
            f"({len(without)} of {len(items)} images lack one)"
        )


def _subfolder(folder: Path, name: str) -> Path | None:
    """The folder's ``images`` or ``image`` (``masks`` or ``mask``), if it has one."""
    return next((path for path in (folder / f"{name}s", folder / name) if path.is_dir()), None)


def _pictures(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """By name; hidden files, such as the ``._x.png`` that macOS leaves, are no pictures."""
    paths = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
    return sorted(path for path in paths if path.is_file())


def _item_size(item: _Item) -> tuple[int, int]:
    size = read_size(item.image)
    if item.mask:
        _require_size(item.mask, read_size(item.mask), size, f"as its image {item.image.name}")
    return size


def _require_size(path: Path, got: tuple[int, ...], expected: tuple[int, int], why: str) -> None:
    if got != expected:
        raise DataError(f"{path}: expected {_written(expected)} {why}, got {_written(got)}")


def _written(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]} (height x width)"
