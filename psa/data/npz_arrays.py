"""The arrays of a NumPy archive (.npz), mapped from the disk and checked; nothing is ever unpickled.

A stored member is mapped where it lies. A deflated one is first unpacked into a temporary file that has no name (TMPDIR
says where), once for each file while it does not change. Either is read once, to check its sum.
"""

import struct
import tempfile
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from psa.data.npy_arrays import map_from
from psa.errors import DataError
from psa.progress import watched

MAX_UNPACKED_BYTES = 1 << 34
COPIED_BYTES = 1 << 20
LOCAL_HEADER = struct.Struct("<26x2H")  # ends with the lengths of the name and of the extra field behind it


def array_names(path: Path) -> frozenset[str]:
    """The names of the arrays in an archive, from its directory alone; none where it cannot be read as one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except Exception:  # what a damaged directory raises is not fixed; who opens the file hears of it
        return frozenset()


def map_array(path: Path, name: str) -> NDArray[Any]:
    """An array of numbers by its name, read-only and still on the disk.

    Args:
        path: The archive.
        name: Of the array, without .npy.

    Raises:
        DataError: No such array, one of Python objects or anything else but numbers, or a damaged or too large file.
    """
    with _reading(f"{path}[{name!r}]"):
        status = path.stat()
        return _map_array(path, name, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _map_array(path: Path, name: str, mtime_ns: int, size: int) -> NDArray[Any]:
    source = f"{path}[{name!r}]"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if f"{name}.npy" not in names:
            found = ", ".join(entry.removesuffix(".npy") for entry in names) or "none"
            raise DataError(f"{path}: expected an array {name!r}, found {found}")
        member = archive.getinfo(f"{name}.npy")
        if member.file_size > MAX_UNPACKED_BYTES:
            raise DataError(f"{source}: expected at most {MAX_UNPACKED_BYTES} bytes, got {member.file_size}")
        with archive.open(member) as stream:  # reading it to its end checks its sum
            count = -(-member.file_size // COPIED_BYTES)
            read = iter(partial(stream.read, COPIED_BYTES), b"")
            chunks = watched(read, f"opening {path.name}, MiB of {name}", count)
            if member.compress_type == zipfile.ZIP_STORED:
                deque(chunks, maxlen=0)
                with open(path, "rb") as file:
                    return map_from(file, _data_offset(file, member), member.file_size, source)
            with tempfile.TemporaryFile() as file:
                file.writelines(chunks)
                file.flush()
                return map_from(file, 0, member.file_size, source)


def _data_offset(file: BufferedIOBase, member: zipfile.ZipInfo) -> int:
    file.seek(member.header_offset)
    return member.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # Damaged archives raise BadZipFile, OSError, ValueError, struct.error, zlib.error, RuntimeError and others.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{source}: expected a readable .npz file, got {reason}") from error
