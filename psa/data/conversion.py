"""From any readable layout or generator to one HDF5 file that is read at memory-map speed."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from psa.data.catalogue import open_dataset
from psa.data.converted import read_converted
from psa.data.description import DatasetInfo, SceneDataset
from psa.data.hdf5 import HDF5_SUFFIXES
from psa.data.named import DATASETS
from psa.data.object_counts import ObjectRange
from psa.data.options import require_choice
from psa.data.part_file import PartFile, open_part, require_identity, writing
from psa.data.splits import SPLITS
from psa.errors import ConfigError, DataError

BATCH = 64  # scenes between two states that can be gone on from
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Conversion:
    """What is converted, and how it is prepared.

    Attributes:
        source: a generator's name or a path, as ``open_dataset`` takes it.
        splits: those of the source, in the order of the file; ``all`` alone makes a file without splits.
        options: those of ``open_dataset``: size, crop, and the source's own.
        split_options: more of them for one split: a generator's num_scenes.
        objects: which scenes are kept.
    """

    source: str
    splits: tuple[str, ...] = SPLITS[:3]
    options: Mapping[str, Any] = field(default_factory=dict)
    split_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    objects: ObjectRange = field(default_factory=ObjectRange)

    def __post_init__(self) -> None:
        for split in self.splits:
            require_choice("split", split, SPLITS)
        if not self.splits or len(set(self.splits)) < len(self.splits) or ("all" in self.splits and self.splits[1:]):
            raise ConfigError(f"data.split: expected different splits, or all alone, got {', '.join(self.splits)}")

    def open(self) -> dict[str, SceneDataset]:
        """The source by split.

        Raises:
            DataError: It holds no scenes, or the splits have different descriptions.
        """
        found: dict[str, SceneDataset] = {}
        for split in self.splits:
            dataset = open_dataset(self.source, split, **self.options, **self.split_options.get(split, {}))
            if not isinstance(dataset, SceneDataset):
                raise DataError(f"{self.source}: expected images, found points")
            found[split] = dataset
        _require_one_description(found)
        return found

    def identity(self, datasets: Mapping[str, SceneDataset]) -> dict[str, str]:
        """What tells this conversion from others, as attributes of the file."""
        path = Path(self.source)
        is_path = self.source not in DATASETS
        preparation = {name: str(v) if isinstance(v, Path) else v for name, v in self.options.items()}
        scenes: dict[str, Any] = {split: len(dataset) for split, dataset in datasets.items()}
        if is_path and path.is_file():
            scenes |= {"bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}
        return {
            "source": str(path.resolve()) if is_path else self.source,
            "preparation": json.dumps(preparation | self.objects.record(), sort_keys=True),
            "source_scenes": json.dumps(scenes),
        }


def convert(conversion: Conversion, out: str | Path, progress: Progress | None = None) -> dict[str, int]:
    """Write scenes to one HDF5 file; what is interrupted goes on when called again with the same conversion.

    Scenes go to the file's name with ``.part`` first, and every 64 are saved; it is renamed when it is complete. A
    file that is complete already is left as it is.

    Args:
        conversion: What, and how.
        out: The file, which ends in .h5 or .hdf5.
        progress: Is told how many of the source's scenes have been read, and how many there are.

    Returns:
        The number of scenes of each split in the file.

    Raises:
        ConfigError: An unknown option, or ``out`` ends otherwise.
        DataError: The source cannot be read or ``out`` not written, or there is something else of either name.
    """
    out = Path(out)
    if out.suffix.lower() not in HDF5_SUFFIXES:
        raise ConfigError(f"{out}: expected the name of a file ending in {' or '.join(HDF5_SUFFIXES)}")
    datasets = conversion.open()
    identity = conversion.identity(datasets)
    if out.exists() or out.is_symlink():
        return _finished(out, identity)
    part_path = out.with_name(out.name + ".part")
    with open_part(part_path, identity, len(datasets)) as part:
        _fill(part, part_path, datasets, conversion.objects, progress)
        kept = dict(zip(datasets, part.kept, strict=True))
        if any(kept.values()):
            with writing(part_path):
                part.finish(_description(datasets), list(datasets))
    if not any(kept.values()):
        part_path.unlink()
        raise DataError(f"{conversion.source}: expected scenes with {conversion.objects.record()}, found none")
    try:
        with open(part_path, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part_path, out)
    except OSError as error:
        raise DataError(f"{out}: expected to write the file, got {error.strerror}") from error
    return kept


def _fill(
    part: PartFile,
    path: Path,
    datasets: Mapping[str, SceneDataset],
    objects: ObjectRange,
    progress: Progress | None,
) -> None:
    """Append what is not in the file yet."""
    sizes = [len(dataset) for dataset in datasets.values()]
    for number, dataset in enumerate(datasets.values()):
        while part.position[0] == number:
            start = part.position[1]
            if progress:
                progress(sum(sizes[:number]) + start, sum(sizes))
            index = range(start, min(start + BATCH, len(dataset)))
            items = [(scene, dataset.source(i)) for i, scene in zip(index, dataset.__getitems__(index), strict=True)]
            kept = [(scene, source) for scene, source in items if objects.keeps(scene, dataset.info, source)]
            with writing(path):
                part.append([scene for scene, _ in kept], [source for _, source in kept])
                part.save((number, index.stop) if index.stop < len(dataset) else (number + 1, 0), len(kept))
    if progress:
        progress(sum(sizes), sum(sizes))


def _finished(out: Path, identity: Mapping[str, str]) -> dict[str, int]:
    """The splits of a file that this conversion wrote before.

    Raises:
        DataError: It is another.
    """
    try:
        with h5py.File(out, "r") as file:
            require_identity(file, identity)
            converted = read_converted(out, file, len(file["image"]))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        converted = None
    if converted is None:
        raise DataError(f"{out}: expected no file of this name, found another one; remove it or write elsewhere")
    return dict(converted.splits)


def _description(datasets: Mapping[str, SceneDataset]) -> DatasetInfo:
    return next(iter(datasets.values())).info


def _require_one_description(datasets: Mapping[str, SceneDataset]) -> None:
    (first, one), *others = datasets.items()
    for split, dataset in others:
        for name in ("size", "background_labels", "num_slots"):
            expected, found = getattr(one.info, name), getattr(dataset.info, name)
            if expected != found:
                hint = "; data.size=... makes all images one size" if name == "size" else ""
                raise DataError(
                    f"{split} of {dataset.info.name}: expected {name} {expected} as {first}'s, got {found}{hint}"
                )
