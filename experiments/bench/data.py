"""`psa bench --suite data`: what reading and making scenes costs, beside h5py and the package tfrecord.

Reading is of later epochs: every file has been read once and lies in the operating system's memory. Contenders of one
task read the same file, in turns.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import SupportsIndex

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader

from psa.data import (
    Conversion,
    DatasetInfo,
    Hdf5Scenes,
    Scene,
    SceneDataset,
    SpriteOptions,
    Sprites,
    collate,
    convert,
)
from psa.data.description import MapDataset
from psa.data.record_framing import RecordFile
from psa.data.tfrecords import read_features
from psa.experiments.bench.record_files import RECORDS, write_records
from psa.inference.images import Batches, Images, ImageStream, StepImages

BATCH = 64
STEPS = "images of training steps, HDF5, 64 x 64"


@dataclass(frozen=True)
class DataProblem:
    """How much is read and made.

    Attributes:
        num_stored: Scenes of 64 x 64 pixels in the HDF5 file.
        num_records: Records of each TFRecord file by layout.
        num_drawn: Scenes of 32 x 32 pixels that the generator makes in a block.
        workers: Processes that read the HDF5 file; 0 is this one.
    """

    num_stored: int = 5000
    num_records: Mapping[str, int] = field(default_factory=lambda: dict(RECORDS))
    num_drawn: int = 2560
    workers: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class ReadCost:
    """Cost of one way to do a task: medians over blocks.

    Attributes:
        task: What is done.
        method: ``psa``, ``h5py``, ``tfrecord``, or ``memory`` of images that were read before.
        workers: Processes beside this one.
        scenes_per_second: By wall time.
        scenes_per_second_low, scenes_per_second_high: Slowest and fastest block.
        cpu_ms: Processor time of a scene, in ms; None where other processes read.
        times: Processor time over that of the task's first contender in the same block; None likewise.
        times_low, times_high: Least and greatest of a block.
    """

    task: str
    method: str
    workers: int
    scenes_per_second: float
    scenes_per_second_low: float
    scenes_per_second_high: float
    cpu_ms: float | None
    times: float | None
    times_low: float | None
    times_high: float | None


@dataclass(frozen=True)
class Contender:
    """One way to do a task; ``work`` takes the block's number and returns how many scenes it read."""

    task: str
    method: str
    work: Callable[[int], int]
    workers: int = 0


class H5pyScenes(MapDataset[Scene]):
    """The same rows as a user of h5py reads them, one by one."""

    def __init__(self, file: h5py.File) -> None:
        self.info = DatasetInfo("scenes", "h5py", tuple(file["image"].shape[1:3]), (0,), None)
        self._arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}

    def __len__(self) -> int:
        return len(self._arrays["image"])

    def __getitem__(self, index: SupportsIndex) -> Scene:
        row = {name: np.asarray(array[index]) for name, array in self._arrays.items()}
        return Scene(row.pop("image"), row.pop("mask").astype(np.int64), row)

    def source(self, index: SupportsIndex) -> str:
        """The row's number."""
        return str(index)


