"""Reads the JSONL files of older projects: one line a step, layer and projection, some of them torn or repeated.

A line is torn where a process was killed while it wrote, or two wrote at once: it is no JSON object with step, layer,
projection and tokens, and is left out. A line is repeated where a run was resumed and went over the same steps again:
of one file the last counts, as the newest attempt does in the results store. If the values differ, several runs may
have written to the file. Nobody can tell from here, so all of this is counted and shown to whoever imports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muon_core.tables import PROJECTIONS

RowKey = tuple[int, int, str]
"""Step, layer, projection."""

LayerRows = dict[RowKey, dict[str, Any]]
"""Values of columns, and `tokens`, by where they were measured."""

UNIFIED = "manifold_stats.jsonl"
FILES = (UNIFIED, "norms.jsonl", "alignment.jsonl", "singular_values.jsonl")
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
"""Field of a line -> column of `layers`. Others, as entropy, may be of a sample, or defined otherwise. The norms of the
unified layout are maxima since the last line, and become the peaks."""
_KEY = ("step", "layer", "proj", "tokens")
SAMPLE = 50  # singular values: a sample has at most so many, so a line with more holds the whole spectrum
SPECTRUM = "spectrum"  # in a row: the columns of `spectra`
_NORMS = {"weight_norm", "grad_norm"}
"""Of the unified layout maxima since the last line: a file of it has no norm at a step."""
_PEAKS = {f"{name}_peak" for name in _NORMS}
_SIDES = ("update_alignment", "left_alignment", "right_alignment")


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

    def sentences(self) -> list[str]:
        """What was odd or left out, a sentence each."""
        told = {
            f"{self.torn} of {self.lines} lines are torn and left out": self.torn,
            f"{self.repeated} of {self.lines} lines repeat a step, layer and projection, {self.changed} of them with "
            "other values; the last line of each counts": self.repeated,
            f"{self.unmatched} lines are left out, for another file has their step at other tokens": self.unmatched,
            f"{self.sampled_spectra} spectra may be samples and are marked so: of them only s_1 and s_2 are taken":
                self.sampled_spectra,
            f"{self.sampled_ranks} effective ranks are left out, computed from such samples": self.sampled_ranks,
            f"fields left out: {', '.join(sorted(self.ignored))}": self.ignored,
        }  # fmt: skip
        return [sentence for sentence, count in told.items() if count]


def read_layer_tables(
    files: list[Path], counts: Counts, more: Iterable[LayerRows] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `layers` and of `spectra` of one run, sorted; `counts` gets what was odd.

    Args:
        more: rows from other places than `files`, which fill in what those lack.
    """
    rows: LayerRows = {}
    for source in (*(_last_lines(path, counts) for path in files), *more):
        for key, row in source.items():
            if row.keys() <= {"tokens"}:
                continue
            known = rows.setdefault(key, row)
            if known["tokens"] == row["tokens"]:
                known.update(row | known)
            else:
                counts.unmatched += 1
    in_order = sorted(rows, key=lambda key: (key[0], key[1], PROJECTIONS.index(key[2])))
    _run_up_peaks([(key, rows[key]) for key in in_order])
    layers, spectra = [], []
    for key in in_order:
        row = rows[key]
        where = {"step": key[0], "layer": key[1], "projection": key[2], "tokens": row.pop("tokens")}
        spectrum = row.pop(SPECTRUM, None)
        _derive(row, spectrum, counts)
        if spectrum:
            spectra.append(where | spectrum)
        if row:
            layers.append(where | row)
    return layers, spectra


def _last_lines(path: Path, counts: Counts) -> LayerRows:
    """The last row of each step, layer and projection in one file."""
    with path.open(encoding="utf-8", errors="replace") as file:
        rows = rows_of_lines(map(_load, filter(str.strip, file)), counts)
    if path.name == UNIFIED:
        for row in rows.values():
            for norm in _NORMS & row.keys():
                row[f"{norm}_peak"] = row.pop(norm)
    return rows


def rows_of_lines(lines: Iterable[Any], counts: Counts) -> LayerRows:
    """The last row of each step, layer and projection of `lines`, decoded JSON of which some may be no line."""
    rows: LayerRows = {}
    for found in lines:
        counts.lines += 1
        line = _parse(found)
        if line is None:
            counts.torn += 1
            continue
        key, row = (line["step"], line["layer"], line["proj"]), _row(line, counts)
        if key in rows:
            counts.repeated += 1
            counts.changed += rows[key] != row
        rows[key] = row
    return rows


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _run_up_peaks(rows: list[tuple[RowKey, dict[str, Any]]]) -> None:
    """Make maxima since the last line what a peak column has: the largest value at any step so far."""
    highest: dict[tuple[int, str, str], float] = {}
    for (_, layer, projection), row in rows:
        for name in _PEAKS & row.keys():
            at = layer, projection, name
            row[name] = highest[at] = max(row[name], highest.get(at, -math.inf))


def _derive(row: dict[str, Any], spectrum: dict[str, Any] | None, counts: Counts) -> None:
    """Add what follows from the others: s_1 and s_1 / s_2, all metrics of a whole spectrum, the rank's entropy."""
    if spectrum:
        values, is_sample = spectrum["singular_values"], spectrum.get("sampled", False)
        counts.sampled_spectra += is_sample
        if is_sample and _is_rank_of(values, row.get("effective_rank")):
            counts.sampled_ranks += 1
            del row["effective_rank"]
        derived = of_largest(values) if is_sample else of_largest(values) | of_whole(values)
        row.update(derived | row)
    if "update_alignment" in row:  # the older layout has one side, which is the left
        row.setdefault("left_alignment", row["update_alignment"])
    rank = row.get("effective_rank")
    if rank is not None and rank > 0:
        row.setdefault("entropy", math.log(rank))


def of_largest(values: list[float]) -> dict[str, float]:
    """`spectral_norm` and `spectral_gap` from the largest singular values, in falling order."""
    found = {"spectral_norm": values[0]}
    return found | {"spectral_gap": values[0] / values[1]} if len(values) > 1 and values[1] > 0 else found


def of_whole(values: list[float]) -> dict[str, float]:
    """What all singular values of a matrix, in falling order, give beyond `of_largest`."""
    if not 0 < values[0] < math.inf:
        return {}
    shares = [(value / values[0]) ** 2 for value in values]
    error = math.sqrt(sum((share - 1) ** 2 for share in shares) / len(shares))
    return {
        "effective_rank": _effective_rank(values),
        "stable_rank": sum(shares),
        "orthogonality_error": error,
    }


def _parse(line: Any) -> dict[str, Any] | None:
    """The line, with an alignment of both sides as two fields; None if it is torn."""
    if not isinstance(line, dict) or line.get("proj") not in PROJECTIONS:
        return None
    if not all(type(line.get(name)) is int for name in ("step", "layer", "tokens")):
        return None
    if isinstance(pair := line.get("alignment"), list) and len(pair) == 2:
        line = line | dict(zip(_SIDES, [pair[0], *pair], strict=True))
        del line["alignment"]
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
    return row | {SPECTRUM: spectrum_row(values)} if values else row


def spectrum_row(values: list[float]) -> dict[str, Any]:
    """Columns of `spectra` for singular values in falling order; at most `SAMPLE` of them may be a sample."""
    return {"singular_values": values} | ({"sampled": True} if len(values) <= SAMPLE else {})


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
