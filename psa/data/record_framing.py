"""The container of TFRecords: records framed by their length and masked CRC32C sums, in a plain or a GZIP file."""

import struct
import zlib
from array import array
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

from psa.data.gzip_streams import GZIP_MAGIC, MAX_STATES, GzipContent, GzipStream
from psa.errors import DataError
from psa.progress import Tell, long_work

HEADER = struct.Struct("<QI")  # length of the data, masked sum of the length's eight bytes
FOOTER = struct.Struct("<I")  # masked sum of the data
UNREADABLE = (OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Limits:
    """What a file may ask for: a few bytes of GZIP may promise anything.

    Attributes:
        record_bytes: the longest record, which is what memory has to hold.
        records: how many records; each takes 8 bytes of memory.
        unpacked_bytes: what a GZIP file may decompress to, which takes time alone.
        states: places of a GZIP file that are kept in memory, of some 50 KiB each.
    """

    record_bytes: int = 1 << 24
    records: int = 1 << 26
    unpacked_bytes: int = 1 << 40
    states: int = MAX_STATES


class RecordFile:
    """The records of one TFRecord file, by number; opening reads the headers alone, a record is read when asked for.

    A GZIP file, known by its magic, is decompressed once to find the records, and from the last kept place before a
    record to read it: reading in order goes through the file once more.

    Raises:
        DataError: A file that cannot be read, is empty, truncated, or damaged in a length, or above a limit.
    """

    def __init__(self, path: Path, limits: Limits = Limits()) -> None:
        self.path = path
        self._content: GzipContent | None = None
        self._bounds = array("q", [0])
        try:
            with open(path, "rb") as file:
                if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC:
                    self._content = GzipContent(path, limits.states)
            with long_work(f"opening {path.name}", path.stat().st_size) as tell, self._stream() as stream:
                self._find_bounds(stream, limits, tell)
        except UNREADABLE as error:
            raise _unreadable(self.source(len(self)) if self._content else str(path), error) from error

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, record: int) -> bytes:
        """The data of a record, its sum checked.

        Raises:
            DataError: The data are not those that the sum was made of.
        """
        source = self.source(record)
        begin = self._bounds[record] + HEADER.size
        length = self._bounds[record + 1] - FOOTER.size - begin
        try:
            with self._stream() as stream:
                stream.seek(begin)
                data, footer = stream.read(length), stream.read(FOOTER.size)
        except UNREADABLE as error:
            raise _unreadable(source, error) from error
        if len(footer) < FOOTER.size or FOOTER.unpack(footer)[0] != _masked_crc(data):
            raise DataError(f"{source}: expected data that match their checksum, got damaged data")
        return data

    def source(self, record: int) -> str:
        """The file with the number of the record in it."""
        return f"{self.path}[{record}]"

    def _stream(self) -> AbstractContextManager[BinaryIO | GzipStream]:
        # The file is opened for each record, so that many shards and forked workers share no handle.
        return open(self.path, "rb") if self._content is None else self._content.stream()

    def _find_bounds(self, stream: BinaryIO | GzipStream, limits: Limits, tell: Tell) -> None:
        """Note where each record begins, and where the last ends."""
        header = stream.read(HEADER.size)
        if not header:
            raise DataError(f"{self.path}: expected TFRecords, got an empty file")
        while header:
            length = self._checked_length(header, limits)
            end = self._bounds[-1] + HEADER.size + length + FOOTER.size
            stream.seek(end - FOOTER.size)
            rest = stream.read(FOOTER.size + HEADER.size)  # with the next one's header
            if len(rest) < FOOTER.size:
                source = self.source(len(self))
                raise DataError(f"{source}: expected {length} bytes of data, got a file that ends before them")
            self._bounds.append(end)
            header = rest[FOOTER.size :]
            tell(stream.packed if isinstance(stream, GzipStream) else end)
            if len(self) > limits.records:
                raise DataError(f"{self.path}: expected at most {limits.records} records, got more")
            if self._content and end > limits.unpacked_bytes:
                raise DataError(
                    f"{self.path}: expected at most {limits.unpacked_bytes} bytes when decompressed, got more; "
                    "decompress it with gunzip, plain files have no limit"
                )

    def _checked_length(self, header: bytes, limits: Limits) -> int:
        source = self.source(len(self))
        if len(header) < HEADER.size:
            raise DataError(f"{source}: expected a record, got a file that ends within its first {HEADER.size} bytes")
        length, crc = HEADER.unpack(header)
        if crc != _masked_crc(header[:8]):
            raise DataError(f"{source}: expected a TFRecord's length that matches its checksum, got a damaged one")
        if length > limits.record_bytes:
            raise DataError(f"{source}: expected a record of at most {limits.record_bytes} bytes, got {length}")
        return int(length)


_opened: "WeakValueDictionary[object, RecordFile]" = WeakValueDictionary()


def open_records(path: Path, limits: Limits = Limits()) -> RecordFile:
    """A ``RecordFile``, one for all who hold it while the file does not change: its splits find the records once."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(str(path), error) from error
    key = (path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, limits)
    found = _opened.get(key)
    if found is None:
        found = _opened[key] = RecordFile(path, limits)
    return found


def _unreadable(source: str, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return DataError(f"{source}: expected a readable TFRecord file, got {reason}")


def _masked_crc(data: bytes) -> int:
    from crc32c import crc32c  # here, so that commands that read no TFRecords do not pay for it

    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
