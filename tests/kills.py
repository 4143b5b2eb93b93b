"""Runs that are killed at random moments and gone on with, and what must be the same afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import tiny

from psa.locks import LOCK
from psa.runs import RunDirectory, load_tensors

ROOT = Path(__file__).parents[1]
EVERY = 3  # steps between checkpoints: writing them is a good part of the time


class Process(Protocol):
    pid: int

    def poll(self) -> int | None: ...


Start = Callable[..., Process]


def settings(steps: int) -> list[str]:
    """A run whose every step leaves a row, so that it is known how far it came."""
    own = (f"training.steps={steps}", "training.evaluate_every=1", f"training.checkpoint_every={EVERY}")
    return tiny.options([*tiny.SETTINGS, *tiny.SPRITES, *own])


def start_command(*arguments: object, told: bool = False) -> subprocess.Popen:
    """``python -m psa`` as a user starts it; what it tells on standard error is to be read, or left."""
    return subprocess.Popen(
        [sys.executable, "-m", "psa", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if told else subprocess.DEVNULL,
    )


class Server:
    """Starts commands as forks of a process that has imported psa: seconds less each than :func:`start_command`."""

    def __init__(self) -> None:
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(["psa.cli"])

    def __call__(self, *arguments: object) -> "_Forked":
        process = self.context.Process(target=_command, args=([str(argument) for argument in arguments],))
        process.start()
        return _Forked(process)


class _Forked:
    def __init__(self, process) -> None:
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self.process.exitcode


def _command(arguments: list[str]) -> None:
    from psa.cli import main

    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    main(arguments)


@dataclass(frozen=True)
class Whole:
    """A run that nobody stopped.

    Attributes:
        opening: Seconds from its lock to its first step.
        training: From there to its last step.
        ending: From there to its end: evaluation, page, prior.
    """

    run: RunDirectory
    opening: float
    training: float
    ending: float


def uninterrupted(start: Start, path: Path, steps: int) -> Whole:
    run = RunDirectory(path)
    process = start("train", "--out", path, *settings(steps))
    locked = _when(process, (path / LOCK).exists)
    begun = _when(process, run.metrics.exists)
    trained = _when(process, lambda: f'"step": {steps},'.encode() in _end(run.metrics))
    ended = _when(process, lambda: process.poll() is not None)
    assert process.poll() == 0
    return Whole(run, begun - locked, trained - begun, ended - trained)


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
        phase: opening, training or ending.
        delay: Seconds after the process locked the run (opening), or went on with its rows (training, ending).
    """

    phase: str
    delay: float


def draw_moment(rng: random.Random, run: RunDirectory, whole: Whole, steps: int, kills: int) -> Moment:
    """Over the whole of a run; those in training are drawn so that about as many as there are kills fit it."""
    if rng.random() < 0.15:
        return Moment("opening", rng.uniform(0.0, whole.opening))
    if run.state.exists() and load_tensors(run.state)[1]["step"] == steps:
        return Moment("ending", rng.uniform(0.0, whole.ending))
    return Moment("training", rng.uniform(0.0, 2.5 * whole.training / kills))


@dataclass(frozen=True)
class Kill:
    """Where a run was when it was killed.

    Attributes:
        moment: When that was.
        reached: The last step with a row of metrics.
        kept: The step of the state on the disk; None where there was none yet.
        shown: The step of the weights on the disk.
        cut: What had been begun to be written.
    """

    moment: Moment
    reached: int
    kept: int | None
    shown: int | None
    cut: tuple[str, ...]


def go_on_and_kill(start: Start, path: Path, steps: int, moment: Moment) -> Kill | None:
    """Start or go on with a run, and kill it; None if it ended before.

    What it left is read, and must be whole: whatever is on the disk under a name of the run's opens.
    """
    run, lock = RunDirectory(path), path / LOCK
    stale, rows = lock.read_text() if lock.exists() else "", _inode(run.metrics)
    process = start("train", "--out", path, *(["--resume"] if run.config.exists() else settings(steps)))
    _when(process, lambda: lock.exists() and lock.read_text() not in ("", stale))
    if moment.phase != "opening":
        _when(process, lambda: _inode(run.metrics) != rows)  # resuming writes them anew
    time.sleep(moment.delay)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    _when(process, lambda: process.poll() is not None)
    if process.poll() == 0:
        return None
    assert process.poll() == -signal.SIGKILL
    kept, shown = (load_tensors(f)[1]["step"] if f.exists() else None for f in (run.state, run.checkpoint))
    reached = max([row["step"] for row in run.read_metrics()], default=0)
    cut = tuple(sorted(f.name for f in path.glob(".*") if f.name != LOCK))
    return Kill(moment, reached, kept, shown, cut)


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def finish(start: Start, path: Path, steps: int) -> None:
    run = RunDirectory(path)
    process = start("train", "--out", path, *(["--resume"] if run.config.exists() else settings(steps)))
    _when(process, lambda: process.poll() is not None)
    assert process.poll() == 0


def assert_as_if_nothing_happened(run: RunDirectory, whole: RunDirectory) -> None:
    for one, other in ((run.checkpoint, whole.checkpoint), (run.state, whole.state), (run.prior, whole.prior)):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert rows(run) == rows(whole)
    assert curves(run) == curves(whole)
    assert run.picture.read_bytes() == whole.picture.read_bytes()
    assert {f.name for f in run.path.iterdir()} == {f.name for f in whole.path.iterdir()}


def rows(run: RunDirectory) -> list[dict]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "cpu_seconds"} for row in lines]


def curves(run: RunDirectory) -> list[str]:
    """The page, but for when it was written."""
    return [line for line in run.report.read_text().splitlines() if " UTC" not in line]


def _end(path: Path) -> bytes:
    """A file's last line or so."""
    return path.read_bytes()[-300:] if path.exists() else b""


def _when(process: Process, happened: Callable[[], bool]) -> float:
    while not happened():
        assert process.poll() in (None, 0), process.poll()
        if process.poll() == 0 and not happened():
            break
        time.sleep(0.003)
    return time.monotonic()
