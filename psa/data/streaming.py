"""Scenes in an order of the caller's, a batch at a time, read ahead by worker processes."""

import copy
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from psa.data.description import SceneBatch, SceneDataset
from psa.errors import DataError, PsaError

GRACE = 30  # seconds that a worker lives on after SIGTERM, so that who is told to stop can finish a step
WORKER_DIED = "DataLoader worker"  # how torch's message begins

Indices = Sequence[int] | Tensor
# Arrays, which go through a pipe: tensors would take shared memory, of which a container has little.
Arrays = tuple[np.ndarray, np.ndarray | None]


@contextmanager
def streamed(
    dataset: SceneDataset,
    order: Iterable[Indices],
    workers: int = 0,
    *,
    with_masks: bool = True,
    start_method: str | None = None,
) -> Iterator[Iterator[SceneBatch]]:
    """An iterator over the batches of an order, for use within ``with``; at its end no process is left.

    What is read depends on the order alone, not on the workers. Nothing is drawn from torch's global generator.

    Args:
        dataset: Each worker has a copy of it, made as ``copy.copy`` makes it: what cannot be shared is left out by
            ``__getstate__``.
        order: The indices of each batch. It is read a little ahead of the batches.
        workers: Processes that read; 0 reads when a batch is asked for.
        with_masks: False leaves masks out, where they are not needed.
        start_method: ``fork``, ``spawn`` or ``forkserver``; None for the platform's.

    Raises:
        PsaError: What reading raises, also in a worker; or, from within the ``with`` block, that a worker died.
    """
    loader = DataLoader(
        _Reader(dataset, with_masks),
        batch_sampler=(np.asarray(indices, np.int64).tolist() for indices in order),
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_start,
        multiprocessing_context=start_method if workers else None,
        generator=torch.Generator(),  # or the loader would take a number from the one that slots are drawn with
    )
    started: list[BaseProcess] = []
    batches = _batches(loader, started)
    try:
        yield batches
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the loader, and so its processes
        if isinstance(error, RuntimeError) and str(error).startswith(WORKER_DIED):
            raise _death(dataset, error) from None
        raise
    finally:
        batches.close()
        for process in started:  # the loader has asked each to end, and waited for seconds
            process.kill()
            process.join()


def _batches(loader: Iterable[Arrays | PsaError], started: list[BaseProcess]) -> Generator[SceneBatch]:
    others = set(multiprocessing.active_children())
    reads = iter(loader)
    started += set(multiprocessing.active_children()) - others
    for read in reads:
        if isinstance(read, PsaError):
            raise read
        image, mask = read
        yield SceneBatch(torch.from_numpy(image), None if mask is None else torch.from_numpy(mask))


class _Reader(Dataset[Arrays]):
    """A data set that returns what is wrong with its files: torch would raise it as another's, with two tracebacks."""

    def __init__(self, dataset: SceneDataset, with_masks: bool) -> None:
        self.dataset, self._with_masks = dataset, with_masks

    def __getitems__(self, indices: Sequence[int]) -> Arrays | PsaError:
        try:
            scenes = self.dataset.__getitems__(indices)
        except PsaError as error:
            return error
        masks = [scene.mask for scene in scenes if scene.mask is not None] if self._with_masks else []
        return np.stack([scene.image for scene in scenes]), np.stack(masks) if len(masks) == len(scenes) else None


def _as_it_is(read: Any) -> Any:
    return read


def _start(worker: int) -> None:
    """In a worker, first: files are opened anew, and the main process alone says when it is over."""
    info = get_worker_info()
    assert info is not None
    reader = info.dataset
    assert isinstance(reader, _Reader)
    reader.dataset = copy.copy(reader.dataset)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """What was read and is not fetched keeps a process from ending by itself: a pipe is full, and nobody reads it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _death(dataset: SceneDataset, error: RuntimeError) -> DataError:
    reason = str(error).splitlines()[0].removeprefix(WORKER_DIED).strip().rstrip(".")
    return DataError(
        f"{dataset.info.name}: expected a process that reads images to live on, got: {reason}; memory may be short, "
        "fewer data.workers need less"
    )
