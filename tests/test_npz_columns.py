import tracemalloc

import numpy as np
import pytest

from psa.npz_columns import write_columns


def rows(arrays: dict[str, np.ndarray], length: int):
    for start in range(0, len(next(iter(arrays.values()))), length):
        yield {name: array[start : start + length] for name, array in arrays.items()}


@pytest.mark.parametrize("length", [1, 3, 7, 100])
def test_numpy_reads_the_arrays_whatever_rows_come_together(tmp_path, length):
    rng = np.random.default_rng(0)
    arrays = {
        "real": rng.random((7, 2, 5), dtype=np.float32),
        "names": np.array([f"image {i}" for i in range(7)], "U9"),
        "flags": rng.random((7, 3)) < 0.5,
        "columns first": np.asfortranarray(rng.random((7, 4))),
    }
    write_columns(tmp_path / "a.npz", rows(arrays, length), 7, tmp_path)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found.files == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


def test_progress_counts_the_bytes_and_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(num_rows: int) -> int:
        parts = ({"a": np.zeros((64, 4096))} for _ in range(0, num_rows, 64))
        seen = []
        tracemalloc.start()
        write_columns(tmp_path / "a.npz", parts, num_rows, tmp_path, lambda *state: seen.append(state))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        done, total = seen[-1]
        assert done == total == num_rows * 4096 * 8 + 128
        return most

    assert peak(512) < peak(128) + 64 * 4096 * 8
