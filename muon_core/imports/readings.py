"""Decides what the columns of a log mean, and in which unit: what `muon import` shows before it writes.

Two columns that may be the same and hold unlike values are never chosen between, and a duration that does not say its
unit is never taken for seconds: both are told, with the `--map` that settles it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muon_core.imports.log import Log, Row, UnreadableLog, flat, number
from muon_core.imports.mapping import BYTES_A_TOKEN, CONFIG, Asked, listed
from muon_core.imports.names import DURATIONS, IDENTITY, LOSSES, MEANINGS, NAMES, Named, parse_column
from muon_core.imports.units import UNITS, Unit, bits_per_byte
from muon_core.spelling import did_you_mean

_TEXTS = ("run", "optimizer")
_CONVERTED = ("train_perplexity", "val_bpb")  # they have no column here: what counts is the loss they give


@dataclass(frozen=True, slots=True)
class Reading:
    """A column, what it is taken for, and its unit where it may have several."""

    column: str
    meaning: str
    unit: Unit | None = None

    def __str__(self) -> str:
        """`val_acc -> val_accuracy: percent, divided by 100`."""
        return f"{self.column} -> {self.meaning}{f': {self.unit}' if self.unit else ''}"

    def value(self, row: Row) -> float | int | None:
        """The number `row` has here, in our unit. Raises ValueError for one that has none there."""
        found = number(row.get(self.column))
        return self.unit.convert(found) if self.unit and found is not None else found


def read_columns(log: Log, asked: Asked) -> list[Reading]:
    """The columns of `log` that mean something, and how; two of its readings may be of one column.

    Raises: UnreadableLog, in one line, where that is not clear.
    """
    readings = [_given(log, meaning, *column) for meaning, column in asked.columns.items() if column[0]]
    log.no_parameters |= {m.removeprefix(CONFIG) for m, column in asked.columns.items() if not column[0]}
    taken = {reading.column for reading in readings}
    names = {column: parse_column(column) for column in log.columns if column not in taken}
    for meaning in MEANINGS:
        if meaning in asked.columns or (meaning in IDENTITY and log.is_one_run):
            continue
        column = _candidate(log, meaning, names)
        if column is None:
            continue
        unit = _unit(log, meaning, column, names.pop(column))
        if unit is not None or meaning not in DURATIONS:
            readings.append(Reading(column, meaning, unit))
        else:
            log.notes.append(f"{column} is left out, as it does not say its unit: --map {meaning}={column}:minutes")
    readings += _losses_of(log, readings, asked)
    _check(log, readings)
    return [reading for reading in readings if reading.meaning not in _CONVERTED]


def _given(log: Log, meaning: str, column: str, unit: str) -> Reading:
    """What `--map` says."""
    known = [*log.columns, *(dict(flat(log.config)) if meaning in IDENTITY else ())]
    if column not in known:
        raise UnreadableLog(
            f"{log.place} has no column {column!r}{did_you_mean(column, known)} to be the {meaning}; "
            f"there are {listed(known)}"
        )
    found = UNITS[meaning][unit] if unit else _unit(log, meaning, column, parse_column(column))
    if found is None and meaning in DURATIONS:
        raise UnreadableLog(
            f"{log.place}: {column} does not say its unit; give it as in --map {meaning}={column}:minutes"
        )
    return Reading(column, meaning, found)


def _candidate(log: Log, meaning: str, names: Mapping[str, Named]) -> str | None:
    """The column that has `meaning`, if any. Raises UnreadableLog for several whose values differ."""
    units = UNITS.get(meaning, {})
    for group in NAMES[meaning]:
        found = [
            column for column, name in names.items() if name.is_in(group, units) and _is_filled(log, meaning, column)
        ]
        if meaning in DURATIONS:  # what tells its unit goes before what does not
            found = [column for column in found if names[column].unit in units] or found[:1]
        if not found:
            continue
        first, *others = found
        differing = [other for other in others if any(row.get(first) != row.get(other) for row in log.rows)]
        if differing:
            raise UnreadableLog(
                f"{log.place}: {' and '.join([first, *differing])} may each be the {meaning}; "
                f"say which with --map {meaning}={first}, or --map {meaning}= for none"
            )
        return first
    return None


def _is_filled(log: Log, meaning: str, column: str) -> bool:
    """Whether the column has a value of the kind that `meaning` has."""
    if meaning in _TEXTS:
        return any(column in row for row in log.rows)
    return any(number(row.get(column)) is not None for row in log.rows)


def _unit(log: Log, meaning: str, column: str, name: Named) -> Unit | None:
    """The unit that the name tells, or the values of an accuracy; else its own, but none for a duration."""
    units = UNITS.get(meaning, {})
    if name.unit in units:
        return units[name.unit]
    if not units or meaning in DURATIONS:
        return None
    if meaning == "val_accuracy":
        is_percent = any((number(row.get(column)) or 0) > 1 for row in log.rows)
        return units["percent" if is_percent else "share"]
    return next(iter(units.values()))


def _losses_of(log: Log, readings: list[Reading], asked: Asked) -> list[Reading]:
    """Losses that only their perplexity or their bits per byte tell."""
    columns = {reading.meaning: reading.column for reading in readings}
    found = []
    for loss, perplexity in zip(LOSSES, ("val_perplexity", "train_perplexity"), strict=True):
        if loss not in columns and perplexity in columns:
            found.append(Reading(columns[perplexity], loss, UNITS[loss]["perplexity"]))
    if "val_bpb" in columns and not {"val_loss", "val_perplexity"} & columns.keys():
        column = columns["val_bpb"]
        if asked.bytes_per_token:
            found.append(Reading(column, "val_loss", bits_per_byte(asked.bytes_per_token)))
        else:
            log.notes.append(
                f"{column} is left out: bits per byte become nats per token with --map {BYTES_A_TOKEN}=N, "
                "the mean bytes of a token"
            )
    return found


def _check(log: Log, readings: list[Reading]) -> None:
    """Raise UnreadableLog if no column counts steps, or none is a loss."""
    if not log.rows:
        raise UnreadableLog(f"{log.place} has no whole line among its {log.lines:,}")
    meanings = {reading.meaning for reading in readings}
    if "step" not in meanings:
        raise UnreadableLog(_missing(log, ("step",), "column that counts steps", "step=COLUMN"))
    if not meanings & set(LOSSES):
        hint = f" or {BYTES_A_TOKEN}=N for {log.format}'s bits per byte" if "val_bpb" in meanings else ""
        raise UnreadableLog(_missing(log, LOSSES, "loss", f"val_loss=COLUMN{hint}"))


def _missing(log: Log, meanings: tuple[str, ...], what: str, remedy: str) -> str:
    """Why nothing has one of `meanings`: a column of that name holds texts, or none is called so."""
    names = {name for meaning in meanings for group in NAMES[meaning] for name in group}
    for column in log.columns:
        texts = [row[column] for row in log.rows if column in row]
        if parse_column(column).whole in names and texts and not _is_filled(log, meanings[0], column):
            return f"{log.place}: {column} holds no number, but {texts[0]!r}"
    return f"{log.place} has no {what} among {listed(log.columns)}; name it with --map {remedy}"
