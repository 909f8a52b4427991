"""Reads the JSONL files of older projects: one line a step, layer and projection, some of them torn or repeated.

A line is torn where a process was killed while it wrote, or two wrote at once: it is no JSON object with step, layer,
projection and tokens, and is left out. A line is repeated where a run was resumed and went over the same steps again:
of one file the last counts, as the newest attempt does in the results store. If the values differ, several runs may
have written to the file. Nobody can tell from here, so all of this is counted and shown to whoever imports.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muon_core.tables import PROJECTIONS

RowKey = tuple[int, int, str]
"""Step, layer, projection."""

FILES = ("manifold_stats.jsonl", "norms.jsonl", "alignment.jsonl", "singular_values.jsonl")
"""The unified layout, and the split one."""
COLUMNS = {
    "weight_norm": "weight_norm",
    "grad_norm": "grad_norm",
    "update_norm": "update_norm",
    "effective_rank": "effective_rank",
    "alignment": "update_alignment",
    "update_alignment": "update_alignment",
    "left_alignment": "left_alignment",
    "right_alignment": "right_alignment",
}
"""Field of a line -> column of `layers`. Others, as entropy, may be of a sample, or defined otherwise."""
_KEY = ("step", "layer", "proj", "tokens")
SAMPLE = 50  # singular values: a sample has at most so many, so a line with more holds the whole spectrum
_SPECTRUM = "spectrum"  # in a row: the columns of `spectra`


@dataclass(slots=True)
class Counts:
    """What was found in the lines of a run, beside its values."""

    lines: int = 0
    torn: int = 0
    """No JSON object with step, layer, projection and tokens."""
    repeated: int = 0
    """An earlier line of the same file has the same step, layer and projection; the last counts."""
    changed: int = 0
    """Repeated with other values: several runs, or a run and its resumption, wrote to one file."""
    unmatched: int = 0
    """Left out: another file has the same step, layer and projection at another number of tokens."""
    sampled_spectra: int = 0
    """Marked as such."""
    sampled_ranks: int = 0
    """Effective ranks left out, for they are what the sample of singular values beside them gives."""
    ignored: set[str] = field(default_factory=set)
    """Fields that were not imported."""


def read_layer_tables(files: list[Path], counts: Counts) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `layers` and of `spectra` from the lines of one run's files, sorted; `counts` gets what was odd."""
    rows: dict[RowKey, dict[str, Any]] = {}
    for path in files:
        for key, row in _last_lines(path, counts).items():
            if row.keys() <= {"tokens"}:
                continue
            known = rows.setdefault(key, row)
            if known["tokens"] == row["tokens"]:
                known.update(row)
            else:
                counts.unmatched += 1
    layers, spectra = [], []
    for key in sorted(rows, key=lambda key: (key[0], key[1], PROJECTIONS.index(key[2]))):
        row = rows[key]
        where = {"step": key[0], "layer": key[1], "projection": key[2], "tokens": row.pop("tokens")}
        if spectrum := row.pop(_SPECTRUM, None):
            spectra.append(where | spectrum)
        if row:
            layers.append(where | row)
    return layers, spectra


def _last_lines(path: Path, counts: Counts) -> dict[RowKey, dict[str, Any]]:
    """The last row of each step, layer and projection in one file."""
    rows: dict[RowKey, dict[str, Any]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in filter(str.strip, file):
            counts.lines += 1
            line = _parse(text)
            if line is None:
                counts.torn += 1
                continue
            key, row = (line["step"], line["layer"], line["proj"]), _row(line, counts)
            if key in rows:
                counts.repeated += 1
                counts.changed += rows[key] != row
            rows[key] = row
    return rows


def _parse(text: str) -> dict[str, Any] | None:
    """The line as an object, or None if it is torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or line.get("proj") not in PROJECTIONS:
        return None
    if not all(type(line.get(name)) is int for name in ("step", "layer", "tokens")):
        return None
    spectrum = line.get("singular_values", [])
    numbers = [line[name] for name in COLUMNS if name in line] + (
        spectrum if isinstance(spectrum, list) else [spectrum]
    )
    return line if all(map(is_number, numbers)) else None


def _row(line: dict[str, Any], counts: Counts) -> dict[str, Any]:
    """Values of the columns of `layers` and `spectra` a line has."""
    counts.ignored |= line.keys() - COLUMNS.keys() - set(_KEY) - {"singular_values"}
    row = {"tokens": line["tokens"]} | {column: line[name] for name, column in COLUMNS.items() if name in line}
    values = sorted(line.get("singular_values", []), reverse=True)
    if not values:
        return row
    is_sample = len(values) <= SAMPLE
    if is_sample and _is_rank_of(values, row.get("effective_rank")):
        counts.sampled_ranks += 1
        del row["effective_rank"]
    counts.sampled_spectra += is_sample
    return row | {_SPECTRUM: {"singular_values": values} | ({"sampled": True} if is_sample else {})}


def _is_rank_of(values: list[float], rank: float | None) -> bool:
    """Whether `rank` is what `values` alone give, by singular values or by their squares."""
    return rank is not None and any(
        math.isclose(rank, _effective_rank([value**power for value in values]), rel_tol=1e-3) for power in (1, 2)
    )


def _effective_rank(weights: list[float]) -> float:
    total = sum(weights)
    shares = [weight / total for weight in weights if weight > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


def is_number(value: Any) -> bool:
    """Whether `value` is a number of JSON, or NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
