"""NPZ files that are written a few rows at a time, so that an archive may be larger than memory."""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

COPIED_BYTES = 1 << 20


def write_columns(
    path: Path,
    rows: Iterable[Mapping[str, np.ndarray]],
    num_rows: int,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a compressed archive of arrays, as ``numpy.savez_compressed`` does.

    Args:
        path: The archive.
        rows: The next rows of every array, under the arrays' names; of all arrays as many.
        num_rows: How many there are in all.
        folder: Where the arrays are kept until they are complete, uncompressed.
        progress: Called with the bytes compressed, which begins when all rows are there, and of all.
    """
    with ExitStack() as opened:
        columns: dict[str, BinaryIO] = {}
        for part in rows:
            for name, values in part.items():
                if name not in columns:
                    columns[name] = opened.enter_context(open(folder / f"{name}.npy", "wb"))
                    _write_header(columns[name], values, num_rows)
                columns[name].write(np.ascontiguousarray(values).tobytes())
    files = [folder / f"{name}.npy" for name in columns]
    done, total = 0, sum(file.stat().st_size for file in files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            with open(file, "rb") as column, archive.open(file.name, "w", force_zip64=True) as member:
                while block := column.read(COPIED_BYTES):
                    member.write(block)
                    done += len(block)
                    progress(done, total)


def _write_header(file: BinaryIO, values: np.ndarray, num_rows: int) -> None:
    shape = (num_rows, *values.shape[1:])
    described = {"descr": npy.dtype_to_descr(values.dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, described)
