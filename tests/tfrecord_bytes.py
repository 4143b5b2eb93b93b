"""TFRecords of DeepMind's data sets byte by byte, with none of the libraries that the reader uses."""

import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def bitwise_crc32c(data: bytes) -> int:
    """Castagnoli's polynomial, reflected, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


TABLE = np.array([bitwise_crc32c(bytes([b])) ^ bitwise_crc32c(b"\0") for b in range(256)], np.uint32).tolist()


def crc32c(data: bytes) -> int:
    """By a table of the bitwise sums: the sum is linear."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def bytes_list(values: Sequence[bytes]) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def single_bytes(array: np.ndarray) -> bytes:
    """As DeepMind wrote arrays of uint8: a string for each byte."""
    strings = np.empty((array.size, 3), np.uint8)
    strings[:, 0], strings[:, 1], strings[:, 2] = 1 << 3 | 2, 1, array.ravel()
    return field(1, strings.tobytes())


def feature(values: np.ndarray | Sequence[bytes]) -> bytes:
    if not isinstance(values, np.ndarray):
        return bytes_list(values)
    if values.dtype == np.uint8:
        return single_bytes(values)
    if values.dtype.kind == "i":
        return field(3, field(1, b"".join(varint(int(value)) for value in values.ravel())))
    return field(2, field(1, values.astype("<f4").tobytes()))


def example(features: Mapping[str, np.ndarray | Sequence[bytes]]) -> bytes:
    entries = [field(1, name.encode()) + field(2, feature(values)) for name, values in features.items()]
    return field(1, b"".join(field(1, entry) for entry in entries))


# Scenes of each layout.

FLOATS = {
    "clevr": ("x", "y", "z", "rotation"),
    "dsprites": ("x", "y", "shape", "scale", "orientation"),
    "tetrominoes": ("x", "y", "shape"),
    "room": (),
}
LAYOUTS = {
    "clevr": ("clevr", 240, 320, 3, 11),
    "binarized": ("dsprites", 64, 64, 1, 4),
    "colored_on_grayscale": ("dsprites", 64, 64, 3, 6),
    "colored_on_colored": ("dsprites", 64, 64, 3, 5),
    "tetrominoes": ("tetrominoes", 35, 35, 3, 4),
    "train": ("room", 64, 64, 3, 7),
    "six_objects": ("room", 64, 64, 3, 10),
    "empty_room": ("room", 64, 64, 3, 4),
}


def record(name: str, seed: int = 0, num_visible: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The features of a random scene of a layout, and its labels; the first num_visible entities can be seen."""
    family, height, width, channels, entities = LAYOUTS[name]
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_visible or entities, (height, width))
    masks = np.where(labels == np.arange(entities)[:, None, None], 255, 0).astype(np.uint8)
    features = {
        "image": rng.integers(0, 256, (height, width, channels)).astype(np.uint8),
        "mask": np.moveaxis(masks, 0, 2) if family == "dsprites" else masks,
    }
    features |= {factor: rng.random(entities).astype(np.float32) for factor in FLOATS[family]}
    if family == "clevr":
        features["pixel_coords"] = rng.random((entities, 3)).astype(np.float32)
        codes = ("size", "material", "shape", "color")
        features |= {factor: rng.integers(0, 9, entities).astype(np.uint8) for factor in codes}
    elif family != "room":
        features["color"] = rng.random((entities, channels)).astype(np.float32)
    if family != "room":
        features["visibility"] = (np.arange(entities) < (num_visible or entities)).astype(np.float32)
    return features, labels


def write(path: Path, *payloads: bytes, packed: bool = False) -> Path:
    data = b"".join(map(framed, payloads))
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return path
