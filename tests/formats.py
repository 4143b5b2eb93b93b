"""Every container that psa.data reads: how a tiny data set is written into a folder, and how it is opened there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from archives import write_brady, write_dsprites, write_shards, write_tokens
from layouts import LAYOUTS, write_clevr, write_clevrtex, write_coco, write_shapestacks, write_voc
from tfrecord_bytes import example, record
from tfrecord_bytes import write as write_records

from psa.data import Conversion, FolderScenes, Hdf5Scenes, TfrecordScenes, TokenPoints, VocScenes, convert
from psa.data.brady import BradyScenes
from psa.data.dsprites import DspritesScenes
from psa.data.webdataset import WebdatasetScenes

Format = tuple[Callable[[Path], object], Callable[[Path], Any]]


def _write_split_folder(root: Path) -> None:
    for split in ("train", "val", "test"):
        tiny.write_folder(root / split, 1)


def _write_records(root: Path, packed: bool) -> None:
    payloads = [example(record("tetrominoes", seed)[0]) for seed in range(3)]
    write_records(root / "a.tfrecords", *payloads, packed=packed)


def _layout(name: str, write: Callable[[Path], object]) -> Format:
    kind = LAYOUTS[name][1]
    return write, lambda root: kind(root, "all")


POINTS = ("tokens", "tokens with labels")  # the formats that hold no scenes
FORMATS: dict[str, Format] = {
    "folder": (lambda root: tiny.write_folder(root, 3), lambda root: FolderScenes(root, "all")),
    "folder with splits": (_write_split_folder, lambda root: FolderScenes(root, "all")),
    "HDF5": (lambda root: tiny.write_hdf5(root / "a.h5", 3), lambda root: Hdf5Scenes(root / "a.h5", "all")),
    "HDF5, converted": (
        lambda root: convert(Conversion("sprites", ("val",), {"num_scenes": 3, "size": 8}), root / "a.h5"),
        lambda root: Hdf5Scenes(root / "a.h5", "val"),
    ),
    "TFRecord": (lambda root: _write_records(root, False), lambda root: TfrecordScenes(root / "a.tfrecords", "all")),
    "TFRecord, GZIP": (
        lambda root: _write_records(root, True),
        lambda root: TfrecordScenes(root / "a.tfrecords", "all"),
    ),
    "CLEVR": _layout("clevr", lambda root: write_clevr(root, 2)),
    "ClevrTex": _layout("clevrtex", lambda root: write_clevrtex(root, 3)),
    "ShapeStacks": _layout("shapestacks", lambda root: write_shapestacks(root, 1)),
    "COCO": _layout("coco", lambda root: write_coco(root, 4)),
    "VOC": _layout("voc", lambda root: write_voc(root, 2)),
    "VOC, classes": (lambda root: write_voc(root, 2), lambda root: VocScenes(root, "all", masks="class")),
    "webdataset": (lambda root: write_shards(root, 4, 8), lambda root: WebdatasetScenes(root, "all")),
    "Brady": (write_brady, lambda root: BradyScenes(root / "sprites.npz", "all")),
    "Brady, compressed": (
        lambda root: write_brady(root, deflated=True),
        lambda root: BradyScenes(root / "sprites.npz", "all"),
    ),
    "tokens": (lambda root: write_tokens(root / "tokens.npy"), lambda root: TokenPoints(root / "tokens.npy", "all")),
    "tokens with labels": (
        lambda root: write_tokens(root / "tokens.npz", deflated=True),
        lambda root: TokenPoints(root / "tokens.npz", "all"),
    ),
    "dSprites": (write_dsprites, lambda root: DspritesScenes(root / "dsprites.npz", num_scenes=3)),
}
