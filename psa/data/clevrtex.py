"""ClevrTex and its variants: CLEVRTEX_{variant}_%06d.png in numbered folders, beside each its _flat.png mask and .json.

A folder holds one variant: full, pbg, vbg, grassbg, camo or outd. By number, the first tenth is for test, the second
for validation; outd, which nothing is trained on, is for test alone.
"""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from psa.data.clevr_objects import COLORS, ObjectCodes, name_code, object_factors
from psa.data.image_files import read_labels
from psa.data.json_files import read_json, take
from psa.data.pictures import PictureScenes, listed
from psa.data.prepare import Preparation
from psa.errors import DataError
from psa.progress import watched

PICTURE = re.compile(r"CLEVRTEX_(full|pbg|vbg|grassbg|camo|outd)_(\d{6})\.png")
CHUNK = re.compile(r"\d+")
MAX_OBJECTS = 10
SHAPES = ("cube", "sphere", "cylinder", "monkey", "cone", "icosahedron", "torus", "teapot")  # the last four in outd


class ClevrTexScenes(PictureScenes):
    """The scenes of one variant; mask label e + 1 is row e of the factors, 0 is the background.

    Factors: those of ``object_factors``; ``color`` in vbg alone, since elsewhere it is not what is seen; and
    ``ground_material``. A small, medium or large object has radius 0.4, 0.6 or 0.9 in scene units (outd 0.6, 0.8, 1.0).
    """

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        root = Path(path)
        variant, pictures = _find_pictures(root)
        self._codes = _codes(variant)
        super().__init__(
            _of_split(pictures, split, variant, root),
            preparation,
            name=f"clevrtex_{variant}",
            background_labels=(0,),
            num_slots=MAX_OBJECTS + 1,
            factors=self._codes.factors() | {"ground_material": "the CRC-32 of the name"},
        )

    def _labels(self, position: int) -> tuple[str, Int64[np.ndarray, "height width"]]:
        picture = self._pictures[position]
        mask = picture.with_name(f"{picture.stem}_flat.png")
        return str(mask), read_labels(mask)

    def _factors(self, position: int) -> dict[str, np.ndarray]:
        path = self._pictures[position].with_suffix(".json")
        scene = read_json(path)
        ground = name_code(take(scene, "ground_material", str, str(path)), (), str(path))
        return object_factors(scene, self._codes, str(path)) | {"ground_material": np.array(ground)}


def recognises(path: Path) -> bool:
    """Whether it is a folder of numbered folders, or of none, with a picture called as ClevrTex's are."""
    return any(PICTURE.fullmatch(file.name) for folder in _chunks(path)[:1] for file in listed(folder))


def _chunks(root: Path) -> list[Path]:
    """The numbered folders in a folder, in their order; itself where there are none, nothing of what is no folder."""
    if not root.is_dir():
        return []
    chunks = [folder for folder in listed(root) if CHUNK.fullmatch(folder.name) and folder.is_dir()]
    return sorted(chunks, key=lambda folder: int(folder.name)) or [root]


def _find_pictures(root: Path) -> tuple[str, list[Path]]:
    """The variant and its pictures by number."""
    found: dict[tuple[str, int], Path] = {}
    folders = watched(_chunks(root), f"opening {root.name}, folders")
    for path in (path for folder in folders for path in listed(folder)):
        name = PICTURE.fullmatch(path.name)
        if name is None:
            continue
        key = name[1], int(name[2])
        if key in found:
            raise DataError(f"{path}: expected each number once, found {found[key]} too")
        found[key] = path
    variants = sorted({variant for variant, _ in found})
    if len(variants) != 1:
        names = ", ".join(variants) or "none"
        raise DataError(f"{root}: expected pictures CLEVRTEX_*_000000.png of one variant, found {names}")
    return variants[0], [found[key] for key in sorted(found)]


def _of_split(pictures: list[Path], split: str, variant: str, root: Path) -> list[Path]:
    if split == "all" or (variant == "outd" and split == "test"):
        return pictures
    if variant == "outd":
        raise DataError(f"{root}: expected split test or all, since outd is not for training, got {split}")
    count = len(pictures)
    first, second = count // 10, 2 * count // 10
    part = {"test": pictures[:first], "val": pictures[first:second], "train": pictures[second:]}[split]
    if not part:
        raise DataError(f"{root}: expected at least 10 scenes to divide into test, val and train, got {count}")
    return part


def _codes(variant: str) -> ObjectCodes:
    names = {"shape": SHAPES, "size": ("small", "medium", "large"), "material": ()}
    return ObjectCodes(names | {"color": COLORS} if variant == "vbg" else names, MAX_OBJECTS)
