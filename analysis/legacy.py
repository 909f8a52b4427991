"""Imports runs of older projects, whose metrics are JSON files in a folder per run, into a results store."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from analysis.legacy_lines import FILES, Counts, read_cells
from analysis.tables import Store
from muon_core import layout
from muon_core.results import RunWriter, read_statuses, write_sweep
from muon_core.storage import Storage

METRICS, CONFIG = "metrics.json", "config.yaml"
INNER_FOLDERS = ("raw", "metrics", "raw_metrics")
"""Folders inside a run's own that hold its files."""
NO_END = "imported without metrics.json, so how it ended is not known"
_VAL = {"val_losses": "val_loss", "val_accuracies": "val_accuracy", "val_perplexities": "val_perplexity"}


class Damaged(ValueError):
    """A run that cannot be imported, and why."""


@dataclass(slots=True)
class LegacyRun:
    """One run as its files tell it; `folder` is relative to the folder that is imported."""

    folder: str
    optimizer: str
    seed: int | None
    config: dict[str, Any]
    metrics: dict[str, Any] | None
    val: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    counts: Counts
    digest: str
    notes: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        """Derived from the content, so that importing it again finds it there."""
        seed = "" if self.seed is None else f"-s{self.seed}"
        return f"imported-{self.optimizer}{seed}-{self.digest}"

    @property
    def arm_id(self) -> str:
        """The same for runs whose configs differ only in their seed."""
        arm = {name: value for name, value in self.config.items() if name != "seed"}
        return f"imported-{self.optimizer}-{_digest(_canonical(arm))}"


@dataclass(slots=True)
class Imported:
    """What an import found and did; `damaged` maps a run's folder to the reason it was left out."""

    new: list[LegacyRun] = field(default_factory=list)
    known: list[LegacyRun] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def import_runs(storage: Storage, folder: Path, sweep: str, baseline: str | None = None) -> Imported:
    """Write the runs below `folder` that the store has not yet, and list them all under `sweep`.

    The optimizer named `baseline` becomes the sweep's baseline.
    Raises ValueError if there is nothing to import, or `sweep` is one that was not imported.
    """
    layout.check_name(sweep)
    found = _run_files(folder)
    if not found:
        raise ValueError(f"{folder} holds none of {METRICS}, {', '.join(FILES)}; give the folder that holds the runs")
    done = Imported()
    earlier = _earlier(storage, sweep)
    statuses = read_statuses(storage)
    for place, files in found.items():
        try:
            run = read_run(folder, place, files)
        except Damaged as error:
            done.damaged[str(place.relative_to(folder))] = str(error)
            continue
        is_new = statuses.get(run.run_id, "running") == "running"  # an import that was killed left it so
        (done.new if is_new else done.known).append(run)
        if is_new:
            _write(storage, run)
            statuses[run.run_id] = "done"
    runs = [*done.new, *done.known]
    _write_sweep(storage, sweep, earlier, runs, baseline)
    done.warnings = same_start_warnings(runs)
    return done


def read_run(root: Path, place: Path, files: list[Path]) -> LegacyRun:
    """The run whose folder is `place`, from its `files`. Raises Damaged if its metrics or config cannot be read."""
    metrics = next((_load_metrics(path) for path in files if path.name == METRICS), None)
    config = _find_config(root, place) | ((metrics or {}).get("experiment_config") or {})
    optimizer = re.sub(r"[^A-Za-z0-9._]+", "_", str(config.get("optimizer_type") or "unknown"))
    seed = config.get("seed")
    if seed is None and (named := re.search(r"seed[_-]?(\d+)", place.name)):
        seed = config["seed"] = int(named[1])
    counts = Counts()
    layers = read_cells([path for path in files if path.name in FILES], counts)
    val = _evaluations(metrics) if metrics else []
    digest = _digest(_canonical(config), *(f"{path.relative_to(place)} {_file_digest(path)}" for path in files))
    relative = str(place.relative_to(root))
    run = LegacyRun(relative, optimizer, seed, config, metrics, val, layers, counts, digest)
    claimed = ((metrics or {}).get("final_metrics") or {}).get("val_loss")
    if val and claimed is not None and claimed != val[-1]["val_loss"]:
        run.notes.append(f"final_metrics say val_loss {claimed}, the last evaluation {val[-1]['val_loss']}, which counts")
    return run


def same_start_warnings(runs: Iterable[LegacyRun]) -> list[str]:
    """Arms whose seeds share the loss at step 0 to the last digit: their seed did not reach the initial weights."""
    losses: dict[tuple[str, float], set[int]] = defaultdict(set)
    names = {}
    for run in runs:
        names[run.arm_id] = run.optimizer
        for row in run.val:
            if row["step"] == 0 and run.seed is not None:
                losses[run.arm_id, row["val_loss"]].add(run.seed)
    return [
        f"{names[arm]}: seeds {', '.join(map(str, sorted(seeds)))} have the same validation loss at step 0 ({loss}), so "
        "their initial weights were probably the same and they are not independent draws of them"
        for (arm, loss), seeds in losses.items()
        if len(seeds) > 1
    ]


def _run_files(folder: Path) -> dict[Path, list[Path]]:
    """The files of each run below `folder`, by the run's own folder."""
    runs: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(path for name in (METRICS, *FILES) for path in folder.rglob(name)):
        place = path.parent
        while place.name in INNER_FOLDERS and place != folder:
            place = place.parent
        runs[place].append(path)
    return dict(runs)


