"""PASCAL VOC 2012's segmentation task: JPEGImages, ImageSets/Segmentation, SegmentationObject and SegmentationClass."""

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from psa.data.image_files import read_labels
from psa.data.labels import VOID
from psa.data.name_lists import read_names
from psa.data.options import require_choice
from psa.data.pictures import PictureScenes
from psa.data.prepare import Preparation
from psa.data.splits import hold_out
from psa.errors import DataError

MASKS = {"instance": "SegmentationObject", "class": "SegmentationClass"}
NUM_CLASSES = 20
LISTS = Path("ImageSets", "Segmentation")


class VocScenes(PictureScenes):
    """The segmented pictures: test is the challenge's val.txt, val a fixed tenth of train.txt, train the others.

    The challenge's own test set has no published masks. Void pixels, the rims of objects, keep their label 255, which
    the description counts among the background's: measures that leave out the background leave them out.

    Args:
        path: The folder VOC2012.
        split: train, val, test or all.
        preparation: What is done to each picture and mask; pictures differ in size, so it should give one.
        masks: instance, labels 1, 2, ... for the objects of a picture; or class, 1 to 20 in alphabetical order.
    """

    mask_options = tuple(MASKS)

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        preparation: Preparation | None = None,
        masks: str = "instance",
    ) -> None:
        root = Path(path)
        self._masks = root / MASKS[require_choice("masks", masks, MASKS)]
        super().__init__(
            [root / "JPEGImages" / f"{name}.jpg" for name in _names(root, split)],
            preparation,
            name=root.resolve().name,
            background_labels=(0, VOID),
            num_slots=NUM_CLASSES + 1 if masks == "class" else None,
            label_kind=masks,
        )

    def _labels(self, position: int) -> tuple[str, Int64[np.ndarray, "height width"]]:
        path = self._masks / f"{self._pictures[position].stem}.png"
        return str(path), read_labels(path)


def recognises(path: Path) -> bool:
    """Whether it is a folder with JPEGImages and the lists of the segmentation task."""
    return (path / "JPEGImages").is_dir() and (path / LISTS).is_dir()


def _names(root: Path, split: str) -> list[str]:
    train, test = root / LISTS / "train.txt", root / LISTS / "val.txt"
    if split == "test":
        return read_names(test)
    names = read_names(train)
    if split != "all":
        return [names[i] for i in hold_out(len(names), split, str(train))]
    both = read_names(test)
    if repeated := set(names).intersection(both):
        raise DataError(f"{test}: expected no picture of train.txt, found {min(repeated)}")
    return names + both
