"""Which lines of a log are one run's."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from muon_core.imports.log import Log, Row, UnreadableLog, number, plain
from muon_core.imports.mapping import CONFIG, listed
from muon_core.imports.names import IDENTITY, NAMES, parse_column
from muon_core.imports.readings import Reading
from muon_core.spelling import counted

_PREFIXES = ("config/", "config.", "hparams/", "hparams.", "params/", "params.", "hyperparameters/")
_OF_THE_RECORD = {
    "name", "created", "created_at", "updated", "state", "status", "user", "username", "notes", "tags", "host",
    "hostname", "date", "time", "datetime", "timestamp", "start_time", "end_time", "started_at", "runtime", "duration",
    "epoch", "url", "path", "commit", "git_commit", "job_type",
}  # fmt: skip
"""Columns that tell when, where and by whom a run was made."""
_RUN_NAMES = {name for group in NAMES["run"] for name in group}
_MEASURED = ("val_loss", "val_accuracy", "val_perplexity", "train_loss")


@dataclass(frozen=True, slots=True)
class Line:
    """A line that has a step."""

    step: int
    row: Row


@dataclass(slots=True)
class Part:
    """The lines of one run of a log."""

    folder: str
    """Where it was found: the place of its file, and its name there if the file holds several runs."""
    name: str
    lines: list[Line]
    constants: dict[str, Any] = field(default_factory=dict)
    """Columns that have one value throughout."""
    varying: set[str] = field(default_factory=set)
    """Those that have several."""
    config: dict[str, Any] = field(default_factory=dict)
    """Those that are parameters."""
    shared_name: str | None = None
    """What the run column says, where several runs have that in common: their setting."""
    setting: dict[str, Any] = field(default_factory=dict)
    """What stands for a config where a table tells its runs apart by seed, and knows nothing else of them."""


def split_runs(log: Log, readings: list[Reading], lines: list[Line]) -> list[Part]:
    """The runs of `log`, in its order. Raises UnreadableLog where lines of several lie among each other."""
    by = {reading.meaning: reading for reading in readings}
    several = _several_in_a_run(by, lines)
    if log.is_one_run:
        parts = [Part(log.place, log.name, lines)]
    elif "run" in by and not several:
        groups = _grouped(lines, [by["run"].column])
        if nameless := groups.pop("", []):
            log.notes.append(f"{counted(len(nameless), 'line')} left out: no run is named there")
        parts = [Part(f"{log.place}/{name}", name, group) for name, group in groups.items()]
    else:
        parts = list(_split_by_step(log, by, lines, several))
        if several:
            log.notes.append(
                f"{by['run'].column} has several values of {' and '.join(several)} under one name: each is a run"
            )
    for part in parts:
        part.constants, part.varying = _constants(part.lines)
    if not log.is_one_run:
        _add_config(log, readings, parts, several)
        _tell_names(log, parts)
    return parts


def _grouped(lines: list[Line], columns: list[str]) -> dict[str, list[Line]]:
    """The lines by what they have in `columns`."""
    groups: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        groups["-".join(_text(line.row[column]) for column in columns if column in line.row)].append(line)
    return dict(groups)


def _several_in_a_run(by: Mapping[str, Reading], lines: list[Line]) -> list[str]:
    """Columns of which what is called a run has several values, so that its lines would become one run of several.

    They are seed and optimizer, and, if it may be the name of an experiment, what tells lines of one seed at the first
    step apart and has no other values later.
    """
    if "run" not in by:
        return []
    told = [by[meaning].column for meaning in ("seed", "optimizer") if meaning in by]
    groups = list(_grouped(lines, [by["run"].column]).values())
    found = [column for column in told if any(len(_values(group, column)) > 1 for group in groups)]
    if parse_column(by["run"].column).whole in (*NAMES["run"][0], *NAMES["run"][1]):
        return found
    known = {reading.column for meaning, reading in by.items() if meaning != "lr"}
    for group in _grouped(lines, [by["run"].column, *told]).values():
        first = min(line.step for line in group)
        for measured in (by[meaning].column for meaning in _MEASURED if meaning in by):
            again = [line for line in group if line.step == first and measured in line.row]
            for column in again[0].row if len(again) > 1 else ():
                if column not in known and len(values := _values(again, column)) > 1:
                    found += [column] if _values(group, column) == values else []
    return list(dict.fromkeys(found))


def _values(lines: list[Line], column: str) -> set[str]:
    return {_text(line.row[column]) for line in lines if column in line.row}


def _text(value: Any) -> str:
    """A seed may be 42 in one file and 42.0 in the next, where pandas met an empty cell."""
    text = str(value)
    return text.removesuffix(".0") if number(value) is not None else text


def _split_by_step(log: Log, by: Mapping[str, Reading], lines: list[Line], several: list[str]) -> Iterator[Part]:
    """A part a seed, optimizer, value of `several` and parameter named by `--map`; more where its steps begin anew."""
    told = [reading.column for meaning, reading in by.items() if meaning in IDENTITY or meaning.startswith(CONFIG)]
    for name, group in _grouped(lines, list(dict.fromkeys([*told, *several]))).items():
        pieces = list(_pieces(log, by, group))
        for i, piece in enumerate(pieces, 1):
            own = "#".join(filter(None, [name, str(i) if len(pieces) > 1 else ""]))
            yield Part(f"{log.place}/{own}" if own else log.place, own or log.name, piece)


def _pieces(log: Log, by: Mapping[str, Reading], lines: list[Line]) -> Iterator[list[Line]]:
    """`lines` cut where they come back to the first step. Raises UnreadableLog where runs lie among each other."""
    columns = [by[meaning].column for meaning in _MEASURED if meaning in by]
    first, piece, last = lines[0].step, [lines[0]], lines[0]
    for line in lines[1:]:
        both = [column for column in columns if column in line.row and column in last.row]
        if line.step == last.step and any(line.row[column] != last.row[column] for column in both):
            raise UnreadableLog(
                f"{log.place} has unlike values at step {line.step:,} and no column that tells whose they are; "
                f"name it with --map run=COLUMN or config.NAME=COLUMN, there are {listed(log.columns)}"
            )
        if line.step == first and line.step < last.step:
            yield piece
            piece = []
        piece.append(line)
        last = line
    yield piece


def _constants(lines: list[Line]) -> tuple[dict[str, Any], set[str]]:
    """(column -> its value, where all lines that have one have the same; the other columns)."""
    values: dict[str, Any] = {}
    varying = set()
    for line in lines:
        for column, value in line.row.items():
            known = values.setdefault(column, value)
            if column not in varying and known != value and _text(known) != _text(value):
                varying.add(column)
    return {column: value for column, value in values.items() if column not in varying}, varying


def _add_config(log: Log, readings: list[Reading], parts: list[Part], several: list[str]) -> None:
    """Give the runs of a table their parameters, and those that `--map` names.

    Args:
        several: of `_several_in_a_run`. A name that seeds share is their setting, as is a text that others do; a number
            that these share counts runs.
    """
    by = {reading.meaning: reading for reading in readings}
    taken = {reading.column for reading in readings if reading.meaning != "lr"} | log.no_parameters
    columns = {column: column for column in log.columns if column not in taken and _is_parameter(column, parts)}
    columns |= {m.removeprefix(CONFIG): reading.column for m, reading in by.items() if m.startswith(CONFIG)}
    names = Counter(part.constants.get(by["run"].column) for part in parts) if several else Counter()
    for part in parts:
        found = {name: part.constants[column] for name, column in columns.items() if column in part.constants}
        part.config = {name: plain(value) for name, value in found.items()}
        name = part.constants.get(by["run"].column) if several else None
        counts = number(name) is not None and not ("seed" in by and by["seed"].column in several)
        if name is not None and names[name] > 1 and not counts:
            part.shared_name = _text(name)
        if "seed" in by and "run" not in by:
            part.setting = {"log": log.place}


def _tell_names(log: Log, parts: list[Part]) -> None:
    """Tell of parameters that may only name runs: texts of which no two runs have the same."""
    for column in dict.fromkeys(name for part in parts for name in part.config if name in log.columns):
        texts = {value for part in parts if isinstance(value := part.config.get(column), str)}
        if len(texts) == len(parts) > 1:
            log.notes.append(
                f"{column} is another text in each of the {len(parts):,} runs, and counts as a parameter; "
                f"if it only names them: --map run={column}"
            )


def _is_parameter(column: str, parts: list[Part]) -> bool:
    """Whether a column is the same throughout each run: an arm that left it out might hold unlike runs.

    In a table of one line a run every number is: there, those are taken that several runs share, and columns that are
    named as parameters are.
    """
    if column.startswith("_") or parse_column(column).whole in _OF_THE_RECORD:
        return False
    if any(column in part.varying for part in parts):
        return False
    values = [part.constants.get(column) for part in parts]
    if parse_column(column).whole in _RUN_NAMES and len({repr(value) for value in values}) == len(parts) > 1:
        return False  # another name of the run
    if column.startswith(_PREFIXES) or any(value is not None and number(value) is None for value in values):
        return True
    return any(len(part.lines) > 1 for part in parts) or 2 * len({repr(value) for value in values}) <= len(parts)
