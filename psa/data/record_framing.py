"""The container of TFRecords: records framed by their length and masked CRC32C sums, in a plain or a GZIP file."""

import gzip
import mmap
import struct
import tempfile
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path

from psa.errors import DataError

HEADER = struct.Struct("<QI")  # length of the data, masked sum of the length's eight bytes
FOOTER = struct.Struct("<I")  # masked sum of the data
MAX_RECORD_BYTES = 1 << 24
MAX_UNPACKED_BYTES = 1 << 34
GZIP_MAGIC = b"\x1f\x8b"
COPIED_BYTES = 1 << 20


class RecordFile:
    """The records of one TFRecord file, by number; opening reads the headers alone, a record is read when asked for.

    A GZIP file, known by its magic, is decompressed once, into a temporary file that has no name.

    Args:
        path: The file.
        max_record_bytes: The longest record that is read; a longer one is an error.
        max_unpacked_bytes: The most that a GZIP file may decompress to.

    Raises:
        DataError: A file that cannot be read, is empty, truncated, or damaged in a length.
    """

    def __init__(
        self,
        path: Path,
        max_record_bytes: int = MAX_RECORD_BYTES,
        max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
    ) -> None:
        self.path = path
        with _reading(path):
            with open(path, "rb") as file:
                is_packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            self._unpacked = _unpack(path, max_unpacked_bytes) if is_packed else None
            size = path.stat().st_size if self._unpacked is None else len(self._unpacked)
            if size == 0:
                raise _empty(path)
            with self._stream() as stream:
                self._bounds = _find_bounds(stream, size, path, max_record_bytes)

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
        with _reading(source), self._stream() as stream:
            stream.seek(begin)
            data, footer = stream.read(length), stream.read(FOOTER.size)
        if len(footer) < FOOTER.size or FOOTER.unpack(footer)[0] != _masked_crc(data):
            raise DataError(f"{source}: expected data that match their checksum, got damaged data")
        return data

    def source(self, record: int) -> str:
        """The file with the number of the record in it."""
        return f"{self.path}[{record}]"

    def _stream(self) -> "nullcontext[mmap.mmap] | BufferedReader":
        # A plain file is opened for each record, so that many shards and forked workers share no handle.
        return open(self.path, "rb") if self._unpacked is None else nullcontext(self._unpacked)


def _find_bounds(stream: BufferedReader | mmap.mmap, size: int, path: Path, max_record_bytes: int) -> "array[int]":
    """Where each record begins, and where the last ends."""
    bounds = array("q", [0])
    while bounds[-1] < size:
        source = f"{path}[{len(bounds) - 1}]"
        stream.seek(bounds[-1])
        header = stream.read(HEADER.size)
        if len(header) < HEADER.size:
            raise DataError(f"{source}: expected a record, got a file that ends within its first {HEADER.size} bytes")
        length, crc = HEADER.unpack(header)
        if crc != _masked_crc(header[:8]):
            raise DataError(f"{source}: expected a TFRecord's length that matches its checksum, got a damaged one")
        if length > max_record_bytes:
            raise DataError(f"{source}: expected a record of at most {max_record_bytes} bytes, got {length}")
        end = bounds[-1] + HEADER.size + length + FOOTER.size
        if end > size:
            raise DataError(f"{source}: expected {length} bytes of data, got a file that ends before them")
        bounds.append(end)
    return bounds


def _unpack(path: Path, max_bytes: int) -> mmap.mmap:
    """What a GZIP file decompresses to, chunk by chunk, with an end at the limit."""
    num_bytes = 0
    with gzip.open(path, "rb") as packed, tempfile.TemporaryFile() as unpacked:
        while chunk := packed.read(COPIED_BYTES):
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise DataError(
                    f"{path}: expected at most {max_bytes} bytes when decompressed, got more; "
                    "decompress it with gunzip, plain files have no limit"
                )
            unpacked.write(chunk)
        if num_bytes == 0:
            raise _empty(path)
        unpacked.flush()
        # The mapping outlives the handle, and the file, which no other process can truncate, goes with the mapping.
        return mmap.mmap(unpacked.fileno(), 0, access=mmap.ACCESS_READ)


def _empty(path: Path) -> DataError:
    return DataError(f"{path}: expected TFRecords, got an empty file")


def _masked_crc(data: bytes) -> int:
    from crc32c import crc32c  # here, so that commands that read no TFRecords do not pay for it

    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@contextmanager
def _reading(source: object) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{source}: expected a readable TFRecord file, got {reason}") from error
