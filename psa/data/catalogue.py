"""From what a user names, a generator, a folder or a file, to the data set that reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psa.data import (
    brady,
    clevr,
    clevrtex,
    coco,
    dsprites,
    folder,
    hdf5,
    pickles,
    shapestacks,
    tfrecords,
    token_points,
    voc,
    webdataset,
)
from psa.data.brady import BradyScenes
from psa.data.clevr import ClevrScenes
from psa.data.clevrtex import ClevrTexScenes
from psa.data.coco import CocoScenes
from psa.data.description import PointsDataset, SceneDataset
from psa.data.dsprites import DspritesScenes
from psa.data.folder import FolderScenes
from psa.data.hdf5 import HDF5_SUFFIXES, Hdf5Scenes
from psa.data.named import DATASETS, READER_OPTIONS, require_known
from psa.data.options import require_choice
from psa.data.pictures import IMAGE_SUFFIXES
from psa.data.prepare import Preparation
from psa.data.shapestacks import ShapeStacksScenes
from psa.data.splits import SPLITS
from psa.data.tfrecords import TFRECORD_SUFFIXES, TfrecordScenes
from psa.data.token_points import TokenPoints
from psa.data.voc import VocScenes
from psa.data.webdataset import WebdatasetScenes
from psa.errors import DataError
from psa.registry import HOW

FILE_SUFFIXES = (*HDF5_SUFFIXES, *TFRECORD_SUFFIXES, ".tar", ".npz", ".npy")


@dataclass(frozen=True)
class Reader:
    """What opens a path of one layout.

    Attributes:
        recognises: whether a path has the layout, from names alone.
        open: takes the path, the split, a ``Preparation`` if it prepares, and its own options by name.
        options: the names of its own options, beside those of ``Preparation``.
        layout: a line for people, "name: what it is made of"; empty where nothing is read.
        prepares: whether it takes a ``Preparation``: what has no pixels is not resized.
    """

    recognises: Callable[[Path], bool]
    open: Callable[..., SceneDataset | PointsDataset]
    options: tuple[str, ...] = ()
    layout: str = ""
    prepares: bool = True


# The first that recognises a path opens it.
READERS = (
    Reader(hdf5.recognises, Hdf5Scenes, layout="HDF5: one .h5 or .hdf5 file of images, masks and factors"),
    Reader(
        tfrecords.recognises,
        TfrecordScenes,
        layout="TFRecords: DeepMind's multi-object data sets, one .tfrecord(s) file or a folder of them",
    ),
    Reader(
        clevrtex.recognises, ClevrTexScenes, layout="ClevrTex: numbered folders of one variant, with masks and factors"
    ),
    Reader(
        clevr.recognises, ClevrScenes, layout="CLEVR v1.0: images/{train,val,test} and scenes/*.json, without masks"
    ),
    Reader(
        shapestacks.recognises, ShapeStacksScenes, layout="ShapeStacks: recordings/ with masks, and lists of splits"
    ),
    Reader(
        coco.recognises,
        CocoScenes,
        ("masks",),
        layout="COCO 2017: train2017, val2017 and annotations/, with instance or class masks",
    ),
    Reader(
        voc.recognises,
        VocScenes,
        ("masks",),
        layout="PASCAL VOC 2012: JPEGImages and ImageSets/, with instance or class masks",
    ),
    Reader(webdataset.recognises, WebdatasetScenes, layout="webdataset: one .tar shard or a folder of them"),
    Reader(
        dsprites.recognises,
        DspritesScenes,
        dsprites.OPTIONS,
        layout="dSprites: the .npz of single shapes, composed into Multi-dSprites scenes",
    ),
    Reader(brady.recognises, BradyScenes, layout="Brady et al. sprites: the .npz of images and factors, without masks"),
    Reader(pickles.recognises, pickles.refuse),
    Reader(
        token_points.recognises,
        TokenPoints,
        layout="tokens: a NumPy file of numbers (images, tokens, features), .npy, or .npz with or without labels",
        prepares=False,
    ),
    Reader(folder.recognises, FolderScenes, layout="folder: PNG or JPEG images, with or without a mask for each"),
)


def open_dataset(name_or_path: str | Path, split: str = "train", **options: Any) -> SceneDataset | PointsDataset:
    """Opens a data set of ``DATASETS`` by its name, a folder of pictures or TFRecords, or an HDF5 or TFRecord file.

    Args:
        name_or_path: a name of ``DATASETS`` comes before a folder called the same; write ./NAME for the folder.
        split: train, val, test, or all that a folder or file holds.
        options: for a generator seed, num_scenes and the fields of its options (``SpriteOptions``,
            ``Mixture2dOptions``, ``TetrominoOptions``, ``MultiDspritesOptions``); for a path, tetrominoes and
            multi-dsprites size and crop; for COCO and VOC masks; for a dSprites file those of multi-dsprites; for a
            registered one those of its own.

    Raises:
        DataError: nothing of that name, or something that cannot be read.
        ConfigError: an unknown split or option, or a value outside an option's support.
    """
    require_choice("split", split, SPLITS)
    if name_or_path in DATASETS:
        source = DATASETS[str(name_or_path)]
        source.require_known(options, str(name_or_path))
        return source.open(split, **options)
    path = Path(name_or_path)
    try:
        return _open_path(path, split, options)
    except OSError as error:  # a folder on the way may not be looked into
        raise DataError(f"{error.filename or path}: expected what can be read, got {error.strerror}") from error


def open_images(path: str | Path, **options: Any) -> SceneDataset:
    """Opens everything in one PNG or JPEG file, or what else ``open_dataset`` opens by a path; options as there.

    Raises:
        DataError: nothing of that name, or something that cannot be read.
        ConfigError: an unknown option, or a value outside an option's support.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        require_known(options, READER_OPTIONS, str(path))
        return FolderScenes(path, "all", Preparation.from_options(**options))
    dataset = open_dataset(path, "all", **options)
    if not isinstance(dataset, SceneDataset):
        raise DataError(f"{path}: expected images, found points")
    return dataset


def find_reader(path: Path) -> Reader | None:
    """What opens a path, told by names alone; None where nothing does."""
    return next((reader for reader in READERS if reader.recognises(path)), None)


def _open_path(path: Path, split: str, options: dict[str, Any]) -> SceneDataset | PointsDataset:
    reader = find_reader(path)
    if reader is None:
        found = "a file of another kind" if path.exists() else "nothing of that name"
        hint = "" if path.exists() or path.suffix or path.parts[1:] else HOW
        raise DataError(
            f"{path}: expected a data set ({', '.join(DATASETS)}), a folder of images, "
            f"or a file ending in {', '.join(FILE_SUFFIXES[:-1])} or {FILE_SUFFIXES[-1]}, found {found}{hint}"
        )
    require_known(options, (*(READER_OPTIONS if reader.prepares else ()), *reader.options), str(path))
    own = {name: options.pop(name) for name in reader.options if name in options}
    prepared = (Preparation.from_options(**options),) if reader.prepares else ()
    return reader.open(path, split, *prepared, **own)
