"""What was drawn: the pixels of PNG images, and of the first panel of a heatmap."""

import re
import struct
import zlib

import numpy as np
import numpy.typing as npt

from analysis.figures.heatmap_drawing import draw_heatmap
from analysis.figures.panels import Heatmap
from analysis.figures.svg import to_png, to_svg

Pixels = npt.NDArray[np.uint8]


def decode_png(png: bytes) -> Pixels:
    """(height, width, channels) of an 8-bit PNG without interlacing; palettes stay indices."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    step = {3: 1, 2: 3, 6: 4}[colour]
    raw = zlib.decompress(chunks[b"IDAT"])
    rows, above = [], np.zeros(width * step, np.int64)
    for y in range(height):
        line = raw[y * (width * step + 1) : (y + 1) * (width * step + 1)]
        above = _unfilter(line[0], np.frombuffer(line[1:], np.uint8).astype(np.int64), above, step)
        rows.append(above.astype(np.uint8))
    return np.stack(rows).reshape(height, width, step)


def _unfilter(kind: int, line: npt.NDArray[np.int64], above: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int64]:
    if kind in (0, 2):
        return (line + (above if kind else 0)) % 256
    out = line.copy()
    for i in range(len(line)):
        a, b, c = (out[i - step] if i >= step else 0), above[i], (above[i - step] if i >= step else 0)
        nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        out[i] = (line[i] + {1: a, 3: (a + b) // 2, 4: nearest}[kind]) % 256
    return out


def panel_pixels(info: Heatmap) -> Pixels:
    """The rendered picture of the first panel, (height, width, 3), at two pixels a unit."""
    svg = to_svg(*draw_heatmap(info), name="h", title="t", description="d")
    pixels = decode_png(to_png(svg, scale=2))
    image = re.search(r'<image[^>]*transform="translate\(([\d.]+),([\d.]+)\)" width="(\d+)" height="(\d+)"', svg)
    assert image is not None
    groups = [*open_groups(svg[: image.start()]), (image[1], image[2])]
    x, y = (sum(float(pair[axis]) for pair in groups) for axis in (0, 1))
    left, top, width, height = round(2 * x), round(2 * y), 2 * int(image[3]), 2 * int(image[4])
    return pixels[top : top + height, left : left + width, :3]


def open_groups(svg: str) -> list[tuple[str, str]]:
    """Translations of the groups that are open at the end of `svg`."""
    stack: list[tuple[str, str]] = []
    for tag in re.finditer(r"<g\b([^>]*)>|</g>", svg):
        if tag[0] == "</g>":
            stack.pop()
        else:
            move = re.search(r"translate\(([-\d.]+),([-\d.]+)\)", tag[1])
            stack.append((move[1], move[2]) if move else ("0", "0"))
    return stack
