"""What a file of another tool says, in the one shape that all readers of such files return."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""Column -> number, text or truth; what a line leaves empty is not in it."""


_OF_A_TOOL = re.compile(r"version_\d+|checkpoint-\d+|files|lightning_logs|csv_logs|logs?|latest-run")
"""Names of folders that a tool made, which say nothing of the run."""


class UnreadableLog(ValueError):
    """A file that cannot be imported: why, and what to do, in one line."""


@dataclass(slots=True)
class Log:
    """One file: its lines as rows, in their order, and what is known besides."""

    place: str
    """Path below the folder that is imported."""
    format: str
    """What kind of file it is, as the documentation calls it."""
    rows: list[Row]
    name: str
    """Of its run, where it holds one."""
    config: dict[str, Any] = field(default_factory=dict)
    lines: int = 0
    """Lines that held something, without a header."""
    torn: int = 0
    """Of those, left out: cut short, or no row."""
    entry: str = ""
    """Which of its file's runs it is, where that holds several one after the other."""
    is_one_run: bool = True
    """False if its rows may be of several."""
    planned_steps: int | None = None
    """How long the run was to be, where the file tells: one that ended earlier was stopped."""
    wall_s: float | None = None
    seed: int | None = None
    setting: tuple[str, str] | None = None
    """(what, its name) that stands for the optimizer where the log tells none, as ("folder", "tuned")."""
    notes: list[str] = field(default_factory=list)
    """What was odd about it or is not what a reader would take it for, a sentence each."""
    no_parameters: set[str] = field(default_factory=set)
    """Columns that `--map config.NAME=` says are none."""
    header: list[str] = field(default_factory=list)
    """All columns, where the file names them or somebody has listed them."""

    @property
    def columns(self) -> list[str]:
        """Every column, in the order they appear."""
        self.header = self.header or list(dict.fromkeys(name for row in self.rows for name in row))
        return self.header


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of nested mappings, joined by slashes as Ray and W&B do; lists and nulls are left out."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}/")
        elif isinstance(value, (str, int, float)):
            yield name, value


def number(value: Any) -> float | int | None:
    """`value` as a number, also of a text such as `3.2`, `nan` or `Infinity`; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    try:
        return float(value) if "_" not in value else None  # Python reads 1_000
    except (TypeError, ValueError):
        return None


def whole(value: Any) -> int | None:
    """`value` as a whole number that a table can hold, also of `100.0`; None if it is none."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    found = number(value)
    if found is None or not math.isfinite(found) or found != int(found) or abs(found) >= 1 << 63:
        return None
    return int(found)


def plain(value: Any) -> Any:
    """`value` as JSON would have it: a text that is a number becomes that."""
    if not isinstance(value, str):
        return value
    found = number(value)
    return value if found is None else int(value) if value.strip().isdecimal() else found


def own_name(path: Path) -> str:
    """The nearest folder above `path` that its user named."""
    names = (folder.name for folder in path.resolve().parents)
    return next((name for name in names if name and not _OF_A_TOOL.fullmatch(name)), path.stem)
