"""Tiny data sets in the layouts of folders that users have, written byte by byte, with json, or (JPEG) by Pillow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from png_bytes import png

from psa.data import ClevrScenes, ClevrTexScenes, CocoScenes, ShapeStacksScenes, VocScenes

SIZE = 16
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3))


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def smooth_picture(seed: int, size: int = SIZE) -> np.ndarray:
    """What JPEG keeps."""
    levels = np.linspace(40 + seed, 200 - seed, size).astype(np.uint8)
    return np.repeat(np.add.outer(levels // 2, levels // 2)[..., None], 3, axis=2)


def mask(seed: int, num_labels: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_labels, (size, size)).astype(np.uint8)


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def put_jpeg(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)
    return path


# CLEVR and ClevrTex.


def clevr_object(seed: int, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "shape": ["cube", "sphere", "cylinder"][seed % 3],
        "size": ["small", "large"][seed % 2],
        "material": ["rubber", "metal"][seed % 2],
        "color": ["gray", "cyan"][seed % 2],
        "rotation": float(rng.uniform(0, 360)),
        "3d_coords": rng.uniform(-3, 3, 3).tolist(),
        "pixel_coords": rng.uniform(0, 300, 3).tolist(),
    } | changes


def write_clevr(root: Path, count: int = 4, **changes: Any) -> Path:
    """``changes`` are of the objects; picture i has i % 11 of them."""
    for split in ("train", "val", "test"):
        scenes = []
        for i in range(count):
            name = f"CLEVR_{split}_{i:06}.png"
            put(root / "images" / split / name, png(picture(i)))
            objects = [clevr_object(e, **changes) for e in range(i % 11)]
            scenes.append({"image_filename": name, "image_index": i, "split": split, "objects": objects})
        if split != "test":
            put(root / "scenes" / f"CLEVR_{split}_scenes.json", json.dumps({"info": {}, "scenes": scenes}))
    return root


def write_clevrtex(root: Path, count: int = 20, variant: str = "full", **changes: Any) -> Path:
    """Picture i has i % 10 objects, and a label for each."""
    for i in range(count):
        stem = root / str(i // 8) / f"CLEVRTEX_{variant}_{i:06}"
        put(stem.with_name(f"{stem.name}.png"), png(picture(i)))
        put(stem.with_name(f"{stem.name}_flat.png"), png(mask(i, i % 10 + 1), PALETTE))
        put(stem.with_name(f"{stem.name}_depth_0001.png"), png(mask(i, 200)))
        objects = [
            clevr_object(e, material=f"poliigonwood{e:02}", size="medium", index=e + 1, **changes)
            for e in range(i % 10)
        ]
        scene = {"ground_material": "whitemarble", "num_objects": len(objects), "objects": objects}
        put(stem.with_name(f"{stem.name}.json"), json.dumps(scene, indent=2))
    return root


# ShapeStacks.


def write_shapestacks(root: Path, per_split: int = 3) -> Path:
    """Two cameras a recording, the second seen by another light too."""
    for start, split in enumerate(("train", "eval", "test")):
        names = []
        for i in range(start * per_split, (start + 1) * per_split):
            names.append(f"env_ccs-hard-h={2 + i % 5}-vcom={i % 3}-vpsf=0-v={i}")
            folder = root / "recordings" / names[-1]
            for camera in (1, 12):
                labels = mask(100 * i + camera, 7)
                gray = np.repeat((labels * 32)[..., None], 4, axis=2)
                gray[..., 3] = 255
                put(folder / f"iseg-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.map", png(gray))
                put(folder / f"rgb-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.png", png(picture(100 * i + camera)))
            put(folder / "rgb-w=5-f=2-l=1-c=unique-cam_12-mono-0.png", png(picture(100 * i + 50)))
        put(root / "splits" / "default" / f"{split}.txt", "\n".join(names) + "\n")
        put(root / "splits" / "default" / f"{split}_bgr_mean.npy", b"not read")
    return root


# COCO and VOC.

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def square(left: int, top: int, side: int) -> list[float]:
    """As a polygon."""
    right, bottom = left + side, top + side
    return [float(x) for x in (left, top, right, top, right, bottom, left, bottom)]


def run_lengths(pixels: np.ndarray) -> dict[str, Any]:
    """Down the columns, zeros first."""
    flat = pixels.T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return {"size": list(pixels.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def coco_annotations(folder: Path, count: int) -> dict[str, Any]:
    """Picture i has i % 4 squares in a row, and, where it has three, a crowd at its lower rim."""
    images, annotations = [], []
    for i in range(count):
        name = f"{i:012}.jpg"
        put_jpeg(folder / name, smooth_picture(i))
        images.append({"id": 7 * i + 3, "file_name": name, "height": SIZE, "width": SIZE})
        for e in range(i % 4):
            annotation = {"id": len(annotations), "image_id": 7 * i + 3, "category_id": [1, 18, 90][e], "iscrowd": 0}
            annotations.append(annotation | {"segmentation": [square(5 * e, 2, 4)], "area": 16, "bbox": [0, 0, 1, 1]})
        if i % 4 == 3:
            crowd = np.zeros((SIZE, SIZE))
            crowd[-3:, 2:] = 1
            annotation = {"id": len(annotations), "image_id": 7 * i + 3, "category_id": 1, "iscrowd": 1}
            annotations.append(annotation | {"segmentation": run_lengths(crowd)})
    return {"images": images[::-1], "annotations": annotations, "categories": CATEGORIES, "info": {}, "licenses": []}


def write_coco(root: Path, count: int = 8) -> Path:
    for part in ("train2017", "val2017"):
        put(root / "annotations" / f"instances_{part}.json", json.dumps(coco_annotations(root / part, count)))
    return root


def write_voc(root: Path, count: int = 6) -> Path:
    """The masks of a picture: objects 1 and 2 of classes 15 and 20, and void."""
    for start, part in enumerate(("train", "val")):
        names = [f"2007_{start * count + i:06}" for i in range(count)]
        for name in names:
            objects = mask(int(name[5:]), 4)
            put_jpeg(root / "JPEGImages" / f"{name}.jpg", smooth_picture(int(name[5:])))
            instances, classes = (
                np.array([0, 1, 2, 255], np.uint8)[objects],
                np.array([0, 15, 20, 255], np.uint8)[objects],
            )
            put(root / "SegmentationObject" / f"{name}.png", png(instances, PALETTE))
            put(root / "SegmentationClass" / f"{name}.png", png(classes, PALETTE))
        put(root / "ImageSets" / "Segmentation" / f"{part}.txt", "".join(f"{name}\n" for name in names))
    put_jpeg(root / "JPEGImages" / "2012_000001.jpg", smooth_picture(0))  # of another task
    return root


# Each with the class that should open it.
LAYOUTS: dict[str, tuple[Callable[[Path], Path], type]] = {
    "clevr": (write_clevr, ClevrScenes),
    "clevrtex": (write_clevrtex, ClevrTexScenes),
    "shapestacks": (write_shapestacks, ShapeStacksScenes),
    "coco": (write_coco, CocoScenes),
    "voc": (write_voc, VocScenes),
}
