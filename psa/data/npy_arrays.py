"""Arrays in NumPy's .npy format, the header checked before the array is read; nothing is ever unpickled."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from psa.errors import DataError

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class NpyHeader:
    """What an .npy says of its array, and where in the file the array begins."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]
    start: int


def read_header(file: io.BufferedIOBase, num_bytes: int, source: str) -> NpyHeader:
    """The header of an .npy of ``num_bytes`` that begins where the file stands.

    Raises:
        DataError: Python objects or anything else but numbers, or an array of another length than the header says.
        ValueError: No .npy, or one that is damaged; the message is NumPy's.
    """
    begin = file.tell()
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise DataError(f"{source}: expected version 1.0 or 2.0 of the .npy format, got {version}")
    shape, fortran_order, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise DataError(
            f"{source}: expected numbers, got pickled Python objects, which are never loaded, since loading them runs "
            "code; save them as an array of numbers"
        )
    if dtype.kind not in "buif":
        raise DataError(f"{source}: expected numbers, got dtype {dtype}")
    expected, got = int(np.prod(shape, dtype=object)) * dtype.itemsize, begin + num_bytes - file.tell()
    if expected != got or min(shape, default=0) < 0:
        raise DataError(f"{source}: expected {expected} bytes for an array of shape {shape}, got {got}")
    return NpyHeader(shape, "F" if fortran_order else "C", dtype, file.tell())


def map_from(file: io.BufferedIOBase, offset: int, num_bytes: int, source: str) -> NDArray[Any]:
    """The array of an .npy of ``num_bytes`` that lies at an offset of a file, read-only and still on the disk.

    Raises:
        DataError, ValueError: As :func:`read_header`.
    """
    file.seek(offset)
    header = read_header(file, num_bytes, source)
    if 0 in header.shape:
        return np.empty(header.shape, header.dtype)
    return np.asarray(np.memmap(file, header.dtype, "r", header.start, header.shape, header.order))


def map_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file, read-only and still on the disk.

    Raises:
        DataError: As :func:`read_header`, or a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return map_from(file, 0, path.stat().st_size, str(path))
    except DataError:
        raise
    except Exception as error:  # as array_from
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path}: expected a readable .npy file, got {reason}") from error


def array_from(data: bytes, source: str) -> NDArray[Any]:
    """The array of an .npy in memory, read-only.

    Raises:
        DataError: As :func:`read_header`, or no .npy.
    """
    try:
        header = read_header(io.BytesIO(data), len(data), source)
    except DataError:
        raise
    except Exception as error:  # of damaged headers NumPy raises ValueError, SyntaxError, TypeError and others
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{source}: expected a readable .npy, got {reason}") from error
    if 0 in header.shape:
        return np.empty(header.shape, header.dtype)
    values = np.frombuffer(data, header.dtype, offset=header.start)
    return values.reshape(header.shape, order=header.order)
