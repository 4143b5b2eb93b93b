import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from archives import tarred
from hypothesis import given
from hypothesis import strategies as st

from psa.data.tar_members import BLOCK, read_members
from psa.errors import DataError

FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
MEMBERS = {"a.npy": b"1234", "deep/er/b.npy": bytes(BLOCK), "empty": b"", "ü.jpg": bytes(range(256)) * 5}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def holds(path: Path, expected: dict[str, bytes]) -> bool:
    data = path.read_bytes()
    return {m.name: data[m.offset : m.offset + m.size] for m in read_members(path)} == expected


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    """One member of four bytes and the end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type = kind
        for field, value in {"size": 4 if kind == tarfile.REGTYPE else 0, **fields}.items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(b"1234") if info.size else None)
    return buffer.getvalue()


def refused(path: Path, message: str, **limits: int) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_members(path, **limits)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_members_are_where_tarfile_wrote_them(tmp_path, form):
    names = {**MEMBERS, "long/" * 18 + "c.npy": b"12", "x" * 120 + "/" + "y" * 90: b"3"}
    if form != tarfile.USTAR_FORMAT:
        names["z" * 300 + "/d.npy"] = b"4"
    assert holds(write(tmp_path / "a.tar", tarred(names, form)), names)


@given(st.lists(st.binary(max_size=1500), max_size=6), st.sampled_from(FORMS))
def test_members_of_any_length_are_found(tmp_path_factory, contents, form):
    members = {f"{i}.bin": data for i, data in enumerate(contents)}
    assert holds(write(tmp_path_factory.mktemp("tar") / "a.tar", tarred(members, form)), members)


def test_folders_global_headers_and_sizes_beyond_octal_are_understood(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("./folder/a.npy")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert holds(write(tmp_path / "a.tar", buffer.getvalue()), {"folder/a.npy": b"abc"})
    header = bytearray(tarred({"a": b"12345"}, tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (5).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:BLOCK])
    assert holds(write(tmp_path / "b.tar", bytes(header)), {"a": b"12345"})


@pytest.mark.parametrize("name", ["../a.npy", "/etc/a.npy", "a/../../b.npy", "..", "..\\a.npy", "C:/a.npy", "x/.."])
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path, name):
    refused(
        write(tmp_path / "a.tar", entry(name)), r"\[0\]: expected a name inside the archive, got .*, which is never"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "a.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    data = entry("a.npy", kind, linkname="/etc/passwd")
    refused(write(tmp_path / "a.tar", data), r"\[0\]: expected files and folders alone, got a link or device")


def test_sparse_files_are_refused(tmp_path):
    refused(write(tmp_path / "a.tar", entry("a", pax_headers={"GNU.sparse.major": "1"})), r"got a sparse one$")
    refused(write(tmp_path / "b.tar", entry("a", tarfile.GNUTYPE_SPARSE)), r"got a link or device")


def test_members_and_names_above_the_limits_are_refused(tmp_path):
    path = write(tmp_path / "a.tar", tarred({"a": bytes(1000)}))
    assert len(read_members(path, max_member_bytes=1000)) == 1
    refused(path, r"\[0\]: expected a member of at most 999 bytes, got 1000$", max_member_bytes=999)
    long = write(tmp_path / "b.tar", tarred({"x" * 70_000: b""}))
    refused(long, r"\[0\]: expected a name of at most 65536 bytes, got 70\d\d\d$")


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_truncated_anywhere_before_its_end_mark_is_refused(tmp_path, form):
    data = tarred({"a.npy": bytes(600), "b.npy": b"1"}, form)
    length = len(data.rstrip(b"\0"))
    for kept in (1, 100, BLOCK, BLOCK + 10, 2 * BLOCK, 3 * BLOCK, length - 1, length, -(-length // BLOCK) * BLOCK):
        refused(write(tmp_path / "a.tar", data[:kept]), r"\[\d\]: expected .*, got a file that ends before")


def test_headers_are_held_to_their_sums(tmp_path):
    data = tarred({"a.npy": b"1234"}, tarfile.USTAR_FORMAT)
    for position in np.random.default_rng(0).integers(0, BLOCK, 40):
        turned = bytearray(data)
        turned[position] ^= 4
        refused(write(tmp_path / "a.tar", bytes(turned)), r"\[0\]: expected ")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (b"12 path=ab\n", r"expected the records of a pax header"),
        (b"99 path=a\n", r"expected the records of a pax header"),
        (b"0 path=a\n", r"expected the records of a pax header"),
        (b"10 path a\n", r"expected the records of a pax header"),
        (b"11 size=-4\n", r"expected a size in a pax header, got b'-4'$"),
        (b"20 size=99999999999\n", r"expected 99999999999 bytes, got a file that ends before them$"),
        (b"11 path=\xff\xfe\n", r"expected a name in UTF-8"),
        (b"14 path=../ab\n", r"expected a name inside the archive"),
    ],
)
def test_pax_headers_that_make_no_sense_are_refused(tmp_path, extra, message):
    pax = entry("pax", size=4).replace(b"1234", extra + bytes(4 - len(extra) % 4))  # of the wrong size yet
    header = bytearray(pax[:BLOCK])
    header[124:136], header[156:157], header[148:156] = b"%011o\0" % len(extra), b"x", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    refused(write(tmp_path / "a.tar", bytes(header) + extra.ljust(BLOCK, b"\0") + entry("a.npy")), message)


def test_what_is_no_tar_file_is_named(tmp_path):
    refused(tmp_path / "none.tar", r": expected a readable tar file, got No such file or directory$")
    refused(write(tmp_path / "empty.tar", b""), r"\[0\]: expected a member or the end mark of a tar file")
    refused(write(tmp_path / "a.tar", b"no tar file" * 100), r"\[0\]: expected a number in a tar header")
    refused(
        write(tmp_path / "b.tar", b"\x1f\x8b" + bytes(600)), r": expected a tar file that is not compressed, .*gunzip"
    )
