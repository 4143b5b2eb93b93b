"""Files that are whole or not there. Imports nothing beyond the standard library."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk, a quota and a limit on files say


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, bring it to the disk, then rename it; on failure nothing changes.

    The rename is brought to the disk too: after the return no loss of power brings the old file back.

    Raises:
        OSError: If it cannot be written; its ``filename`` is that of ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while writing this file left beside it; none may be writing it now."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        if leftover.suffix[1:].isdecimal():
            leftover.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
