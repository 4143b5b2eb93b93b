"""JSON that a user supplies: read and picked apart so that whatever is wrong comes out as one DataError naming it."""

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

from psa.errors import DataError
from psa.progress import long_work

SLOW_BYTES = 1 << 26  # what takes some seconds to read
MAX_NUMBER = 1e15  # integers to here are exact as floats
Kind = TypeVar("Kind", dict, list, str, int)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DataError: A file that cannot be read, is no JSON, or holds something else.
    """
    try:
        with long_work(f"reading {path.name}", at_once=path.stat().st_size > SLOW_BYTES):
            value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path}: expected a readable JSON file, got {reason}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {_kind(value)}")
    return value


def take(record: object, key: str, kind: type[Kind], source: str) -> Kind:
    """The value of a key, which must be there and of the kind.

    Args:
        record: What should be an object.
        key: Its key.
        kind: dict, list, str, or int, which a bool is not.
        source: What to name in the error.

    Raises:
        DataError: No object, no such key, or another kind.
    """
    value = record.get(key) if isinstance(record, dict) else None
    is_number = kind is int and isinstance(value, int) and abs(value) <= MAX_NUMBER and not isinstance(value, bool)
    if is_number or (kind is not int and isinstance(value, kind)):
        return value  # type: ignore[return-value]
    raise DataError(f"{source}: {key!r}: expected {_NAMES[kind]}, got {_kind(value)}")


def take_numbers(record: object, key: str, count: int, source: str) -> Float64[np.ndarray, " count"]:
    """The value of a key as finite numbers; one number stands for a list of one.

    Raises:
        DataError: No such key, another number of them, or something else.
    """
    value = record.get(key) if isinstance(record, dict) else None
    values = value if isinstance(value, list) else [value]
    if len(values) != count or not all(_is_number(number) for number in values):
        wanted = "a finite number" if count == 1 else f"{count} finite numbers"
        raise DataError(f"{source}: {key!r}: expected {wanted}, got {_kind(value)}")
    return np.array(values, np.float64)


def _is_number(value: object) -> bool:
    """No infinity, and no NaN, which Python's JSON may have, passes the comparison."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def _kind(value: object) -> str:
    """What a value is, in one short line."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list | str):
        return f"{_NAMES[type(value)]} of length {len(value)}"
    return repr(value) if len(repr(value)) <= 40 else f"a long {type(value).__name__}"
