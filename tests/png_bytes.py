"""PNG files byte by byte from the format's definition (www.w3.org/TR/png), without the libraries that read them."""

import struct
import zlib

import numpy as np

GRAY, RGB, PALETTE, RGBA = 0, 2, 3, 6


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """An image (H, W) of gray levels, or of indices into a palette (colours, 3), or (H, W, 3) or (H, W, 4)."""
    height, width = pixels.shape[:2]
    depth = 16 if pixels.dtype == np.uint16 else 8
    kind = {2: GRAY if palette is None else PALETTE, 3: RGB if pixels.shape[-1] == 3 else RGBA}[pixels.ndim]
    rows = np.ascontiguousarray(pixels, ">u2" if depth == 16 else np.uint8).reshape(height, -1)
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)  # 0: no filter
    colours = b"" if palette is None else chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + colours + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
