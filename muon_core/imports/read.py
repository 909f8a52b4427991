"""Reads a file or folder of other tools' logs into runs, and keeps what was guessed to show it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from muon_core.imports.files import UnknownFormat, find_files, read_log
from muon_core.imports.log import Log, UnreadableLog
from muon_core.imports.mapping import Asked
from muon_core.imports.readings import Reading, read_columns
from muon_core.imports.runs import make_runs
from muon_core.legacy.imported import ImportedRun
from muon_core.legacy.seeds import without_seed


@dataclass(slots=True)
class Guess:
    """What was made of the columns of logs that are alike."""

    format: str
    readings: tuple[Reading, ...]
    places: list[str] = field(default_factory=list)
    config: set[str] = field(default_factory=set)
    """Columns that are parameters."""
    left_out: set[str] = field(default_factory=set)


@dataclass(slots=True)
class ReadLogs:
    """The runs that were found; `notes` maps a sentence to the files it is true of, `unread` a file to the reason."""

    runs: list[ImportedRun] = field(default_factory=list)
    guesses: list[Guess] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unread: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Files of a folder that are no logs."""


def read_logs(path: Path, asked: Asked, optimizer: str | None = None) -> ReadLogs:
    """The runs of all logs in `path`, a file or a folder.

    Args:
        optimizer: that of runs whose logs name none.
    Raises: ValueError, in one line, if no run can be read.
    """
    found = ReadLogs()
    guesses: dict[tuple[str, tuple[str, ...]], Guess] = {}
    unknown = ""
    for file, place in find_files(path):
        try:
            for log in read_log(file, place):
                if log.setting and path.is_file():  # what lies beside it is nobody's business
                    log.setting = ("file", without_seed(path.stem) or path.stem)
                runs = _add(found, guesses, log, asked, optimizer)
                for run in runs:
                    run.place = f"{file.resolve()}{run.folder.removeprefix(place)}"
        except UnknownFormat as error:
            if path.is_file():
                raise
            found.unknown.append(place)
            unknown = unknown or str(error)
        except UnreadableLog as error:
            found.unread[place] = str(error)
    found.guesses = list(guesses.values())
    if not found.runs:
        reasons = [*found.unread.values(), *([unknown] if unknown else [])]
        others = len(found.unread) + len(found.unknown) - 1
        raise UnreadableLog(f"{reasons[0]}{f' (and {others} more files without a run)' if others else ''}")
    return found


def _add(
    found: ReadLogs, guesses: dict[tuple[str, tuple[str, ...]], Guess], log: Log, asked: Asked, optimizer: str | None
) -> list[ImportedRun]:
    """Add the runs of `log`, whose rows are not needed after, and return them. Raises UnreadableLog."""
    readings = read_columns(log, asked)
    runs = make_runs(log, readings, optimizer)
    columns = {reading.column for reading in readings}
    guess = guesses.setdefault((log.format, tuple(sorted(map(str, readings)))), Guess(log.format, tuple(readings)))
    guess.places.append(log.place)
    guess.config |= {name for run in runs for name in run.config if name in log.columns}
    guess.left_out |= set(log.columns) - columns - guess.config
    found.runs += runs
    for note in log.notes:
        found.notes[note].append(log.place)
    log.rows.clear()
    return runs
