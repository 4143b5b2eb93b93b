"""COCO 2017: pictures in train2017 and val2017, their objects in annotations/instances_*2017.json."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from psa.data.coco_masks import draw, mask_tools
from psa.data.image_files import MAX_PIXELS
from psa.data.json_files import read_json, take
from psa.data.labels import VOID
from psa.data.name_lists import require_name
from psa.data.options import require_choice
from psa.data.pictures import PictureScenes
from psa.data.prepare import Preparation
from psa.data.splits import hold_out
from psa.errors import DataError
from psa.progress import watched

MASKS = ("instance", "class")
KEPT = ("category_id", "segmentation", "iscrowd")  # of an annotation; the files are large


@dataclass(frozen=True)
class _Picture:
    path: Path
    size: tuple[int, int]
    source: str  # where it is described
    objects: list[tuple[dict[str, Any], str]] = field(default_factory=list)  # each with what to name in errors


class CocoScenes(PictureScenes):
    """Pictures with the outlines of their objects: test is val2017, val a fixed tenth of train2017, train the others.

    The challenge's own test set has no published annotations. Where objects overlap, the smaller one is seen. A crowd,
    one outline of many objects, has label 255 in instance masks, which the description counts among the background's.

    Factors: ``num_objects``, crowds not counted; ``category`` of the object of row e, whose instance label is e + 1
    (e + 2 from 255 on), as a code, which is also the label of class masks.

    Args:
        path: The folder that holds annotations.
        split: train, val, test or all.
        preparation: What is done to each picture and mask; pictures differ in size, so it should give one.
        masks: instance, labels 1, 2, ... for the objects of a picture; or class, labels of categories from 1 in the
            order of their ids (80 in COCO, whose ids have gaps).
    """

    mask_options = MASKS

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        preparation: Preparation | None = None,
        masks: str = "instance",
    ) -> None:
        root = Path(path)
        self._masks = require_choice("masks", masks, MASKS)
        mask_tools(root)
        self._codes: dict[int, int] = {}
        names: list[str] = []
        self._items: list[_Picture] = []
        for part in _parts(root, split):
            annotations = root / "annotations" / f"instances_{part}.json"
            codes, names, items = _read_annotations(annotations, root / part)
            if self._codes not in ({}, codes):
                raise DataError(f"{annotations}: expected the same categories as in the other file, got others")
            self._codes = codes
            is_cut = split in ("train", "val")
            self._items += [items[i] for i in hold_out(len(items), split, str(annotations))] if is_cut else items
        self._num_rows = max(len(_single(item)) for item in self._items)
        super().__init__(
            [item.path for item in self._items],
            preparation,
            name=root.resolve().name,
            background_labels=(0, VOID),
            num_slots=max(self._codes.values(), default=0) + 1 if masks == "class" else None,
            label_kind=masks,
            factors={
                "num_objects": "objects of the picture, crowds not counted: rows of the other factor that are not zero",
                "category": ", ".join(f"{_label(i)} {name}" for i, name in enumerate(names, 1)) + "; 0 no object",
            },
        )

    def _labels(self, position: int) -> tuple[str, Int64[np.ndarray, "height width"]]:
        item = self._items[position]
        drawn, number = [], 0
        for record, source in item.objects:
            is_crowd = _is_crowd(record)
            number += not is_crowd
            label = self._code(record, source) if self._masks == "class" else VOID if is_crowd else _label(number)
            pixels = draw(record["segmentation"], item.size, source)
            drawn.append((is_crowd, int(pixels.sum()), label, pixels))
        labels = np.zeros(item.size, np.int64)
        for _, _, label, pixels in sorted(drawn, key=lambda one: (not one[0], -one[1])):
            labels[pixels] = label
        return item.source, labels

    def _factors(self, position: int) -> dict[str, np.ndarray]:
        objects = _single(self._items[position])
        category = np.zeros(self._num_rows, np.int64)
        category[: len(objects)] = [self._code(record, source) for record, source in objects]
        return {"num_objects": np.array(len(objects)), "category": category}

    def _code(self, record: dict[str, Any], source: str) -> int:
        category = take(record, "category_id", int, source)
        if category not in self._codes:
            raise DataError(f"{source}: expected the id of a category, got {category}")
        return self._codes[category]


def recognises(path: Path) -> bool:
    """Whether it is a folder with COCO's annotations of objects of the year 2017."""
    return any((path / "annotations").glob("instances_*2017.json"))


def _parts(root: Path, split: str) -> list[str]:
    if split != "all":
        return ["val2017" if split == "test" else "train2017"]
    parts = [part for part in ("train2017", "val2017") if (root / part).is_dir()]
    if not parts:
        raise DataError(f"{root}: expected folders train2017 and val2017, found none of them")
    return parts


def _read_annotations(path: Path, folder: Path) -> tuple[dict[int, int], list[str], list[_Picture]]:
    """The code of each category's id, the categories' names by code, and the pictures by id."""
    data = read_json(path)
    categories = {}
    for i, record in enumerate(take(data, "categories", list, str(path))):
        source = f"{path}: category {i}"
        categories[take(record, "id", int, source)] = take(record, "name", str, source)[:40]
    pictures = {}
    for i, record in enumerate(watched(take(data, "images", list, str(path)), f"opening {path.name}, images")):
        source = f"{path}: image {i}"
        pictures[take(record, "id", int, source)] = _picture(record, folder, source)
    if not pictures:
        raise DataError(f"{path}: expected images, found none")
    annotations = take(data, "annotations", list, str(path))
    for i, record in enumerate(watched(annotations, f"opening {path.name}, annotations")):
        source = f"{path}: annotation {i}"
        image = take(record, "image_id", int, source)
        if image not in pictures:
            raise DataError(f"{source}: expected the id of an image, got {image}")
        pictures[image].objects.append(({key: record.get(key) for key in KEPT}, source))
    codes = {category: _label(i) for i, category in enumerate(sorted(categories), 1)}
    names = [categories[category] for category in sorted(categories)]
    return codes, names, [pictures[image] for image in sorted(pictures)]


def _picture(record: object, folder: Path, source: str) -> _Picture:
    name = take(record, "file_name", str, source)
    require_name(name, source)
    height, width = take(record, "height", int, source), take(record, "width", int, source)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise DataError(f"{source}: expected a picture of 1 to {MAX_PIXELS} pixels, got {height}x{width}")
    return _Picture(folder / name, (height, width), source)


def _single(item: _Picture) -> list[tuple[dict[str, Any], str]]:
    """The objects of a picture that are no crowds."""
    return [(record, source) for record, source in item.objects if not _is_crowd(record)]


def _is_crowd(record: dict[str, Any]) -> bool:
    return record["iscrowd"] == 1


def _label(number: int) -> int:
    """The number, or the next where it would reach the label of void pixels."""
    return number + (number >= VOID)
