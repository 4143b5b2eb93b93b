"""Where the members of a tar file begin and how long they are: headers are read, nothing is unpacked.

The headers are those of POSIX.1-2001 (ustar and pax) and GNU tar; each is held to its checksum. Names say which member
is which and are never used as paths.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path

from psa.data.record_framing import GZIP_MAGIC
from psa.errors import DataError
from psa.progress import watched

BLOCK = 512
END = bytes(BLOCK)
MAX_MEMBER_BYTES = 1 << 28
MAX_NAME_BYTES = 1 << 16  # of a long name, or of a pax header, which holds one
FILE_TYPES = (b"0", b"\0", b"7")
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, FOLDER = b"L", b"K", b"x", b"g", b"5"


@dataclass(frozen=True)
class Member:
    """A file in a tar file: its name, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Given:
    """What stands ahead of a member's header because it does not fit into it."""

    name: str | None = None
    size: int | None = None


def read_members(path: Path, max_member_bytes: int = MAX_MEMBER_BYTES) -> list[Member]:
    """The files in a tar file, in its order; folders are left out.

    Args:
        path: The tar file, not compressed.
        max_member_bytes: The largest member that is accepted.

    Raises:
        DataError: A file that cannot be read, is damaged or truncated; a member that is too large, is no file or
            folder, or has a name that leads out of the folder.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC:
                raise DataError(f"{path}: expected a tar file that is not compressed, got GZIP; unpack it with gunzip")
            return list(watched(_members(file, path, max_member_bytes), f"opening {path.name}, members"))
    except OSError as error:
        raise DataError(f"{path}: expected a readable tar file, got {error.strerror or error}") from error


def _members(file: BufferedIOBase, path: Path, max_member_bytes: int) -> Iterator[Member]:
    end = file.seek(0, 2)
    position, number, given = 0, 0, _Given()
    while True:
        source = f"{path}[{number}]"
        header = _read_header(file, position, source)
        if header is None:
            return
        kind, length, data = header[156:157], _number(header[124:136], source), position + BLOCK
        if kind in FILE_TYPES and given.size is not None:
            length = given.size
        position = data + -(-length // BLOCK) * BLOCK
        if position > end:
            raise DataError(f"{source}: expected {length} bytes, got a file that ends before them")
        if kind in (LONG_NAME, PAX):
            given = _read_given(file, kind, length, given, source)
        elif kind in FILE_TYPES:
            if length > max_member_bytes:
                raise DataError(f"{source}: expected a member of at most {max_member_bytes} bytes, got {length}")
            yield Member(_checked_name(given.name or _name(header, source), source), data, length)
            given, number = _Given(), number + 1
        elif kind == FOLDER:
            given = _Given()
        elif kind not in (LONG_LINK, PAX_GLOBAL):
            raise DataError(f"{source}: expected files and folders alone, got a link or device (type {kind!r})")


def _read_header(file: BufferedIOBase, position: int, source: str) -> bytes | None:
    """The header at a position, its sum checked; None at the end mark, which is two blocks of zeros."""
    file.seek(position)
    header = file.read(BLOCK)
    if header == END and file.read(BLOCK) in (b"", END):
        return None
    if len(header) < BLOCK:
        raise DataError(f"{source}: expected a member or the end mark of a tar file, got a file that ends before")
    _require_sum(header, source)
    return header


def _require_sum(header: bytes, source: str) -> None:
    """The sum of the header's bytes, its own eight taken as spaces."""
    if _number(header[148:156], source) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise DataError(f"{source}: expected a tar header that matches its checksum, got something else")


def _number(digits: bytes, source: str) -> int:
    """Octal digits, or GNU's big-endian bytes behind 0x80 where they do not suffice."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    text = digits.partition(b"\0")[0].strip()
    if not all(digit in b"01234567" for digit in text):
        raise DataError(f"{source}: expected a number in a tar header, got {digits!r}")
    return int(text or b"0", 8)


def _name(header: bytes, source: str) -> str:
    name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    is_posix = header[257:263] == b"ustar\0"  # GNU's own headers have times where the prefix is
    return _text(prefix + b"/" + name if prefix and is_posix else name, source)


def _read_given(file: BufferedIOBase, kind: bytes, length: int, given: _Given, source: str) -> _Given:
    """What is said ahead of a member, added to what was said before."""
    if length > MAX_NAME_BYTES:
        raise DataError(f"{source}: expected a name of at most {MAX_NAME_BYTES} bytes, got {length}")
    data = file.read(length)
    if kind == LONG_NAME:
        return replace(given, name=_text(data.partition(b"\0")[0], source))
    for key, value in _pax_records(data, source):
        if key.startswith(b"GNU.sparse"):
            raise DataError(f"{source}: expected whole files, got a sparse one")
        if key == b"path":
            given = replace(given, name=_text(value, source))
        elif key == b"size":
            if not (value.isdigit() and len(value) < 20):
                raise DataError(f"{source}: expected a size in a pax header, got {value[:20]!r}")
            given = replace(given, size=int(value))
    return given


def _pax_records(data: bytes, source: str) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of records "LENGTH KEY=VALUE\\n", where the length is the record's own."""
    while data:
        digits = data.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = data[:length]
        key, is_pair, value = record[len(digits) + 1 : -1].partition(b"=")
        if not is_pair or len(record) < length or record[-1:] != b"\n":
            raise DataError(f"{source}: expected the records of a pax header, got {data[:20]!r}")
        yield key, value
        data = data[length:]


def _text(name: bytes, source: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: expected a name in UTF-8, got {name[:40]!r}") from error


def _checked_name(name: str, source: str) -> str:
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or parts[0] == "" or ".." in parts or parts[0].endswith(":"):
        raise DataError(f"{source}: expected a name inside the archive, got {name[:80]!r}, which is never followed")
    return name.removeprefix("./")
