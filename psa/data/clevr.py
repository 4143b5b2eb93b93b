"""CLEVR v1.0: pictures in images/{train,val,test}, what is in them in scenes/CLEVR_{split}_scenes.json; no masks."""

from pathlib import Path

import numpy as np

from psa.data.clevr_objects import COLORS, ObjectCodes, object_factors
from psa.data.json_files import read_json, take
from psa.data.pictures import PictureScenes, list_pictures
from psa.data.prepare import Preparation
from psa.errors import DataError
from psa.progress import watched

CODES = ObjectCodes(
    {
        "shape": ("cube", "sphere", "cylinder"),
        "size": ("small", "large"),
        "material": ("rubber", "metal"),
        "color": COLORS,
    },
    max_objects=10,
)


class ClevrScenes(PictureScenes):
    """The pictures of one split, or of all three; those of test have no factors, since its scenes are not published.

    Factors: ``ObjectCodes.factors`` of ``CODES``; row e is object e of the scene file.
    """

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        root = Path(path)
        splits = [name for name in ("train", "val", "test") if split == name or (split == "all" and _has(root, name))]
        pictures = [picture for name in splits for picture in list_pictures(root / "images" / name)]
        if not pictures:
            raise DataError(f"{root / 'images'}: expected folders train, val and test, found none of them")
        self._scenes: dict[str, tuple[object, str]] = {}
        for name in splits:
            self._scenes |= _read_scenes(root / "scenes" / f"CLEVR_{name}_scenes.json")
        super().__init__(
            pictures,
            preparation,
            name=root.resolve().name,
            background_labels=(),
            num_slots=CODES.max_objects + 1,
            factors=CODES.factors(),
        )

    def _factors(self, position: int) -> dict[str, np.ndarray] | None:
        picture = self._pictures[position]
        if picture.name not in self._scenes:
            if picture.parent.name == "test":
                return None
            raise DataError(f"{picture}: expected a scene of this name in the folder scenes, found none")
        scene, source = self._scenes[picture.name]
        return object_factors(scene, CODES, source)


def recognises(path: Path) -> bool:
    """Whether it is a folder with images, and with scenes of which one is called as CLEVR's are."""
    return (path / "images").is_dir() and any((path / "scenes").glob("CLEVR_*_scenes.json"))


def _has(root: Path, split: str) -> bool:
    return (root / "images" / split).is_dir()


def _read_scenes(path: Path) -> dict[str, tuple[object, str]]:
    """Each scene by its picture's name, with what to name in errors; none where there is no file for the test split."""
    if path.name == "CLEVR_test_scenes.json" and not path.exists():
        return {}
    found: dict[str, tuple[object, str]] = {}
    for i, scene in enumerate(watched(take(read_json(path), "scenes", list, str(path)), f"opening {path.name}")):
        source = f"{path}: scene {i}"
        name = take(scene, "image_filename", str, source)
        found[name] = ({"objects": scene.get("objects")}, source)  # without their relations, most of the file
    return found
