"""ShapeStacks: pictures rgb-*.png and label maps iseg-*.map in recordings/ENV, listed by splits/default/*.txt."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from psa.data.image_files import read_image
from psa.data.name_lists import read_names
from psa.data.pictures import PictureScenes, listed
from psa.data.prepare import Preparation
from psa.errors import DataError
from psa.progress import watched

LISTS = {"train": "train.txt", "val": "eval.txt", "test": "test.txt"}
LEVEL = 32  # of gray, from one label to the next
MAX_OBJECTS = 6
CAMERA = re.compile(r"cam_(\d+)")
# What a recording's name, as env_ccs-hard-h=6-vcom=5-vpsf=0-v=120, tells.
FACTORS = {
    "num_objects": (re.compile(r"-h=(\d+)"), "the stack's objects"),
    "vcom": (
        re.compile(r"-vcom=(\d+)"),
        "number of the object at which the centre of mass makes the stack fall; 0 none",
    ),
    "vpsf": (re.compile(r"-vpsf=(\d+)"), "number of the object at which a surface that is not flat does; 0 none"),
}
CAMERA_FACTOR = {"camera": "number of the camera"}


class ShapeStacksScenes(PictureScenes):
    """All pictures of a split's recordings; mask label 0 is the background, 1 to 6 are the stack's objects.

    A stack is stable where ``vcom`` and ``vpsf`` are 0. Factors that a name does not tell are left out.
    """

    def __init__(self, path: str | Path, split: str = "train", preparation: Preparation | None = None) -> None:
        root = Path(path)
        lists = [root / "splits" / "default" / name for key, name in LISTS.items() if split in (key, "all")]
        recordings = dict.fromkeys(name for file in lists for name in read_names(file))
        pictures = [
            picture
            for name in watched(recordings, f"opening {root.name}, recordings")
            for picture in _pictures(root / "recordings" / name)
        ]
        super().__init__(
            pictures,
            preparation,
            name=root.resolve().name,
            background_labels=(0,),
            num_slots=MAX_OBJECTS + 1,
            factors={name: meaning for name, (_, meaning) in FACTORS.items()} | CAMERA_FACTOR,
        )

    def _labels(self, position: int) -> tuple[str, Int64[np.ndarray, "height width"]]:
        path = _map_of(self._pictures[position])
        levels = read_image(path)[..., 0].astype(np.int64)
        labels = (levels + 1) // LEVEL
        # Colour maps of old plotting libraries round down: a label's gray may be one level too dark.
        wrong = levels[~np.isin(LEVEL * labels - levels, (0, 1))]
        if wrong.size:
            raise DataError(f"{path}: expected gray levels that are multiples of {LEVEL}, got {wrong[0]}")
        return str(path), labels

    def _factors(self, position: int) -> dict[str, np.ndarray] | None:
        picture = self._pictures[position]
        found = {name: pattern.search(picture.parent.name) for name, (pattern, _) in FACTORS.items()}
        found["camera"] = CAMERA.search(picture.name)
        return {name: np.array(int(match[1][:9])) for name, match in found.items() if match} or None


def recognises(path: Path) -> bool:
    """Whether it is a folder with recordings and the lists of the default splits."""
    return (path / "recordings").is_dir() and (path / "splits" / "default").is_dir()


def _pictures(folder: Path) -> list[Path]:
    found = [path for path in listed(folder) if path.name.startswith("rgb-") and path.suffix.lower() == ".png"]
    if not found:
        raise DataError(f"{folder}: expected pictures rgb-*.png, found none")
    return found


def _map_of(picture: Path) -> Path:
    """The labels of a picture, or, since labels do not depend on light and texture, of its camera's original ones."""
    own = picture.with_name(f"iseg-{picture.stem.removeprefix('rgb-')}.map")
    camera = CAMERA.search(picture.name)
    if own.exists() or camera is None:
        return own
    return picture.with_name(f"iseg-w=0-f=0-l=0-c=original-{camera[0]}-mono-0.map")
