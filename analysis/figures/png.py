"""Writes small indexed PNG images: a heatmap cell is one pixel, 60 kB where vector rectangles take 3 MB."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

from analysis.figures.style import RGB


def encode_indexed(pixels: npt.NDArray[np.uint8], palette: list[RGB], *, transparent: bool = False) -> bytes:
    """PNG bytes of `pixels`, shape (height, width), each an index into at most 256 colours of `palette`.

    Args:
        transparent: whether index 0 is no colour but lets see what lies below.
    Raises ValueError for an empty image or an index beyond the palette. Source: PNG specification, W3C 2003.
    """
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"an image needs rows and columns, got shape {pixels.shape}")
    if int(pixels.max()) >= len(palette) or len(palette) > 256:
        raise ValueError(f"index {int(pixels.max())} is beyond a palette of {len(palette)} colours (256 at most)")
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits a pixel, colour type 3: palette
    colours = bytes(part for colour in palette for part in colour)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # each row begins with its filter: none
    chunks = [(b"IHDR", header), (b"PLTE", colours), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    if transparent:
        chunks.insert(2, (b"tRNS", b"\0"))  # opacity of the first colours, the others are opaque
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def data_url(png: bytes) -> str:
    """`data:image/png;base64,...`."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
