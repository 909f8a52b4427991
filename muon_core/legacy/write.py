"""Writes runs of older projects into a results store, each once, under the name of a sweep.

They go through the same writer as training does, so every reader, query and report takes them as runs of our own. All
numbers of a run are tried against the tables first: one that fits no column would else leave half a run behind.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from muon_core.config.arm_names import Arm, arm_names, flat_fields
from muon_core.legacy.lines import FILES
from muon_core.legacy.runs import METRICS_FILE, LegacyRun, UnreadableRun, canonical, read_run, run_files
from muon_core.store.keys import check_name
from muon_core.store.parquet import to_arrow
from muon_core.store.reader import read_attempts, read_starts, read_statuses
from muon_core.store.storage import Storage
from muon_core.store.sweeps import SweepRecord, SweepRun, read_sweep, write_sweep
from muon_core.store.writer import RunWriter
from muon_core.tables import RUNS, TABLES

NO_END = "imported without metrics.json, so how it ended is not known"


@dataclass(slots=True)
class Imported:
    """What an import found and did; `damaged` maps a run's folder to the reason it was left out."""

    new: list[LegacyRun] = field(default_factory=list)
    known: list[LegacyRun] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)


def import_runs(storage: Storage, folder: Path, sweep: str, baseline: str | None = None) -> Imported:
    """Write the runs below `folder` that the store has not yet, and list them all under `sweep`.

    The optimizer named `baseline` becomes the sweep's baseline.
    Raises ValueError if there is nothing to import, or `sweep` is one that was not imported.
    """
    check_name(sweep)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds the runs")
    found = run_files(folder)
    if not found:
        raise ValueError(
            f"{folder} holds none of {METRICS_FILE}, {', '.join(FILES)}; give the folder that holds the runs"
        )
    done = Imported()
    earlier = _earlier(storage, sweep)
    statuses = read_statuses(storage)
    for place, files in found.items():
        try:
            run = _read(folder, place, files)
        except UnreadableRun as error:
            done.damaged[str(place.relative_to(folder))] = str(error)
            continue
        is_new = statuses.get(run.run_id, "running") == "running"  # no end record: an import was killed amid it
        (done.new if is_new else done.known).append(run)
        if is_new:
            _write(storage, run)
            statuses[run.run_id] = "done"
    runs = [*done.new, *done.known]
    _write_sweep(storage, sweep, earlier, runs, baseline)
    return done


def _read(folder: Path, place: Path, files: list[Path]) -> LegacyRun:
    """The run at `place`, all of whose numbers fit their columns. Raises UnreadableRun."""
    try:
        run = read_run(folder, place, files)
        tables = _series(run) | {RUNS.name: [_start(run) | _end(run)]}
        for name, rows in tables.items():
            to_arrow(rows, TABLES[name])
    except (pa.ArrowException, OverflowError) as error:
        raise UnreadableRun(f"it has a number that is out of range ({error})") from error
    return run


def _write(storage: Storage, run: LegacyRun) -> None:
    writer = RunWriter(storage, run.run_id, _start(run))
    for table, rows in _series(run).items():
        for row in rows:
            writer.emit(table, **row)
    writer.end(**_end(run))


def _series(run: LegacyRun) -> dict[str, list[dict[str, Any]]]:
    """Rows by their table."""
    return {"layers": run.layers, "spectra": run.spectra, "val": run.val, "train": run.train}


def _end(run: LegacyRun) -> dict[str, Any]:
    """Columns of the `runs` table that say how it ended."""
    metrics, last = run.metrics or {}, run.val[-1] if run.val else {}
    newest = max([*run.layers, *run.spectra, {"step": None, "tokens": None}], key=lambda row: row["step"] or -1)
    losses = [row["val_loss"] for row in run.val]
    finite = [loss for loss in losses if math.isfinite(loss)]
    status = "stopped" if run.metrics is None else "done" if len(finite) == len(losses) else "diverged"
    final = last if status == "done" else {}
    return {
        "status": status,
        "error": NO_END if run.metrics is None else None,
        "steps": metrics.get("actual_steps", newest["step"]),
        "tokens": metrics.get("tokens_seen", newest["tokens"]),
        "final_val_loss": final.get("val_loss"),
        "last_val_loss": last.get("val_loss"),
        "final_val_accuracy": final.get("val_accuracy"),
        "best_val_loss": min(finite, default=None),
        "wall_s": run.wall_s,
    }


