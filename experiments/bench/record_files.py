"""TFRecords in DeepMind's layouts, written by the package tfrecord from scenes of our generators."""

import gzip
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tfrecord.writer import TFRecordWriter

from psa.data import Scene, SceneDataset, open_dataset

# Records of each layout, and how scenes of their size and number of entities are made.
RECORDS: Mapping[str, int] = {"Tetrominoes": 200, "Multi-dSprites": 100, "CLEVR with masks": 8}
SOURCES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Tetrominoes": ("tetrominoes", {}),
    "Multi-dSprites": ("multi-dsprites", {}),
    "CLEVR with masks": ("multi-dsprites", {"min_objects": 3, "max_objects": 10, "size": (240, 320)}),
}


def write_records(path: Path, layout: str, count: int, packed: bool) -> Path:
    """Write ``count`` records of a layout, a string for each byte as DeepMind did; then pack them with GZIP.

    The layout is in the sizes of image and masks; the factors are those that the layouts have in common.
    """
    source, options = SOURCES[layout]
    dataset = open_dataset(source, "train", num_scenes=count, **options)
    assert isinstance(dataset, SceneDataset)
    with closing(TFRecordWriter(str(path))) as writer:
        for index in range(count):
            writer.write(_features(dataset[index], dataset.info.num_slots or 0, entity_last=layout == "Multi-dSprites"))
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return path


def _features(scene: Scene, num_entities: int, entity_last: bool) -> dict[str, tuple[Any, str]]:
    assert scene.mask is not None
    assert scene.factors is not None
    masks = np.where(scene.mask == np.arange(num_entities)[:, None, None], 255, 0).astype(np.uint8)
    arrays = {"image": scene.image, "mask": np.moveaxis(masks, 0, 2) if entity_last else masks}
    factors = {name: np.append(0.0, scene.factors[name]) for name in ("x", "y")}
    factors["visibility"] = np.append(1.0, scene.factors["visibility"])
    strings = {name: ([bytes([byte]) for byte in array.tobytes()], "byte") for name, array in arrays.items()}
    return {**strings, **{name: (values.tolist(), "float") for name, values in factors.items()}}
