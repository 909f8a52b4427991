"""What `--map` says: which column has which meaning, in which unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from muon_core.imports.names import MEANINGS
from muon_core.imports.units import UNITS
from muon_core.spelling import did_you_mean

CONFIG = "config."
"""Begins a meaning that is a parameter of the run: `config.weight_decay`."""
BYTES_A_TOKEN = "bytes_per_token"  # noqa: S105  # no password


@dataclass(frozen=True, slots=True)
class Asked:
    """Meaning -> (column, name of its unit); without a unit "", without a column nothing has that meaning."""

    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    bytes_per_token: float | None = None
    """Turns bits per byte into nats per token."""


def parse_map(texts: Iterable[str]) -> Asked:
    """`step=iter,val_accuracy=acc:percent` of one or several texts. Raises ValueError in a line for what is no map."""
    columns: dict[str, tuple[str, str]] = {}
    bytes_per_token = None
    for part in (part for text in texts for part in text.split(",") if part.strip()):
        meaning, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"--map {part.strip()!r} is no MEANING=COLUMN, such as val_loss=loss")
        if meaning in columns or (meaning == BYTES_A_TOKEN and bytes_per_token):
            raise ValueError(f"--map gives {meaning} twice")
        if meaning == BYTES_A_TOKEN:
            bytes_per_token = _positive(column)
        elif meaning in MEANINGS or len(meaning) > len(CONFIG) == len(meaning) - len(meaning.removeprefix(CONFIG)):
            head, colon, unit = column.rpartition(":")
            columns[meaning] = (head, unit) if colon and unit in UNITS.get(meaning, {}) else (column, "")
        else:
            raise ValueError(
                f"--map knows no {meaning!r}{did_you_mean(meaning, MEANINGS)}; "
                f"there are {', '.join(MEANINGS)}, {CONFIG}NAME and {BYTES_A_TOKEN}"
            )
    return Asked(columns, bytes_per_token)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"--map {BYTES_A_TOKEN}={text} is no number above 0, such as 4.8")
    return value


def listed(names: Iterable[str], most: int = 12) -> str:
    """`a, b, c and 4 more`."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more or "none"