def bench_data(
    problem: DataProblem = DataProblem(),
    blocks: int = 7,
    progress: Callable[[str], None] = lambda task: None,
) -> list[ReadCost]:
    """Time every contender once a block, those of a task one after the other, after a block that is not counted.

    Args:
        problem: How much is read and made.
        blocks: Blocks that count.
        progress: Called with the task before each of its blocks, and before its file is written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="psa-bench-") as folder:
            return _bench_hdf5(problem, Path(folder), blocks, progress) + [
                cost
                for task in (*_record_tasks(problem, Path(folder), progress), _sprites(problem))
                for cost in _measure(task, blocks, progress)
            ]
    finally:
        torch.set_num_threads(threads)


def _bench_hdf5(problem: DataProblem, folder: Path, blocks: int, progress: Callable[[str], None]) -> list[ReadCost]:
    path = folder / "scenes.h5"
    progress("writing HDF5")
    options = {"size": 64, "num_scenes": problem.num_stored}
    convert(Conversion("sprites", ("train",), options), path)
    ours = Hdf5Scenes(path, "train")
    with closing(h5py.File(path, "r")) as file:
        costs = []
        for order in ("in order", "random order"):
            task = f"HDF5, 64 x 64, {order}"
            shuffled = order == "random order"
            theirs = _loader(H5pyScenes(file), 0, shuffled)
            contenders = [Contender(task, "h5py", partial(_epoch, theirs))] + [
                Contender(task, "psa", partial(_epoch, _loader(ours, workers, shuffled)), workers)
                for workers in problem.workers
            ]
            costs += _measure(contenders, blocks, progress)
    return costs + _bench_steps(ImageStream(ours), problem.workers, blocks, progress)


def _bench_steps(
    images: ImageStream, workers: Sequence[int], blocks: int, progress: Callable[[str], None]
) -> list[ReadCost]:
    """The images of training steps, a block an epoch; workers are there from the block on that is not counted."""
    with ExitStack() as opened:
        kept = opened.enter_context(_steps(images.in_memory()))
        contenders = [Contender(STEPS, "memory", partial(_step_epoch, kept))]
        for number in workers:
            source = opened.enter_context(_steps(ImageStream(images.dataset, workers=number)))
            contenders.append(Contender(STEPS, "psa", partial(_step_epoch, source), number))
        return _measure(contenders, blocks, progress)


def _steps(images: Images) -> StepImages:
    return StepImages(images, Batches(len(images), BATCH, seed=0))


def _step_epoch(source: StepImages, block: int) -> int:
    length = source.batches.per_epoch
    return sum(len(source.batch(step).images) for step in range(block * length, (block + 1) * length))


def _loader(dataset: SceneDataset | H5pyScenes, workers: int, shuffled: bool) -> "DataLoader[Scene]":
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # torch asks for a Dataset, and takes whatever has its two methods
        BATCH,
        shuffle=shuffled,
        collate_fn=collate,
        num_workers=workers,
        generator=generator,
        persistent_workers=workers > 0,
    )


def _epoch(loader: "DataLoader[Scene]", block: int) -> int:
    return sum(len(batch.images) for batch in loader)


def _record_tasks(problem: DataProblem, folder: Path, progress: Callable[[str], None]) -> list[list[Contender]]:
    """Ours: all records in order, both sums checked, every feature an array. Theirs: the same without the sums."""
    tasks = []
    for layout, count in problem.num_records.items():
        for packed in (False, True):
            task = f"TFRecord{', GZIP' if packed else ''}, {layout}"
            progress(f"writing {task}")
            path = write_records(folder / f"{layout}{packed}.tfrecords", layout, count, packed)
            ours, theirs = partial(_read_ours, path), partial(_read_theirs, path, "gzip" if packed else None)
            tasks.append([Contender(task, "tfrecord", theirs), Contender(task, "psa", ours)])
    return tasks


def _read_ours(path: Path, block: int) -> int:
    file = RecordFile(path)
    return sum(1 for record in range(len(file)) if read_features(file, record))


def _read_theirs(path: Path, compression: str | None, block: int) -> int:
    from tfrecord.reader import tfrecord_loader

    return sum(1 for features in tfrecord_loader(str(path), None, compression_type=compression) if features)


def _sprites(problem: DataProblem) -> list[Contender]:
    def draw(block: int) -> int:
        return len(Sprites(SpriteOptions(), num_scenes=problem.num_drawn, seed=block))

    return [Contender("sprites, 32 x 32, generated", "psa", draw)]


def _measure(contenders: Sequence[Contender], blocks: int, progress: Callable[[str], None]) -> list[ReadCost]:
    spent: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for block in range(blocks + 1):
        progress(contenders[0].task)
        for contender, times in zip(contenders, spent, strict=True):
            times.append(_timed(contender.work, block))
    reference = [cpu for _, cpu in spent[0]]
    return [_cost(one, times[1:], reference[1:]) for one, times in zip(contenders, spent, strict=True)]


def _timed(work: Callable[[int], int], block: int) -> tuple[float, float]:
    """Wall and processor time of a scene, in seconds."""
    cpu_start, wall_start = process_time(), perf_counter()
    count = work(block)
    return (perf_counter() - wall_start) / count, (process_time() - cpu_start) / count


def _cost(contender: Contender, spent: Sequence[tuple[float, float]], reference: Sequence[float]) -> ReadCost:
    rates = [1 / wall for wall, _ in spent]
    cpu = [seconds for _, seconds in spent]
    times = [ours / theirs for ours, theirs in zip(cpu, reference, strict=True)]
    alone = contender.workers == 0
    return ReadCost(
        contender.task,
        contender.method,
        contender.workers,
        statistics.median(rates),
        min(rates),
        max(rates),
        1e3 * statistics.median(cpu) if alone else None,
        statistics.median(times) if alone else None,
        min(times) if alone else None,
        max(times) if alone else None,
    )
