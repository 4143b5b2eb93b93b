"""A user's folder of PNG or JPEG pictures, with or without a mask for each.

Layouts: pictures in DIR or DIR/images with masks in DIR/masks, divided by a fixed permutation of the sorted names; or
DIR/{train,val,test}/images and .../masks. ``image`` and ``mask`` do as well. A mask is a PNG with its picture's stem.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from psa.data.image_files import read_labels, read_size
from psa.data.pictures import PictureScenes, list_pictures, require_size
from psa.data.prepare import Preparation
from psa.data.splits import split_indices
from psa.errors import DataError
from psa.progress import watched

MASK_SUFFIXES = (".png",)


@dataclass(frozen=True)
class _Item:
    image: Path
    mask: Path | None


class FolderScenes(PictureScenes):
    """The pictures of a folder, or a single one: headers are read at once, pixels when an item is asked for.

    In a mask of 0 and 255 alone, 255 is one object; labels need not follow one another.
    """

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        root = Path(path)
        try:
            self._items = _find_items(root, split)
        except OSError as error:
            raise DataError(
                f"{error.filename or root}: expected a folder that can be listed, got {error.strerror}"
            ) from error
        super().__init__(
            [item.image for item in self._items],
            preparation,
            name=root.resolve().name,
            background_labels=(0,) if self._items[0].mask else (),
            num_slots=None,
        )
        for position, item in enumerate(watched(self._items, f"opening {root.name}")):
            self._require_common(position, _item_size(item))

    def _labels(self, position: int) -> tuple[str, Int64[np.ndarray, "height width"]] | None:
        mask = self._items[position].mask
        return None if mask is None else (str(mask), read_labels(mask))


def recognises(path: Path) -> bool:
    """Whether it is a folder: those of other layouts are to be asked for first."""
    return path.is_dir()


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
    images = list_pictures(_subfolder(folder, "image") or folder)
    if not images:
        raise DataError(
            f"{folder}: expected PNG or JPEG images in it, in its images folder, "
            "or in train/images, val/images and test/images, found none"
        )
    mask_folder = _subfolder(folder, "mask")
    masks = _by_stem(list_pictures(mask_folder, MASK_SUFFIXES)) if mask_folder else {}
    if masks:
        _by_stem(images)  # or two would share a mask
    items = [_Item(image, masks.get(image.stem)) for image in images]
    _require_masks(items, bool(masks))
    return items


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise DataError(
                f"{path}: expected one file of that stem, since the folder has masks, found {found[path.stem].name}"
            )
        found[path.stem] = path
    return found


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


def _item_size(item: _Item) -> tuple[int, int]:
    size = read_size(item.image)
    if item.mask:
        require_size(str(item.mask), read_size(item.mask), size, f"as its image {item.image.name}")
    return size
