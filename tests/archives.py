"""Archives written from their formats' definitions, with none of what the readers use: .npy and .npz byte by byte, and
tar shards with tarfile. Small data sets in them, for the readers' own tests and for what spoils files."""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def npy(array: np.ndarray) -> bytes:
    """Version 1.0: magic, the header's length, a Python literal filled up with spaces to 64 bytes, the numbers."""
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    text = f"{{'descr': {array.dtype.str!r}, 'fortran_order': {fortran}, 'shape': {array.shape!r}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + array.tobytes("F" if fortran else "C")


def zipped(members: Mapping[str, bytes], *, deflated: bool = False) -> bytes:
    """Local headers with their data, then the directory, then its end, as in PKWARE's note."""
    local, directory = b"", b""
    for name, data in members.items():
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(data) + packer.flush() if deflated else data
        common = struct.pack("<4H3I", 0, 8 if deflated else 0, 0, 33, zlib.crc32(data), len(packed), len(data))
        title, place = name.encode(), len(local)
        sizes = struct.pack("<2H", len(title), 0)
        local += b"PK\x03\x04" + struct.pack("<H", 20) + common + sizes + title + packed
        directory += b"PK\x01\x02" + struct.pack("<2H", 20, 20) + common + sizes
        directory += struct.pack("<3HII", 0, 0, 0, 0, place) + title
    count, size = len(members), len(directory)
    return local + directory + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count, count, size, len(local), 0)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray | bytes], *, deflated: bool = False) -> Path:
    """Arrays by name; bytes are a member as they are."""
    members = {f"{n}.npy": a if isinstance(a, bytes) else npy(a) for n, a in arrays.items()}
    path.write_bytes(zipped(members, deflated=deflated))
    return path


def tarred(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def npy_gz(array: np.ndarray) -> bytes:
    return gzip.compress(npy(array), mtime=0)


def picture(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


# Small data sets.


def sample(seed: int, size: int = 16) -> dict[str, np.ndarray]:
    """An image, labels 0 to 3, and two factors."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, size, 3)).astype(np.uint8),
        "mask": rng.integers(0, 4, (size, size)).astype(np.uint8),
        "color": rng.random((3, 3)).astype(np.float32),
        "count": np.array(seed),
    }


def members(seed: int, key: str, size: int = 16) -> dict[str, bytes]:
    return {f"{key}.{name}.npy.gz": npy_gz(array) for name, array in sample(seed, size).items()}


def write_shards(folder: Path, count: int = 12, size: int = 16) -> Path:
    """Two shards of scenes named by their seeds."""
    for shard, seeds in enumerate((range(count // 2), range(count // 2, count))):
        parts = [members(seed, f"{seed:06}", size) for seed in seeds]
        (folder / f"shard-{shard:06}.tar").write_bytes(tarred({n: d for part in parts for n, d in part.items()}))
    return folder


def brady(count: int = 12, size: int = 16, most: int = 3) -> dict[str, np.ndarray]:
    """Images of noise with up to ``most`` objects each, none in the first."""
    rng = np.random.default_rng(0)
    number = np.arange(count) % (most + 1)
    present = np.arange(most) < number[:, None]
    return {
        "arr_0": rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8),
        "arr_1": rng.random((count, most, 5)) * present[..., None],
        "arr_2": number,
    }


def write_brady(folder: Path, *, deflated: bool = False) -> Path:
    return write_npz(folder / "sprites.npz", brady(), deflated=deflated)


def dsprites(size: int = 16) -> dict[str, np.ndarray | bytes]:
    """Blocks of three sizes at 36 places, and the pickle that stands beside them in the real file."""
    rows = [(shape, top, left) for shape in (1, 2, 3) for top in range(6) for left in range(6)]
    images = np.zeros((len(rows), size, size), np.uint8)
    for image, (shape, top, left) in zip(images, rows, strict=True):
        image[2 * top : 2 * top + 2 + shape, 2 * left : 2 * left + 2 + shape] = 1
    values = np.array([(1, shape, 0.5 + shape / 10, shape, left / 5, top / 5) for shape, top, left in rows], np.float64)
    pickled = npy(np.zeros(1)).replace(b"'<f8'", b"'|O' ")
    return {"metadata": pickled, "imgs": images, "latents_values": values}


def write_dsprites(folder: Path, *, deflated: bool = True) -> Path:
    return write_npz(folder / "dsprites.npz", dsprites(), deflated=deflated)


# Tokens.

TOKENS = np.random.default_rng(0).normal(size=(5, 6, 2))
LABELS = np.random.default_rng(1).integers(0, 3, (5, 6))


def write_tokens(path: Path, *, deflated: bool = False) -> Path:
    """Five images of six tokens of two features; in an .npz with labels."""
    if path.suffix == ".npz":
        return write_npz(path, {"tokens": TOKENS, "labels": LABELS}, deflated=deflated)
    path.write_bytes(npy(TOKENS))
    return path
