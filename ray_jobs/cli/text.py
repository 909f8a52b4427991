"""Tables and records as plain text, no wider than the terminal and at most 120 columns."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

WIDTH, NARROW = 120, 72  # columns: at most, and what a terminal is taken to have at least
NARROWEST = 12  # columns a text may shrink to before the rows are shown as records instead
GAP = "  "


def terminal_width() -> int:
    """Columns to fill: those of the terminal, within bounds; WIDTH where stdout is none."""
    if not sys.stdout.isatty():
        return WIDTH
    return max(NARROW, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def frame_text(frame: pl.DataFrame, width: int = WIDTH) -> str:
    """`frame` as a table, its longest texts cut if need be; where even that is too wide, one record below the other.

    Floats have six digits.
    """
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    rows = [[cell_text(value) for value in row] for row in frame.iter_rows()]
    widths = [max(map(len, column)) for column in zip(frame.columns, *rows, strict=True)]
    widths = _fitted(widths, numeric, width)
    if sum(widths) + len(GAP) * (len(widths) - 1) > width:
        return "\n\n".join(record_text(zip(frame.columns, row, strict=True), width) for row in frame.iter_rows())
    return "\n".join(aligned(row, widths, numeric) for row in [frame.columns, *rows])


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines, every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [aligned(row, widths, [False] * len(widths)) for row in rows]


def record_text(items: Iterable[tuple[str, Any]], width: int = WIDTH) -> str:
    """One line an item, names to the left; values that are too long are cut."""
    cells = [(name, cell_text(value)) for name, value in items]
    indent = max((len(name) for name, _ in cells), default=0)
    return "\n".join(f"{name:<{indent}}{GAP}{cut(value, width - indent - len(GAP))}".rstrip() for name, value in cells)


def cell_text(value: Any) -> str:
    """One line for any value; empty for none."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, default=str)
    return " ".join(str(value).split())


def _fitted(widths: Sequence[int], numeric: Sequence[bool], width: int) -> list[int]:
    """`widths` with the widest texts shrunk until the line fits, or none is left to shrink."""
    fitted = list(widths)
    excess = sum(fitted) + len(GAP) * (len(fitted) - 1) - width
    texts = [i for i, is_number in enumerate(numeric) if not is_number]
    while excess > 0 and (widest := max(texts, key=lambda i: fitted[i], default=None)) is not None:
        if fitted[widest] <= NARROWEST:
            break
        fitted[widest] -= 1
        excess -= 1
    return fitted


def aligned(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    """One line of a table: texts to the left and cut where they are too long, numbers to the right."""
    padded = [
        cell.rjust(size) if is_number else cut(cell, size).ljust(size)
        for cell, size, is_number in zip(cells, widths, numeric, strict=True)
    ]
    return GAP.join(padded).rstrip()


def cut(text: str, width: int) -> str:
    """`text`, or its beginning and an ellipsis where it is longer than `width`."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def short_count(number: int) -> str:
    """Three digits and a unit: 512, 20.5k, 1.23M, 2.50B."""
    scaled, unit = float(number), ""
    for unit in ("", "k", "M", "B"):
        if scaled < 999.5 or unit == "B":
            break
        scaled /= 1000
    return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f}{unit}" if unit else str(number)


def clock_text(seconds: float) -> str:
    """`3:05`, or `2:03:05` from an hour on."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
