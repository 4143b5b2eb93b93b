"""Training a run on the processes that ``training.devices`` asks for: here, or in several that Fabric spawns.

The spawned ones find their rank and each other through Fabric. What they have to say goes through a pipe each: progress
of the first, and an error of any. If one dies, the others are ended and the run fails in one line.
"""

import logging
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import c_int
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from psa.errors import PsaError, TrainingFailed
from psa.inference.config import RunConfig, override, parse_config
from psa.inference.interrupts import Interrupted, deferred_interrupts
from psa.inference.processes import Fabric, FabricProcesses, Processes, build_fabric
from psa.inference.sessions import resume_run, start_run
from psa.inference.training import Progress, Trainer
from psa.plugins import load_plugins, loaded_plugins
from psa.runs import RunDirectory

POLL_SECONDS = 0.1


@runtime_checkable
class Flag(Protocol):
    """An integer in shared memory, without a lock that a killed process could keep."""

    value: int


@dataclass(frozen=True)
class Request:
    """A run to train.

    Attributes:
        path: Its directory.
        values: The configuration of a new run; None goes on with the one that is there.
        settings: Of a run that is gone on with, as ``key=value``.
        plugins: Modules that every process imports first.
    """

    path: Path
    values: Mapping[str, Any] | None
    settings: Sequence[str] = ()
    plugins: Sequence[str] = field(default_factory=loaded_plugins)

    def config(self) -> RunConfig:
        """The whole configuration.

        Raises:
            PsaError: If it is not valid, or there is no run.
        """
        if self.values is not None:
            return parse_config(self.values)
        run = RunDirectory(self.path)
        return parse_config(override(run.read_config(), self.settings), str(run.config))

    def open(self, progress: Progress | None, processes: Processes | None = None) -> Trainer:
        """A trainer in this process."""
        if self.values is not None:
            return start_run(self.values, self.path, progress, processes)
        return resume_run(self.path, self.settings, progress, processes)


def train(request: Request, progress: Progress) -> int:
    """Train a run to its end.

    Args:
        request: The run.
        progress: Called in this process, as :class:`psa.inference.training.Trainer` says.

    Returns:
        How many steps were skipped.

    Raises:
        PsaError: If it cannot be started.
        TrainingFailed: If it failed, or one of several processes died; the last checkpoint is kept.
        Interrupted: After SIGINT or SIGTERM, with the checkpoint written.
        KeyboardInterrupt: If the signal ended the processes before they could write one.
    """
    config = request.config()
    if config.training.devices == 1:
        trainer = request.open(progress)
        trainer.fit()
        return trainer.skipped
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(config.training.devices)]
    stop = multiprocessing.get_context("spawn").RawValue(c_int, 0)
    fabric = build_fabric(config.training)
    relay = Relay([receiver for receiver, _ in pipes], progress)
    work = partial(_work, request=request, senders=[sender for _, sender in pipes], stop=stop)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # what it warns of is said below
    outcome: int | str | Exception
    with deferred_interrupts() as caught, relay.listening(caught, stop):
        try:
            outcome = fabric.launch(work)
        except (ProcessExitedException, ProcessRaisedException) as error:
            outcome = error
        except KeyboardInterrupt:
            relay.kill()
            raise
    if isinstance(outcome, Exception):
        if caught and not relay.has_errors:
            raise KeyboardInterrupt from None
        raise relay.failure(outcome, config.training.devices)
    if isinstance(outcome, str):
        raise Interrupted(outcome)
    return outcome


def _work(fabric: Fabric, request: Request, senders: Sequence[Connection], stop: Flag) -> int | str:
    """One process's part: the steps that were skipped, or what an interrupt says."""
    processes = FabricProcesses(fabric, lambda: bool(stop.value))
    sender = senders[processes.rank]

    def tell(step: int, row: dict[str, float]) -> None:
        sender.send((step, row))

    try:
        load_plugins(request.plugins)
        trainer = request.open(tell, processes)
        trainer.fit()
    except Interrupted as interrupted:
        return str(interrupted)
    except (PsaError, TrainingFailed) as error:
        sender.send(error)
        raise
    return trainer.skipped


class Relay:
    """What the processes say, heard by a thread while the main one waits for their ends.

    Args:
        receivers: A pipe's end for each process.
        progress: What the first one says goes there.
    """

    def __init__(self, receivers: Sequence[Connection], progress: Progress) -> None:
        self._receivers, self._progress = list(receivers), progress
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._errors: list[Exception] = []

    @contextmanager
    def listening(self, caught: Sequence[int], stop: Flag) -> Iterator[None]:
        """Within it, progress is told, and a signal caught here is told to the processes."""
        others, over = set(multiprocessing.active_children()), threading.Event()

        def listen() -> None:
            while not over.is_set():
                stop.value = int(bool(caught))
                self._processes += [
                    p for p in multiprocessing.active_children() if p not in {*others, *self._processes}
                ]
                self._hear(POLL_SECONDS)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(10 * POLL_SECONDS)  # a message that was cut by a killed process never ends
            while not thread.is_alive() and wait(self._receivers, 0.0):
                self._hear(0.0)

    def _hear(self, seconds: float) -> None:
        for ready in wait(self._receivers, seconds):
            assert isinstance(ready, Connection)
            message = ready.recv()
            if isinstance(message, Exception):
                self._errors.append(message)
            else:
                self._progress(*message)

    @property
    def has_errors(self) -> bool:
        """Whether a process said why it failed."""
        return bool(self._errors)

    def failure(self, error: Exception, count: int) -> Exception:
        """Why the run failed: what a process said, or which of them was killed."""
        if self._errors:
            return self._errors[0]
        started = sorted(self._processes, key=lambda process: int(process.name.rpartition("-")[2]))
        for rank, process in enumerate(started):
            code = process.exitcode
            if code is not None and code < 0 and code != -signal.SIGTERM:  # by which the others were ended
                how = signal.Signals(-code).name
                return TrainingFailed(f"process {rank + 1} of {count} died ({how}); the last checkpoint is kept")
        reason = str(error).strip().splitlines()[-1]
        return TrainingFailed(f"one of {count} processes failed ({reason}); the last checkpoint is kept")

    def kill(self) -> None:
        """End all processes at once."""
        for process in self._processes:
            process.kill()
