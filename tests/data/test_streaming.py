"""Scenes that worker processes read ahead. Workers are forked here; spawned ones are in the acceptance tests."""

import multiprocessing
import os
import pickle
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import FORMATS

from psa.data import DatasetInfo, Scene, SceneBatch, SceneDataset, SpriteOptions, Sprites, streamed
from psa.errors import DataError

SCENES = [name for name in FORMATS if not name.startswith("tokens")]  # which are points
ORDER = [[3, 1], [0], [4, 4, 2], range(2), torch.tensor([5, 0])]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


class Numbered(SceneDataset):
    """Image i is all i. Past ``dies_at`` the process that reads is killed, past ``fails_at`` reading fails."""

    info = DatasetInfo("scenes", "numbered", (64, 64), (), None)

    def __init__(self, length: int = 200, dies_at: int = 10**9, fails_at: int = 10**9) -> None:
        self.length, self.dies_at, self.fails_at = length, dies_at, fails_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if index >= self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if index >= self.fails_at:
            raise DataError(f"{self.source(index)}: expected what can be read, got bits")
        return Scene(np.full((64, 64, 3), index % 256, np.uint8))

    def source(self, index: int) -> str:
        return f"numbered[{index}]"


class Opening(Numbered):
    """Images are of 1 where the process that reads opened the file, else 0."""

    @cached_property
    def opened_by(self) -> int:
        return os.getpid()

    def __getstate__(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if name != "opened_by"}

    def __getitem__(self, index: int) -> Scene:
        return Scene(np.full((64, 64, 3), self.opened_by == os.getpid(), np.uint8))


def ones(length: int) -> list[list[int]]:
    return [[i] for i in range(length)]


def values(batches: Iterator[SceneBatch]) -> list[list[int]]:
    return [batch.images[:, 0, 0, 0].tolist() for batch in batches]


def work_on(dataset: SceneDataset, length: int, workers: int, work: Callable[[SceneBatch], object]) -> None:
    with streamed(dataset, ones(length), workers) as batches:
        for batch in batches:
            work(batch)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_scenes_of_the_order_whatever_the_workers(workers):
    sprites = Sprites(SpriteOptions(size=8), num_scenes=6)
    with streamed(sprites, ORDER, workers) as batches:
        read = list(batches)
    assert [len(batch.images) for batch in read] == [2, 1, 3, 2, 2]
    for batch, indices in zip(read, ORDER, strict=True):
        for image, mask, index in zip(batch.images, batch.masks, indices, strict=True):
            assert np.array_equal(image, sprites[index].image)
            assert np.array_equal(mask, sprites[index].mask)


def test_a_forked_worker_opens_files_for_itself():
    dataset = Opening()
    assert dataset.opened_by == os.getpid()
    with streamed(dataset, ones(2), 1, start_method="fork") as batches:
        assert values(batches) == [[1], [1]]


def test_masks_can_be_left_out():
    with streamed(Sprites(SpriteOptions(size=8), num_scenes=2), ones(2), with_masks=False) as batches:
        assert [batch.masks for batch in batches] == [None, None]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_drawn_from_the_generator_that_slots_are_drawn_with(workers):
    before = torch.random.get_rng_state()
    with streamed(Numbered(), ones(3), workers) as batches:
        assert values(batches) == ones(3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", SCENES)
def test_every_reader_works_in_a_worker_also_when_its_files_are_open(name, tmp_path):
    write, opened = FORMATS[name]
    write(tmp_path)
    dataset = opened(tmp_path)
    expected = [dataset[i] for i in range(len(dataset))]
    with streamed(dataset, ones(len(dataset)), 1, start_method="fork") as batches:
        for batch, scene in zip(batches, expected, strict=True):
            assert np.array_equal(batch.images[0], scene.image)
            assert scene.mask is None or np.array_equal(batch.masks[0], scene.mask)
    again = dataset[0]  # the worker has closed nothing that is open here
    assert np.array_equal(again.image, expected[0].image)


@pytest.mark.parametrize("name", SCENES)
def test_every_reader_can_be_sent_to_a_process_and_takes_no_images_along(name, tmp_path):
    write, opened = FORMATS[name]
    write(tmp_path)
    dataset = opened(tmp_path)
    expected = dataset[0]
    sent = pickle.dumps(dataset)
    if name != "dSprites":  # whose scenes are made, and held in memory
        assert len(sent) < 20_000
    found = pickle.loads(sent)[0]
    assert np.array_equal(found.image, expected.image)
    assert (found.mask is None) == (expected.mask is None)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_file_is_found_to_be_is_said_as_without_workers(workers):
    read: list[SceneBatch] = []
    with pytest.raises(DataError) as caught:
        work_on(Numbered(fails_at=3), 50, workers, read.append)
    assert str(caught.value) == "numbered[3]: expected what can be read, got bits"
    assert len(read) == 3
    assert multiprocessing.active_children() == []  # while the error is at hand, with all that its traceback holds


@pytest.mark.parametrize("seconds", [0.0, 2.0], ids=["waited for", "while the batch is worked on"])
def test_a_worker_that_is_killed_is_one_line_and_no_wait(seconds):
    start = time.monotonic()
    with pytest.raises(DataError, match=r"^numbered: .*\(pid.*\) [^\n]*; memory may be short, [^\n]*$"):
        work_on(Numbered(dies_at=6), 50, 2, lambda batch: time.sleep(seconds))
    assert time.monotonic() - start < 120
    assert multiprocessing.active_children() == []


def test_only_the_main_process_is_stopped_by_signals_to_all():
    with streamed(Numbered(), ones(30), 1) as batches:
        assert values([next(batches)]) == [[0]]
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        assert values(batches) == ones(30)[1:]


def test_workers_do_not_outlive_a_main_process_that_is_killed():
    read, write = os.pipe()
    main = os.fork()
    if main == 0:  # what is read ahead fills the pipe
        with streamed(Numbered(), [range(50)] * 50, 2, start_method="fork") as batches:
            next(batches)
            os.write(write, " ".join(str(process.pid) for process in multiprocessing.active_children()).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(main, 0)
    left = [Path(f"/proc/{pid}/stat") for pid in os.read(read, 100).decode().split()]
    os.close(read)
    os.close(write)
    assert len(left) == 2
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:  # one that ended and that nobody waits for is a zombie of init's
        left = [file for file in left if file.exists() and file.read_text().rpartition(")")[2].split()[0] != "Z"]
        time.sleep(0.05)
    assert left == []


def test_ctrl_c_in_the_midst_leaves_no_process():
    def interrupt(batch: SceneBatch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        work_on(Numbered(), 200, 2, interrupt)
    assert multiprocessing.active_children() == []
    assert caught.tb is not None


def test_batches_go_through_no_shared_memory_and_an_early_end_leaves_no_process():
    with streamed(Numbered(), ones(200), 2) as batches:
        next(batches)
        pids = [process.pid for process in multiprocessing.active_children()]
        assert len(pids) == 2
        maps = [Path(f"/proc/{pid}/maps") for pid in (os.getpid(), *pids)]
        assert not any("/dev/shm/torch" in file.read_text() for file in maps if file.exists())


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_does_not_grow_with_the_images(workers):
    def peak(length: int) -> int:
        spans = [range(start, start + 8) for start in range(0, length, 8)]
        with streamed(Numbered(length), spans, workers) as batches:
            next(batches)
            tracemalloc.start()
            for _ in batches:
                pass
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    batch = 8 * 64 * 64 * 3
    assert peak(400) < peak(100) + batch
    assert peak(400) < 8 * batch
