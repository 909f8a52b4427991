"""Writes imported runs into a results store, each once, and lists them as a sweep.

They go through the same writer as training does, so every reader, query and report takes them as runs of our own; their
finals are there at once, also of one whose end is unknown. All numbers of a run are tried against the tables first: one
that fits no column would else leave half a run behind. What the store has of a run already is not written again
(`muon_core.legacy.same_run`), so an import may be repeated, and a log that has grown adds what is new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from muon_core.legacy.arms import CONTENT, FROM, ORIGIN, ImportedArms, arm_id, config_json, imported_arms
from muon_core.legacy.imported import ImportedRun, UnreadableRun, canonical, optimizer_name
from muon_core.legacy.listing import find_baseline, list_runs, listed_earlier
from muon_core.legacy.same_run import Comparison, Rows, compare, origin
from muon_core.legacy.stored import Stored
from muon_core.spelling import counted
from muon_core.store.final import finalize
from muon_core.store.keys import ROOT, check_name
from muon_core.store.parquet import to_arrow
from muon_core.store.reader import relisting
from muon_core.store.storage import Storage
from muon_core.store.writer import ResumePoint, RunWriter, head_point
from muon_core.tables import RUNS, TABLES

START = ResumePoint(ROOT, 0)


@dataclass(slots=True)
class Imported:
    """What an import found and did. A run, without its rows, is in one of the first three.

    `damaged` maps folders to the reason why they were left out.
    """

    new: list[ImportedRun] = field(default_factory=list)
    grown: list[ImportedRun] = field(default_factory=list)
    """Runs whose earlier, shorter import was continued."""
    known: list[ImportedRun] = field(default_factory=list)
    """Runs that the store had already, or that lie in several folders."""
    damaged: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is to be told of all of them."""
    optimizers: dict[str, int] = field(default_factory=dict)
    """Runs of the sweep by optimizer."""
    has_baseline: bool = False

    @property
    def runs(self) -> list[ImportedRun]:
        """All that could be read."""
        return [*self.new, *self.grown, *self.known]


def write_runs(
    storage: Storage,
    runs: Iterable[ImportedRun],
    sweep: str,
    baseline: str | None = None,
    damaged: Mapping[str, str] | None = None,
) -> Imported:
    """Write those of `runs` that the store has not yet, and list them all under `sweep`, with what it listed before.

    Args:
        runs: read one by one, so that a generator needs the memory of one.
        baseline: the optimizer or arm that the others are compared with.
        damaged: what the caller could not read, by folder; looked at after `runs`, which may fill it.
    Raises: ValueError if `sweep` is one that was not imported, or `baseline` names no arm, or several.
    """
    check_name(sweep)
    earlier = listed_earlier(storage, sweep)
    stored = Stored(storage)
    done, members, replaced = Imported(), dict.fromkeys(run.run_id for run in earlier), set[str]()
    listed: dict[str, str] = {}
    for run in runs:
        try:
            _check(run)
        except UnreadableRun as error:
            done.damaged[run.folder] = str(error)
            continue
        run.store_id = _write_once(storage, run, stored, done, replaced)
        listed.setdefault(run.store_id, run.folder)
        run.drop_rows()
    done.damaged |= damaged or {}
    members |= dict.fromkeys(sorted(listed, key=listed.__getitem__))
    starts = [stored.starts[run_id] for run_id in members if run_id not in replaced]
    done.optimizers = {
        name: sum(start["optimizer"] == name for start in starts) for name in sorted({s["optimizer"] for s in starts})
    }
    notes, done.has_baseline = list_runs(storage, sweep, earlier, starts, baseline)
    done.notes += notes
    return done


def arms_alone(runs: Iterable[ImportedRun], baseline: str | None = None) -> ImportedArms:
    """The arms of `runs`, as an import of them alone would tell them apart.

    Raises: ValueError if `baseline` names none of them, or several.
    """
    first: dict[str, dict[str, Any]] = {}
    for run in runs:  # of copies an import takes the first
        first.setdefault(run.run_id, _start(run) | {"run_id": run.run_id})
    starts = list(first.values())
    return imported_arms(starts, None if baseline is None else find_baseline(starts, baseline))


def _check(run: ImportedRun) -> None:
    """Raise UnreadableRun for a run without rows, or with a number that fits no column."""
    if not any(run.series().values()):
        raise UnreadableRun("it has neither an evaluation nor a whole line")
    try:
        for name, rows in (run.series() | {RUNS.name: [_start(run) | _end(run)]}).items():
            to_arrow(rows, TABLES[name])
    except (pa.ArrowException, OverflowError) as error:
        raise UnreadableRun(f"it has a number that is out of range ({error})") from error


