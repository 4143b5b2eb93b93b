"""Files that hold Python pickles: they are told from others by their names and headers, and never loaded."""

from pathlib import Path
from typing import Any, NoReturn

from numpy.lib import format as npy

from psa.errors import DataError

LMDB_FILE = "data.mdb"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".mdb", ".lmdb")


def recognises(path: Path) -> bool:
    """Whether it is an LMDB, by its file's name, a file that ends as pickles do, or an .npy of Python objects."""
    if path.is_dir():
        return (path / LMDB_FILE).is_file()
    return path.is_file() and (path.suffix.lower() in PICKLE_SUFFIXES or _has_objects(path))


def refuse(path: Path, *_: Any) -> NoReturn:
    """The line that says why, and what to do.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"{path}: expected images or arrays of numbers, got pickled Python objects, which are never loaded, since "
        "loading them runs code; save the images as HDF5 or PNG with the program that wrote them"
    )


def _has_objects(path: Path) -> bool:
    if path.suffix.lower() != ".npy":
        return False
    try:
        with open(path, "rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            return bool(read(file)[2].hasobject)
    except Exception:  # what a damaged header raises is not fixed; who opens the file hears of it
        return False
