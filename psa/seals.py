"""A checksum within a safetensors file, of all its bytes: a bit that flipped anywhere is noticed before it is used.

It is the first of the file's JSON notes, so that the header keeps one entry and its bytes one order.
"""

import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIGITS = 8
BLANK = "0" * DIGITS
SEAL = "crc32"
# As the header has it: the notes are JSON in a JSON string.
MARK = b'"notes":"{\\"' + SEAL.encode() + b'\\": \\"'
HEADER_LIMIT = 100_000_000  # safetensors' own


class BrokenSeal(Exception):
    """The bytes are not those that were written."""


def unsealed(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Notes with room for the checksum."""
    return {SEAL: BLANK, **notes}


def without_seal(notes: Any) -> dict[str, Any]:
    """Notes as they were given to :func:`unsealed`.

    Raises:
        BrokenSeal: If they are no table.
    """
    if not isinstance(notes, dict):
        raise BrokenSeal("its notes are no table")
    return {key: value for key, value in notes.items() if key != SEAL}


def sealed(payload: bytes) -> bytes:
    """A file's bytes, made with :func:`unsealed` notes, with their CRC-32 in its room."""
    place = payload.index(MARK) + len(MARK)
    return b"".join((payload[:place], b"%08x" % _checksum(payload, place), payload[place + DIGITS :]))


def check_seal(path: Path) -> None:
    """Hold a file to its checksum; one without a checksum (psa 0.1.0 wrote none) is not held to any.

    Raises:
        BrokenSeal: If they differ.
        OSError: If it cannot be read.
    """
    with open(path, "rb") as handle:
        start = handle.read(8)
        if len(start) < 8:
            raise BrokenSeal("it is shorter than any such file")
        handle.seek(0)
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            length = int.from_bytes(start, "little")
            mark = content.find(MARK, 8, 8 + min(length, HEADER_LIMIT))
            if mark < 0:
                return
            place = mark + len(MARK)
            if content[place : place + DIGITS] != b"%08x" % _checksum(content, place):
                raise BrokenSeal("its checksum is not that of its content")


def _checksum(content: bytes | mmap.mmap, place: int) -> int:
    """CRC-32 with the room of the checksum taken as blank."""
    with memoryview(content) as view:
        before = zlib.crc32(BLANK.encode(), zlib.crc32(view[:place]))
        return zlib.crc32(view[place + DIGITS :], before)
