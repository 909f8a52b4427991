"""Makes runs of a log: its lines by run and step, each number under the column of our tables that it is.

Lines of one step are put together, as Lightning writes training and validation into two. A line that gives a number of
its step again is repeated: the last counts, as after a resumption. A table without a column that tells its runs apart
may hold several: where a step comes back to the first one another run begins, as nobody could tell it from a run that
began anew, and two runs are never averaged. Where such lines lie among each other nothing tells which is whose, and the
table is refused (`parts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muon_core.imports.log import Log, Row, UnreadableLog, flat, number, whole
from muon_core.imports.names import NAMES
from muon_core.imports.parts import Line, Part, split_runs
from muon_core.imports.readings import Reading
from muon_core.legacy.imported import ImportedRun, canonical, digest_of
from muon_core.legacy.seeds import seed_in, without_seed
from muon_core.spelling import counted

VAL = ("val_loss", "val_accuracy", "val_perplexity")
TRAIN = ("train_loss", "lr", "grad_norm", "step_time_s", "tokens_per_s")
SHARED = ("tokens", "elapsed_s")
"""Of a step, whatever was measured there."""
_MEASURED = ("val_loss", "val_accuracy", "val_perplexity", "train_loss", "grad_norm")
"""Numbers that a resumed run writes again; what else a step has may stand in several of its lines."""


def make_runs(log: Log, readings: list[Reading], optimizer: str | None = None) -> list[ImportedRun]:
    """The runs of `log`.

    Args:
        optimizer: that of runs which name none.
    Raises: UnreadableLog, in one line.
    """
    by = {reading.meaning: reading for reading in readings}
    lines = [Line(step, row) for row in log.rows if (step := _step(by["step"], row)) is not None]
    if not lines:
        raise UnreadableLog(f"{log.place}: {by['step'].column} holds no whole number of steps, such as 100")
    stepless = len(log.rows) - len(lines)
    if log.torn + stepless:
        log.notes.append(f"{log.torn + stepless:,} of {log.lines:,} lines are torn or have no step, and are left out")
    runs = [_make_run(log, readings, part, optimizer) for part in split_runs(log, readings, lines)]
    runs = [run for run in runs if run.val or run.train]
    if not runs:
        raise UnreadableLog(f"{log.place} has no number beside a step in {', '.join(map(str, readings))}")
    return runs


def _step(reading: Reading, row: Row) -> int | None:
    step = whole(row.get(reading.column))
    return step if step is not None and step >= 0 else None


def _make_run(log: Log, readings: list[Reading], part: Part, optimizer: str | None) -> ImportedRun:
    facts = _identity(log, {reading.meaning: reading for reading in readings}, part, optimizer)
    log.notes += [note for note in facts.notes if note not in log.notes]
    steps = max(line.step for line in part.lines)
    ends_early = log.planned_steps is not None and steps < log.planned_steps
    found = _by_step(readings, part.lines)
    val = [row for row in found.rows["val"] if "val_loss" in row]
    if lossless := len(found.rows["val"]) - len(val):
        found.notes.append(f"{counted(lossless, 'evaluation')} left out: without a loss")
    train = found.rows["train"]
    return ImportedRun(
        folder=part.folder,
        digest=digest_of(canonical([part.name, facts.config, facts.seed, facts.optimizer]), canonical([val, train])),
        entry=log.entry if part.folder == log.place else part.name,
        optimizer=facts.optimizer or "",
        seed=facts.seed,
        config=facts.config,
        val=val,
        train=train,
        steps=None if ends_early else steps,
        tokens=found.tokens,
        wall_s=found.wall_s if log.wall_s is None else log.wall_s,
        no_end=f"imported log ends at step {steps:,} of {log.planned_steps:,}" if ends_early else None,
        lr=number(_find(facts.config, "lr")),
        notes=found.notes,
    )


@dataclass(slots=True)
class _Found:
    """What the lines of a run say: `rows` by table, sorted by step."""

    rows: dict[str, list[dict[str, Any]]]
    tokens: int | None
    wall_s: float | None
    notes: list[str]


def _by_step(readings: list[Reading], lines: list[Line]) -> _Found:
    """The lines of each step put together. Time and tokens are of what was measured in their line."""
    numbers = [reading for reading in readings if reading.meaning in (*VAL, *TRAIN, *SHARED)]
    tables: dict[str, dict[int, dict[str, Any]]] = {"val": {}, "train": {}}
    repeated = changed = unfit = 0
    shared: dict[str, list[Any]] = {name: [] for name in SHARED}
    for line in lines:
        found = {reading.meaning: value for reading in numbers if (value := _value(reading, line.row)) is not None}
        unfit += sum(reading.column in line.row and reading.meaning not in found for reading in numbers)
        again = []
        for name in SHARED:
            shared[name] += [found[name]] if name in found else []
        for table, columns in (("val", VAL), ("train", TRAIN)):
            if not found.keys() & set(columns):
                continue
            known = tables[table].setdefault(line.step, {"step": line.step, "tokens": None})
            own = {name: value for name, value in found.items() if name in columns or name in SHARED}
            again += [known[name] != own[name] for name in _MEASURED if name in own and name in known]
            known |= own
        repeated += bool(again)
        changed += any(again)
    notes = {
        f"{repeated:,} of {len(lines):,} lines repeat a step, {changed:,} of them with other values; "
        "the last line of each counts": repeated,
        f"{counted(unfit, 'value')} left out: no number of the column's unit": unfit,
    }
    return _Found(
        {name: [rows[step] for step in sorted(rows)] for name, rows in tables.items()},
        max(shared["tokens"], default=None),
        max(shared["elapsed_s"], default=None),
        [note for note, count in notes.items() if count],
    )


def _value(reading: Reading, row: Row) -> float | int | None:
    """What `row` has for `reading`, in our unit; None if that is nothing or no such number."""
    try:
        value = reading.value(row)
    except (ValueError, OverflowError):
        return None
    return whole(value) if reading.meaning == "tokens" else value


@dataclass(slots=True)
class _Facts:
    """What tells which run it is."""

    optimizer: str | None
    seed: int | None
    config: dict[str, Any]
    notes: list[str]


def _identity(log: Log, by: Mapping[str, Reading], part: Part, optimizer: str | None) -> _Facts:
    """Optimizer, seed and config: of a column, else of the config, else of the run's name, which is told."""
    known = dict(flat(log.config)) | part.constants
    config = log.config | part.config
    notes = []
    seed = whole(known[by["seed"].column]) if "seed" in by and by["seed"].column in known else _find(config, "seed")
    seed = log.seed if seed is None else whole(seed)
    named = known.get(by["optimizer"].column) if "optimizer" in by else _find(config, "optimizer")
    named = str(named) if named is not None else optimizer
    what, name = ("run", part.shared_name) if part.shared_name else log.setting or ("", "")
    if named is None and name:
        named = name
        whose = f"its {what}, {name}," if log.setting else f"what {by['run'].column} says"
        notes.append(f"it tells no optimizer: {whose} stands for it")
    elif what in ("run", "folder"):
        config[what] = name
    if _tells_seed(log, part):
        source = f"the name of its {'run' if 'run' in by else 'file or folder'}"
        if seed is None:
            seed = seed_in(part.name)
            notes.append(f"the seed is from {source}")
        if named is None and (named := without_seed(part.name) or None):
            notes.append(f"the optimizer is from {source}, its seed left out")
    if not config:
        config = part.setting | ({"optimizer": named} if named is not None else {})
    return _Facts(named, seed, config, notes)


def _tells_seed(log: Log, part: Part) -> bool:
    """Whether the name has a seed: not the number of steps, as in `muon-s3375`, nor one of several runs of a file."""
    found = seed_in(part.name)
    return found is not None and not log.entry and found not in (part.lines[-1].step, log.planned_steps)


def _find(config: Mapping[str, Any], meaning: str) -> Any:
    """The value that `config` has under a name of `meaning`, at its top or, where it is the only one, deeper."""
    names = {name for group in NAMES[meaning] for name in group}
    known = {key.lower(): value for key, value in flat(config)}
    for name in (*(name for group in NAMES[meaning] for name in group), f"{meaning}/name", f"{meaning}/type"):
        if name in known:
            return known[name]
    deeper = [value for key, value in known.items() if key.rpartition("/")[2] in names]
    return deeper[0] if len({repr(value) for value in deeper}) == 1 else None