def _load_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_bytes())
    except ValueError as error:
        raise Damaged(f"{path} is not JSON ({error})") from error
    if not isinstance(metrics, dict) or not all(type(metrics.get(name)) is int for name in ("actual_steps", "tokens_seen")):
        raise Damaged(f"{path} lacks actual_steps or tokens_seen as whole numbers")
    return metrics


def _find_config(root: Path, place: Path) -> dict[str, Any]:
    """The config in the run's folder, or in the nearest one above it up to `root`; empty if there is none."""
    above = [place, *place.parents]
    for folder in above[: above.index(root) + 1]:
        path = folder / CONFIG
        if path.is_file():
            try:
                config = yaml.safe_load(path.read_bytes())
            except yaml.YAMLError as error:
                raise Damaged(f"{path} is not YAML ({str(error).partition(chr(10))[0]})") from error
            if isinstance(config, dict):
                return config
    return {}


def _evaluations(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the `val` table; without a history, the final metrics as the only one."""
    steps, tokens = metrics["actual_steps"], metrics["tokens_seen"]
    history = metrics.get("history") or {}
    if not history.get("steps"):
        final = metrics.get("final_metrics") or {}
        history = {"steps": [steps]} | {many: [final.get(one)] for many, one in _VAL.items()}
    columns = {one: history.get(many) or [] for many, one in _VAL.items()}
    columns["elapsed_s"] = [60 * minutes for minutes in history.get("elapsed_times") or []]
    rows: dict[int, dict[str, Any]] = {}
    for i, step in enumerate(history["steps"]):
        row = {name: values[i] for name, values in columns.items() if i < len(values)}
        if row.get("val_loss") is not None:
            rows[step] = {"step": step, "tokens": step * tokens // max(1, steps)} | row
    return [rows[step] for step in sorted(rows)]


def _write(storage: Storage, run: LegacyRun) -> None:
    writer = RunWriter(storage, run.run_id, _start(run))
    for row in run.layers:
        writer.emit("layers", **row)
    for row in run.val:
        writer.emit("val", **row)
    last = run.val[-1] if run.val else {}
    metrics = run.metrics or {}
    train_loss = (metrics.get("final_metrics") or {}).get("train_loss")
    if train_loss is not None:
        rates = (metrics.get("history") or {}).get("learning_rates") or [None]
        writer.emit(
            "train", step=metrics["actual_steps"], tokens=metrics["tokens_seen"], train_loss=train_loss, lr=rates[-1]
        )
    losses = [row["val_loss"] for row in run.val]
    finite = [loss for loss in losses if math.isfinite(loss)]
    status = "stopped" if run.metrics is None else "done" if len(finite) == len(losses) else "diverged"
    wall = metrics.get("total_wall_time_seconds")
    writer.end(
        status=status,
        error=NO_END if run.metrics is None else None,
        steps=metrics.get("actual_steps", run.layers[-1]["step"] if run.layers else None),
        tokens=metrics.get("tokens_seen", run.layers[-1]["tokens"] if run.layers else None),
        final_val_loss=last.get("val_loss"),
        final_val_accuracy=last.get("val_accuracy"),
        best_val_loss=min(finite, default=None),
        wall_s=wall,
    )


def _start(run: LegacyRun) -> dict[str, Any]:
    """Columns of the `runs` table that the config tells. Hashes and environment are unknown, so null."""
    embedding_lr = _number(run.config.get("adamw_lr"))
    lr = _number(run.config.get("muon_lr")) if run.optimizer == "muon" else embedding_lr
    config = run.config | {"imported_from": run.folder, "steps": (run.metrics or {}).get("actual_steps")}
    return {
        "arm_id": run.arm_id,
        "arm": run.optimizer,
        "seed": run.seed,
        "optimizer": run.optimizer,
        "lr": lr,
        "embedding_lr": embedding_lr,
        "config_json": _canonical(config),
    }


def _number(value: Any) -> float | None:
    """YAML 1.1 reads 1e-3 as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _earlier(storage: Storage, sweep: str) -> list[dict[str, str]]:
    """The runs that `sweep` lists already. Raises ValueError if it was not imported."""
    store = Store(storage)
    if sweep not in store.sweep_names():
        return []
    record = store.sweep(sweep).record
    assert record is not None
    if not record.spec.get("imported"):
        raise ValueError(f"{storage.url} has a sweep {sweep!r} that was not imported; choose another with --name")
    return [{"run_id": run.run_id, "block": run.block, "role": run.role, "arm": run.arm} for run in record.runs]


def _write_sweep(
    storage: Storage, sweep: str, earlier: list[dict[str, str]], runs: list[LegacyRun], baseline: str | None
) -> None:
    found = sorted(runs, key=lambda run: run.folder)
    new = [{"run_id": run.run_id, "block": run.optimizer, "role": "candidate", "arm": run.arm_id} for run in found]
    if baseline is None:
        baseline = next((entry["block"] for entry in earlier if entry["role"] == "baseline"), None)
    elif baseline not in (blocks := sorted({entry["block"] for entry in [*earlier, *new]})):
        raise ValueError(f"no run has the optimizer {baseline!r} to be the baseline; there are {', '.join(blocks)}")
    listed = {entry["run_id"]: entry for entry in [*new, *earlier]}
    ordered = [listed[run_id] for run_id in dict.fromkeys(entry["run_id"] for entry in [*earlier, *new])]
    entries = [entry | {"role": "baseline" if entry["block"] == baseline else "candidate"} for entry in ordered]
    write_sweep(storage, sweep, {"question": "", "spec": {"imported": True}, "metrics": {}, "runs": entries})


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