def _write_once(storage: Storage, run: ImportedRun, stored: Stored, done: Imported, replaced: set[str]) -> str:
    """Write what the store lacks of `run`; returns the id under which it is there then."""
    for run_id in stored.alike(run):
        earlier, has_ended = stored.configs[run_id], stored.has_ended(run_id)
        is_named_alike = stored.is_named_alike(run, run_id)
        is_copy = is_named_alike and has_ended and earlier.get(CONTENT) == run.digest
        found = None if is_copy else compare(storage, run_id, run)
        if found and not (found.trained or stored.lies_where(run, run_id)):
            continue
        if found is None or (found.is_held and has_ended and (is_named_alike or stored.tells_more(run_id, run))):
            if earlier.get(FROM) != run.folder:
                run.notes.append(f"not imported again: {earlier.get(FROM)} is the same run")
            done.known.append(run)
            return run_id
        if is_named_alike and (found.is_prefix or (found.shared and stored.lies_where(run, run_id))):
            done.grown.append(run)
            if found.is_prefix:
                _write(storage, run, stored, run_id, found.new, head_point(storage, run_id))
            else:
                _tell_changed(run, found)
                _write(storage, run, stored, run_id, run.series())
            return run_id
        if found.is_prefix:
            run.notes.append(f"stands for {earlier.get(FROM)}, which is the same run and tells less of it")
            replaced.add(run_id)
    _write(storage, run, stored, run.run_id, run.series())
    done.new.append(run)
    return run.run_id


def _tell_changed(run: ImportedRun, found: Comparison) -> None:
    run.notes.append(
        f"its files have other values than at the last import in {counted(found.changed, 'row')}, and lack "
        f"{found.missing}; they count as they are now"
    )


def _write(
    storage: Storage,
    run: ImportedRun,
    stored: Stored,
    run_id: str,
    rows: Rows,
    point: ResumePoint = START,
) -> None:
    """Write an attempt at `run_id` with these rows, after those at `point`."""
    start = _start(run)
    writer = RunWriter(storage, run_id, start, parent=point.attempt, resume_seq=point.seq)
    for table, some in rows.items():
        for row in some:
            writer.emit(table, **row)
    end = _end(run)
    # Finals are for runs that nobody goes on with, and nobody trains this one, however it ended.
    head = writer.attempt.id
    writer.end(
        settle=lambda: None if end["status"] != "stopped" else _finalize(storage, run_id, writer.seq, head), **end
    )
    stored.add(start | {"run_id": run_id}, end["status"])


def _finalize(storage: Storage, run_id: str, num_rows: int, head: str) -> None:
    relisting(lambda: finalize(storage, run_id, num_rows=num_rows, head=head))


def _end(run: ImportedRun) -> dict[str, Any]:
    """Columns of the `runs` table that say how it ended."""
    last = run.val[-1] if run.val else {}
    rows = [row for some in run.series().values() for row in some]
    newest = max(rows, key=lambda row: row["step"], default={})
    losses = [row["val_loss"] for row in run.val if row.get("val_loss") is not None]
    finite = [loss for loss in losses if math.isfinite(loss)]
    status = "stopped" if run.no_end else "done" if len(finite) == len(losses) else "diverged"
    final = last if status == "done" else {}
    return {
        "status": status,
        "error": run.no_end,
        "steps": newest.get("step") if run.steps is None else run.steps,
        "tokens": newest.get("tokens") if run.tokens is None else run.tokens,
        "final_val_loss": final.get("val_loss"),
        "last_val_loss": last.get("val_loss"),
        "final_val_accuracy": final.get("val_accuracy"),
        "best_val_loss": min(finite, default=None),
        "wall_s": run.wall_s,
    }


def _start(run: ImportedRun) -> dict[str, Any]:
    """Columns of the `runs` table known from the config. Hashes and environment are unknown, so null."""
    return {
        "arm_id": arm_id(run),
        "arm": optimizer_name(run.optimizer),
        "seed": run.seed,
        "optimizer": optimizer_name(run.optimizer),
        "lr": run.lr,
        "embedding_lr": run.embedding_lr,
        "commit": run.commit,
        "config_json": canonical(config_json(run) | {ORIGIN: origin(run)}),
    }
