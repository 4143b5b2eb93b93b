"""Data sets spoiled by a seed, and what a reader may make of them: one line, or items as its description promises."""

import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from psa.data import DatasetInfo, Points, Scene
from psa.errors import ConfigError, DataError

SECONDS = 10.0  # of the processor, for one data set of a few tiny items


class Hang(BaseException):
    """No Exception, so that no reader takes it for damage."""


def fuzz(
    folder: Path,
    write: Callable[[Path], object],
    open_it: Callable[[Path], Any],
    seeds: Iterable[int],
    seconds: float = SECONDS,
) -> Counter[str]:
    """Spoil one file of a valid data set a seed, open it and read every item.

    Args:
        folder: An empty one, to work in.
        write: Writes a valid data set into the existing folder it is given; called once.
        open_it: Opens what was written into that folder (or a copy of it), as a psa.data.MapDataset.
        seeds: Each one case.
        seconds: Processor time that a case may take.

    Returns:
        How many cases were "refused" (a DataError or ConfigError of one line that names a path in the folder) and how
        many "read"; the valid one, which is tried first, is not counted.

    Raises:
        AssertionError: A case that was neither, with its seed and what had been done to which file.
    """
    valid, case = folder / "valid", folder / "case"
    valid.mkdir()
    write(valid)
    check_items(open_it(valid))
    found: Counter[str] = Counter()
    for seed in seeds:
        shutil.copytree(valid, case, symlinks=True)
        done = spoil(case, seed)
        try:
            with _time_limit(seconds):
                found[_outcome(case, open_it)] += 1
        except (Exception, Hang) as error:
            raise AssertionError(f"seed {seed}, {done}: {type(error).__name__}: {error}") from error
        shutil.rmtree(case)
    return found


def check_items(dataset: Any) -> None:
    """Assert that every item is what the description says, and that there is one."""
    assert len(dataset) > 0
    for index in range(len(dataset)):
        item = dataset[index]
        assert str(dataset.source(index))
        if dataset.info.kind == "scenes":
            _check_scene(item, dataset.info)
        else:
            _check_points(item)


def spoil(folder: Path, seed: int) -> str:
    """Change one file of the folder, below it too; returns what was done to which."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    kind = str(rng.choice(list(DAMAGES)))
    DAMAGES[kind](path, rng, files)
    return f"{kind} {path.relative_to(folder)}"


def _outcome(case: Path, open_it: Callable[[Path], Any]) -> str:
    try:
        dataset = open_it(case)
        check_items(dataset)
    except (DataError, ConfigError) as error:
        message = str(error)
        assert "\n" not in message, message
        assert str(case) in message, message
        return "refused"
    return "read"


def _check_scene(scene: Scene, info: DatasetInfo) -> None:
    assert info.size is not None
    assert scene.image.dtype == np.uint8
    assert scene.image.shape == (*info.size, 3)
    if scene.mask is not None:
        assert scene.mask.dtype == np.int64
        assert scene.mask.shape == info.size
        _check_labels(scene.mask, info)
    for name, values in (scene.factors or {}).items():
        assert isinstance(name, str)
        assert isinstance(values, np.ndarray)
        assert values.dtype.kind in "buif", (name, values.dtype)


def _check_labels(mask: np.ndarray, info: DatasetInfo) -> None:
    named = {*info.background_labels, *getattr(info, "ignored_labels", ())}
    objects = mask[~np.isin(mask, list(named))]
    assert objects.min(initial=0) >= 0
    if info.num_slots is not None:
        assert objects.max(initial=0) < info.num_slots


def _check_points(points: Points) -> None:
    assert points.tokens.dtype == np.float32
    assert points.tokens.ndim == 2
    assert np.isfinite(points.tokens).all()
    if points.labels is not None:
        assert points.labels.dtype == np.int64
        assert points.labels.shape == points.tokens.shape[:1]


# What is done to a file: (path, generator, all files of the folder).


def _truncate(path: Path, rng: np.random.Generator, _: list[Path]) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(len(data) or 1)])


def _flip(path: Path, rng: np.random.Generator, _: list[Path]) -> None:
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    for _ in range(int(rng.integers(1, 9)) if len(data) else 0):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data.tobytes())


def _flip_start(path: Path, rng: np.random.Generator, _: list[Path]) -> None:
    """Where headers are."""
    data = bytearray(path.read_bytes())
    for _ in range(3 if data else 0):
        data[rng.integers(min(len(data), 128))] = rng.integers(256)
    path.write_bytes(data)


def _empty(path: Path, _: np.random.Generator, __: list[Path]) -> None:
    path.write_bytes(b"")


def _swap(path: Path, rng: np.random.Generator, _: list[Path]) -> None:
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    length = min(int(rng.integers(1, 17)), len(data) // 2)
    if length:
        one, other = np.sort(rng.choice(len(data) - length + 1, 2, replace=False))
        data[one : one + length], data[other : other + length] = (
            data[other : other + length].copy(),
            data[one : one + length].copy(),
        )
    path.write_bytes(data.tobytes())


def _duplicate(path: Path, rng: np.random.Generator, _: list[Path]) -> None:
    """A part of it, or all, twice."""
    data = path.read_bytes()
    begin, end = np.sort(rng.integers(len(data) + 1, size=2)) if rng.random() < 0.7 else (0, len(data))
    path.write_bytes(data[:end] + data[begin:end] + data[end:])


def _delete(path: Path, _: np.random.Generator, __: list[Path]) -> None:
    path.unlink()


def _rename(path: Path, rng: np.random.Generator, _: list[Path]) -> None:
    path.rename(path.with_suffix(str(rng.choice([".png", ".jpg", ".txt", ".h5", ".npz", ".tfrecords", ".tar", ""]))))


def _copy_another(path: Path, rng: np.random.Generator, files: list[Path]) -> None:
    path.write_bytes(files[rng.integers(len(files))].read_bytes())


def _add_a_copy(path: Path, rng: np.random.Generator, _: list[Path]) -> None:
    shutil.copy(path, path.with_name(str(rng.choice(["copy", "0", "_flat", "-"])) + path.name))


def _loop(path: Path, _: np.random.Generator, __: list[Path]) -> None:
    path.unlink()
    path.symlink_to(path)


def _make_folder(path: Path, _: np.random.Generator, __: list[Path]) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, np.random.Generator, list[Path]], None]] = {
    "truncated": _truncate,
    "flipped": _flip,
    "flipped in its start": _flip_start,
    "emptied": _empty,
    "swapped bytes of": _swap,
    "doubled": _duplicate,
    "deleted": _delete,
    "renamed": _rename,
    "copied another to": _copy_another,
    "copied": _add_a_copy,
    "made a link to itself of": _loop,
    "made a folder of": _make_folder,
}


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Of the processor's time; the timer of wall-clock time is pytest-timeout's."""

    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
