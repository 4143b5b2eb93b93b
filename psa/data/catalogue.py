"""From what a user names, a generator, a folder or a file, to the data set that reads it."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from psa.data.description import SceneDataset
from psa.data.folder import IMAGE_SUFFIXES, FolderScenes
from psa.data.hdf5 import Hdf5Scenes
from psa.data.options import require_choice
from psa.data.prepare import Preparation
from psa.data.splits import SPLITS
from psa.data.sprites import SpriteOptions, Sprites
from psa.data.tfrecords import TFRECORD_SUFFIXES, TfrecordScenes, find_shards
from psa.errors import ConfigError, DataError

DATASETS = {"sprites": "squares, circles and triangles of colliding colours that occlude one another"}
HDF5_SUFFIXES = (".h5", ".hdf5")
FILE_SUFFIXES = (*HDF5_SUFFIXES, *TFRECORD_SUFFIXES)
READER_OPTIONS = tuple(field.name for field in fields(Preparation))
SPRITE_OPTIONS = tuple(field.name for field in fields(SpriteOptions))


def open_dataset(name_or_path: str | Path, split: str = "train", **options: Any) -> SceneDataset:
    """Opens a generator of ``DATASETS`` by its name, a folder of pictures or TFRecords, or an HDF5 or TFRecord file.

    Args:
        name_or_path: a name of ``DATASETS`` comes before a folder called the same; write ./NAME for the folder.
        split: train, val, test, or all that a folder or file holds.
        options: for sprites seed, num_scenes and the fields of ``SpriteOptions``; for a path size and crop.

    Raises:
        DataError: nothing of that name, or something that cannot be read.
        ConfigError: an unknown split or option, or a value outside an option's support.
    """
    require_choice("split", split, SPLITS)
    if name_or_path == "sprites":
        return _open_sprites(split, options)
    path = Path(name_or_path)
    suffix = path.suffix.lower()
    if not (path.is_dir() or (path.is_file() and suffix in FILE_SUFFIXES)):
        found = "a file of another kind" if path.exists() else "nothing of that name"
        raise DataError(
            f"{name_or_path}: expected a data set ({', '.join(DATASETS)}), a folder of images, "
            f"or a file ending in {', '.join(FILE_SUFFIXES[:-1])} or {FILE_SUFFIXES[-1]}, found {found}"
        )
    _require_known(options, READER_OPTIONS, str(name_or_path))
    preparation = Preparation.from_options(**options)
    if path.is_file() and suffix in HDF5_SUFFIXES:
        return Hdf5Scenes(path, split, preparation)
    if path.is_file() or find_shards(path):
        return TfrecordScenes(path, split, preparation)
    return FolderScenes(path, split, preparation)


def open_images(path: str | Path, **options: Any) -> SceneDataset:
    """Opens everything in one PNG or JPEG file, or what else ``open_dataset`` opens by a path; options as there.

    Raises:
        DataError: nothing of that name, or something that cannot be read.
        ConfigError: an unknown option, or a value outside an option's support.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        _require_known(options, READER_OPTIONS, str(path))
        return FolderScenes(path, "all", Preparation.from_options(**options))
    return open_dataset(path, "all", **options)


def _open_sprites(split: str, options: Mapping[str, Any]) -> Sprites:
    _require_known(options, ("seed", "num_scenes", *SPRITE_OPTIONS), "sprites")
    look = {name: value for name, value in options.items() if name in SPRITE_OPTIONS}
    stream = {name: value for name, value in options.items() if name not in SPRITE_OPTIONS}
    return Sprites(SpriteOptions(**look), split, **stream)


def _require_known(options: Iterable[str], allowed: tuple[str, ...], source: str) -> None:
    for option in options:
        if option not in allowed:
            raise ConfigError(f"data.{option}: no such option for {source}, expected {', '.join(allowed)}")
