"""One process at a time in a run directory. The kernel lets go of the lock when a process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from psa.errors import RunError

LOCK = ".lock"
_held: set[Path] = set()  # POSIX locks do not keep a process from itself


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if it is missing, and again removed if nothing was put in it.

    A lock of POSIX (fcntl): processes that this one starts or forks do not hold it, so that it ends with this one. Of
    several processes that are one job, one asks for it.

    Raises:
        RunError: If another process holds it, or the folder cannot be made or locked.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.resolve() / LOCK
        handle = _lock(path, folder)
    except OSError as error:
        raise RunError(f"{folder}: expected a directory that can be made and locked ({error.strerror})") from None
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)  # while it is locked: whoever opened it meanwhile sees that it is gone
        handle.close()
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _lock(path: Path, folder: Path) -> TextIO:
    """The lock's file, open and locked; it names its process for those who are refused."""
    if path in _held:
        raise RunError(f"{folder}: is in use by this process already")
    while True:
        handle = open(path, "a+")  # noqa: SIM115
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with handle:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
            raise RunError(f"{folder}: is in use by {holder}; wait for its end, or take another directory") from None
        except OSError:
            handle.close()
            raise
        if _is_still(path, handle):
            with suppress(OSError):  # on a full disk it has no name
                os.ftruncate(handle.fileno(), 0)
                os.write(handle.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())
            return handle
        handle.close()  # its holder removed it between our opening and our locking


def _is_still(path: Path, handle: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False