def _start(run: LegacyRun) -> dict[str, Any]:
    """Columns of the `runs` table known from the config. Hashes and environment are unknown, so null."""
    embedding_lr = _number(run.config.get("adamw_lr"))
    lr = _number(run.config.get("muon_lr")) if run.optimizer == "muon" else embedding_lr
    config = run.config | {"imported_from": run.folder, "steps": run.steps}
    return {
        "arm_id": run.arm_id,
        "arm": run.optimizer,
        "seed": run.seed,
        "optimizer": run.optimizer,
        "lr": lr,
        "embedding_lr": embedding_lr,
        "config_json": canonical(config),
    }


def _number(value: Any) -> float | None:
    """YAML 1.1 reads 1e-3 as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _earlier(storage: Storage, sweep: str) -> tuple[SweepRun, ...]:
    """The runs that `sweep` lists already. Raises ValueError if it was not imported."""
    record = read_sweep(storage, sweep)
    if record is None:
        return ()
    if not record.spec.get("imported"):
        raise ValueError(f"{storage.url} has a sweep {sweep!r} that was not imported; choose another with --name")
    return record.runs


def _write_sweep(
    storage: Storage, sweep: str, earlier: tuple[SweepRun, ...], runs: list[LegacyRun], baseline: str | None
) -> None:
    """List the runs, those of an earlier import first; each block is an optimizer."""
    new = [run.run_id for run in sorted(runs, key=lambda run: run.folder)]
    starts = _starts(storage, dict.fromkeys([*(run.run_id for run in earlier), *new]))
    blocks = sorted({start["optimizer"] for start in starts})
    if baseline is None:
        baseline = next((run.block for run in earlier if run.role == "baseline"), None)
    elif baseline not in blocks:
        raise ValueError(f"no run has the optimizer {baseline!r} to be the baseline; there are {', '.join(blocks)}")
    arms = _arms(starts, baseline)
    keys = {run_id: canonical(arm.fields) for run_id, arm in arms.items()}
    names = arm_names({keys[run_id]: arm for run_id, arm in arms.items()})
    listed = tuple(
        SweepRun(
            run_id=start["run_id"],
            block=start["optimizer"],
            role="baseline" if start["optimizer"] == baseline else "candidate",
            arm=names[keys[start["run_id"]]],
            seed=start["seed"],
        )
        for start in starts
    )
    write_sweep(storage, SweepRecord(sweep=sweep, spec={"imported": True}, runs=listed))


def _starts(storage: Storage, run_ids: Iterable[str]) -> list[dict[str, Any]]:
    """Start records of imported runs, in the order of `run_ids`."""
    attempts = read_attempts(storage)
    return read_starts(storage, [max(attempts[run_id].values()) for run_id in run_ids])


def _arms(starts: list[dict[str, Any]], baseline: str | None) -> dict[str, Arm]:
    """run_id -> its arm, of which the length is a part; a run of unknown length is of the one it may belong to, if one.

    What stopped without telling how far it was to go is then missed where it belongs.
    """
    configs = {start["run_id"]: dict(flat_fields(json.loads(start["config_json"]))) for start in starts}
    fields = {
        run_id: {name: value for name, value in config.items() if name not in ("seed", "imported_from", "steps")}
        for run_id, config in configs.items()
    }
    lengths: dict[str, set[int | None]] = defaultdict(set)
    for run_id, config in configs.items():
        lengths[canonical(fields[run_id])] |= {config.get("steps")} - {None}
    arms = {}
    for start in starts:
        run_id, known = start["run_id"], fields[start["run_id"]]
        possible = lengths[canonical(known)]
        steps = configs[run_id].get("steps") or (next(iter(possible)) if len(possible) == 1 else None)
        arms[run_id] = Arm(start["arm"], known | {"steps": steps or "unknown"}, start["optimizer"] == baseline)
    return arms
