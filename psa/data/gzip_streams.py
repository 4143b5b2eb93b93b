"""What a GZIP file decompresses to, read from any place, without unpacking it to memory or to the disk.

Reading keeps, every so many bytes, a copy of the decompressor's state, and goes on from the last one before the place
asked for, or from where the last reading ended. A state takes some 50 KiB. When there are more than ``max_states``,
every other one is dropped, and the next are kept at twice the distance. So of n bytes at most 2 n / max_states are
decompressed for a place, or ``LEAST_SPACING`` where that is more.
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

GZIP_MAGIC = b"\x1f\x8b"
GZIP_BITS = 16 + zlib.MAX_WBITS  # a header and a trailer of GZIP, whose sum zlib checks
READ_BYTES = 1 << 14  # of the packed file at a time; up to so many stay in a state
SKIPPED_BYTES = 1 << 18  # at a time
MAX_STATES = 1024
LEAST_SPACING = 1 << 18


@dataclass(frozen=True)
class Place:
    """Where reading can go on.

    Attributes:
        unpacked: Bytes before it, of what the file decompresses to.
        packed: Bytes of the file before it.
        state: The decompressor; None at the start of a member of the file, where a new one begins.
    """

    unpacked: int
    packed: int
    state: Any = None


class GzipContent:
    """The content of a GZIP file of one member or more; it holds no handle, and a copy of it in another process works.

    Args:
        path: The file.
        max_states: How many states are kept.
    """

    def __init__(self, path: Path, max_states: int = MAX_STATES) -> None:
        self._path, self._max_states = path, max_states
        self._spacing = LEAST_SPACING
        self._places = [Place(0, 0)]
        self._last: Place | None = None

    @contextmanager
    def stream(self) -> Iterator["GzipStream"]:
        """The content as a stream to seek and read in, where the last one ended.

        Raises:
            OSError, EOFError, zlib.error: The file cannot be read, ends too soon, or is damaged; within it too.
        """
        last, self._last = self._last, None  # what a damaged part leaves is not gone on from
        with open(self._path, "rb") as file:
            stream = GzipStream(self, file, last or self._places[0])
            yield stream
            self._last = stream.place()

    def before(self, offset: int) -> Place:
        """The last place that is kept up to an offset of the content."""
        return self._places[bisect_right(self._places, offset, key=lambda place: place.unpacked) - 1]

    def is_due(self, offset: int) -> bool:
        """Whether a place at an offset is to be kept."""
        return offset >= self._places[-1].unpacked + self._spacing

    def keep(self, place: Place) -> None:
        """Keep a place behind all there are, with a state of its own."""
        self._places.append(_copied(place))
        if len(self._places) > self._max_states:
            self._spacing *= 2
            del self._places[1::2]

    def __getstate__(self) -> dict[str, Any]:
        # States cannot be pickled: they are found again when the copy reads.
        places = [place for place in self._places if place.state is None]
        return vars(self) | {"_places": places, "_last": None}


class GzipStream:
    """A position in the content; it moves to any other, forward by decompressing.

    Args:
        content: Where places are kept.
        file: The packed file, open.
        start: Where it begins; its state is taken over.
    """

    def __init__(self, content: GzipContent, file: BinaryIO, start: Place) -> None:
        self._content, self._file = content, file
        self._go_on_from(start)

    def place(self) -> Place:
        """Where it is; the state is its own and goes on being used."""
        return Place(self._unpacked, self._packed, self._state)

    @property
    def packed(self) -> int:
        """Bytes of the file that have been used."""
        return self._packed

    def seek(self, offset: int) -> None:
        """Go to an offset of the content, or to its end where that comes first."""
        kept = self._content.before(offset)
        if not kept.unpacked <= self._unpacked <= offset:
            self._go_on_from(_copied(kept))
        while self._unpacked < offset and self._next(min(SKIPPED_BYTES, offset - self._unpacked)):
            pass

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end."""
        found = bytearray()
        while len(found) < count and (part := self._next(count - len(found))):
            found += part
        return bytes(found)

    def _go_on_from(self, place: Place) -> None:
        self._unpacked, self._packed, self._state = place.unpacked, place.packed, place.state
        self._file.seek(place.packed)
        self._input = b""

    def _next(self, limit: int) -> bytes:
        """Up to ``limit`` bytes more, one at least; none at the end."""
        part = b""
        while not part:
            if (self._state is None or self._state.eof) and not self._begin_member():
                return b""
            if self._content.is_due(self._unpacked):
                self._content.keep(self.place())
            given = self._input or self._file.read(READ_BYTES)
            part = self._state.decompress(given, limit)
            self._input = self._state.unused_data if self._state.eof else self._state.unconsumed_tail
            self._packed += len(given) - len(self._input)
            if not (given or part or self._state.eof):
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        self._unpacked += len(part)
        return part

    def _begin_member(self) -> bool:
        """Pass zeros, with which tools fill up what they write, to the next member; whether there is one."""
        given = self._input
        while True:
            self._input = given.lstrip(b"\0")
            self._packed += len(given) - len(self._input)
            if self._input:
                break
            given = self._file.read(READ_BYTES)
            if not given:
                return False
        if self._content.is_due(self._unpacked):
            self._content.keep(Place(self._unpacked, self._packed))
        self._state = zlib.decompressobj(GZIP_BITS)
        return True


def _copied(place: Place) -> Place:
    return place if place.state is None else replace(place, state=place.state.copy())
