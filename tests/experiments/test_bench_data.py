"""The races of ``psa bench --suite data`` are fair: the same records, the same arrays. Speed itself is left to it."""

import importlib
import math

import h5py
import numpy as np
import pytest
from command_line import run
from tfrecord.reader import tfrecord_loader

from psa.data import Conversion, Hdf5Scenes, TfrecordScenes, convert
from psa.data.record_framing import RecordFile
from psa.data.tfrecords import read_features
from psa.experiments.bench.data import DataProblem, H5pyScenes, bench_data
from psa.experiments.bench.record_files import RECORDS, write_records

SMALL = DataProblem(num_stored=3, num_records={"Tetrominoes": 2}, num_drawn=2, workers=(0,))


@pytest.mark.parametrize("layout", RECORDS)
def test_files_are_of_the_layout_and_both_sides_read_the_same_arrays(tmp_path, layout):
    path = write_records(tmp_path / "a.tfrecords", layout, 1, packed=False)
    dataset = TfrecordScenes(path, "all")
    assert layout.startswith(dataset._layout.name)
    assert len(np.unique(dataset[0].mask)) > 1
    file = RecordFile(path)
    for record, theirs in enumerate(tfrecord_loader(str(path), None)):
        ours = read_features(file, record)
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values.view(np.uint8) if values.dtype.kind == "S" else values)


def test_a_packed_file_holds_the_same_records(tmp_path):
    plain, packed = (write_records(tmp_path / f"{p}.tfrecords", "Tetrominoes", 2, p) for p in (False, True))
    assert packed.stat().st_size < plain.stat().st_size
    assert RecordFile(packed)[1] == RecordFile(plain)[1]


def test_rows_by_h5py_are_the_scenes(tmp_path):
    convert(Conversion("sprites", ("train",), {"size": 16, "num_scenes": 3}), tmp_path / "a.h5")
    ours = Hdf5Scenes(tmp_path / "a.h5", "train")
    with h5py.File(tmp_path / "a.h5") as file:
        theirs = H5pyScenes(file)
        for one, other in zip(ours, (theirs[i] for i in range(3)), strict=True):
            assert one.factors.keys() == other.factors.keys()
            for left, right in ((one.image, other.image), (one.mask, other.mask)):
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)


def test_times_are_of_the_same_block_of_the_tasks_first_contender(monkeypatch):
    """A clock by which the first contender needs two seconds a scene, and the second one."""
    bench = importlib.import_module("psa.experiments.bench.data")
    clock = [0.0]
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(bench, name, lambda: clock[0])

    def spend(seconds: float, block: int) -> int:
        clock[0] += 3 * seconds * (1 + block)
        return 3

    first, second = (bench.Contender("task", name, lambda b, s=s: spend(s, b)) for name, s in (("a", 2.0), ("b", 1.0)))
    one, other = bench._measure([first, second], 2, lambda task: None)
    assert (one.times, other.times, other.times_low, other.times_high) == (1.0, 0.5, 0.5, 0.5)
    assert (one.cpu_ms, one.scenes_per_second_low, one.scenes_per_second_high) == (5000.0, 1 / 6, 1 / 4)


def test_the_command_gives_every_task_with_its_contenders(monkeypatch):
    command = importlib.import_module("psa.cli.bench")
    monkeypatch.setattr(command, "DATA", SMALL)
    monkeypatch.setattr(command, "BLOCKS", 1)
    result = run("bench", "--suite", "data", "--json")
    assert result.code == 0, result.err
    assert [(cost["task"], cost["method"]) for cost in result.json["costs"]] == [
        ("HDF5, 64 x 64, in order", "h5py"),
        ("HDF5, 64 x 64, in order", "psa"),
        ("HDF5, 64 x 64, random order", "h5py"),
        ("HDF5, 64 x 64, random order", "psa"),
        ("images of training steps, HDF5, 64 x 64", "memory"),
        ("images of training steps, HDF5, 64 x 64", "psa"),
        ("TFRecord, Tetrominoes", "tfrecord"),
        ("TFRecord, Tetrominoes", "psa"),
        ("TFRecord, GZIP, Tetrominoes", "tfrecord"),
        ("TFRecord, GZIP, Tetrominoes", "psa"),
        ("sprites, 32 x 32, generated", "psa"),
    ]
    for cost in result.json["costs"]:
        assert 0 < cost["scenes_per_second_low"] <= cost["scenes_per_second"] < math.inf
        assert 0 < cost["times_low"] <= cost["times"] <= cost["times_high"] < math.inf
    assert run("bench", "--suite", "data", "--device", "meta").code == 2


def test_of_other_processes_only_the_rate_is_told():
    costs = bench_data(DataProblem(3, {}, 1, (1,)), 1)
    assert [(cost.method, cost.workers) for cost in costs] == [
        *[("h5py", 0), ("psa", 1)] * 2,
        *[("memory", 0), ("psa", 1)],
        ("psa", 0),
    ]
    for cost in costs:
        assert (cost.cpu_ms is None) == (cost.workers == 1)
        assert cost.scenes_per_second > 0
