"""Reads runs of older projects, whose metrics are JSON files in a folder a run.

A run is named after a digest of its config and files, so an import finds what an earlier one wrote, from whichever
folder above it was begun, and files that have grown since are another run. What the files do not say stays null; only
the tokens of an evaluation are worked out, from its step and the run's mean tokens a step.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from muon_core.legacy.lines import FILES, Counts, is_number, read_layer_tables

METRICS_FILE, CONFIG_FILE = "metrics.json", "config.yaml"
INNER_FOLDERS = ("raw", "metrics", "raw_metrics")
"""Folders inside a run's own that hold its files."""
_VAL = {"val_losses": "val_loss", "val_accuracies": "val_accuracy", "val_perplexities": "val_perplexity"}


class UnreadableRun(ValueError):
    """A run that cannot be imported, and why."""


@dataclass(slots=True)
class LegacyRun:
    """One run as its files describe it; `folder` is relative to the folder that is imported."""

    folder: str
    optimizer: str
    seed: int | None
    config: dict[str, Any]
    metrics: dict[str, Any] | None
    val: list[dict[str, Any]]
    train: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    spectra: list[dict[str, Any]]
    counts: Counts
    digest: str
    notes: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        """Derived from the content, so that importing it again finds it there."""
        seed = "" if self.seed is None else f"-s{self.seed}"
        return f"imported-{self.optimizer}{seed}-{self.digest}"

    @property
    def wall_s(self) -> float | None:
        """Seconds from start to end, where the metrics have them."""
        metrics = self.metrics or {}
        for name, unit in (("total_wall_time_seconds", 1.0), ("total_time_minutes", 60.0)):
            if is_number(metrics.get(name)):
                return float(unit * metrics[name])
        return None

    @property
    def steps(self) -> int | None:
        """Steps trained; None without metrics, which alone tell."""
        return self.metrics["actual_steps"] if self.metrics else None

    @property
    def arm_id(self) -> str:
        """The same for runs of one length whose configs differ only in their seed."""
        arm = {name: value for name, value in self.config.items() if name != "seed"}
        if self.steps is not None:
            arm["actual_steps"] = self.steps
        return f"imported-{self.optimizer}-{_digest(canonical(arm))}"


def run_files(folder: Path) -> dict[Path, list[Path]]:
    """The files of each run below `folder`, by the run's own folder."""
    runs: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(path for name in (METRICS_FILE, *FILES) for path in folder.rglob(name)):
        place = path.parent
        while place.name in INNER_FOLDERS and place != folder:
            place = place.parent
        runs[place].append(path)
    return dict(runs)


def read_run(root: Path, place: Path, files: list[Path]) -> LegacyRun:
    """The run whose folder is `place`, from its `files`. Raises UnreadableRun, as for a config that is no YAML."""
    metrics = next((_load_metrics(path) for path in files if path.name == METRICS_FILE), None)
    config = _find_config(place) | _section(metrics, "experiment_config")
    optimizer = re.sub(r"[^A-Za-z0-9._]+", "_", str(config.get("optimizer_type") or "unknown"))
    if config.get("seed") is None and (named := re.search(r"seed[_-]?(\d+)", place.name)):
        config["seed"] = int(named[1])
    seed = config.get("seed")
    if seed is not None and type(seed) is not int:
        raise UnreadableRun(f"seed {seed!r} is no whole number; correct it in {CONFIG_FILE}")
    counts = Counts()
    layers, spectra = read_layer_tables([path for path in files if path.name in FILES], counts)
    val, train = (_evaluations(metrics), _last_step(metrics)) if metrics else ([], [])
    if not (val or layers or spectra):
        raise UnreadableRun("it has neither an evaluation nor a whole line")
    digest = _digest(canonical(config), *(f"{path.relative_to(place)} {_file_digest(path)}" for path in files))
    relative = str(place.relative_to(root))
    run = LegacyRun(relative, optimizer, seed, config, metrics, val, train, layers, spectra, counts, digest)
    claimed = _section(metrics, "final_metrics").get("val_loss")
    if val and claimed is not None and claimed != val[-1]["val_loss"]:
        run.notes.append(
            f"final_metrics say val_loss {claimed}, the last evaluation {val[-1]['val_loss']}, which counts"
        )
    return run


def _load_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_bytes())
    except ValueError as error:
        raise UnreadableRun(f"{path} is not JSON ({error})") from error
    wanted = ("actual_steps", "tokens_seen")
    if not isinstance(metrics, dict) or not all(type(metrics.get(name)) is int for name in wanted):
        raise UnreadableRun(f"{path} lacks {' or '.join(wanted)} as whole numbers")
    return metrics


def _find_config(place: Path) -> dict[str, Any]:
    """The config in the run's folder, or the nearest above it that names an optimizer; empty if there is none.

    The run is named after it, so it is the same whichever of the folders above is imported.
    """
    for folder in (place, *place.resolve().parents):
        path = folder / CONFIG_FILE
        if path.is_file():
            try:
                config = yaml.safe_load(path.read_bytes())
            except yaml.YAMLError as error:
                raise UnreadableRun(f"{path} is not YAML ({str(error).partition(chr(10))[0]})") from error
            if isinstance(config, dict) and (folder == place or "optimizer_type" in config):
                return config
    return {}


def _section(metrics: dict[str, Any] | None, name: str) -> dict[str, Any]:
    section = (metrics or {}).get(name)
    return section if isinstance(section, dict) else {}


def _evaluations(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the `val` table; without a history, the final metrics as the only one. Raises UnreadableRun if torn."""
    history = _section(metrics, "history")
    if not history.get("steps"):
        final = _section(metrics, "final_metrics")
        history = {"steps": [metrics["actual_steps"]]} | {
            many: [final[one]] for many, one in _VAL.items() if one in final
        }
    for name in ("steps", "elapsed_times", "learning_rates", *_VAL):
        if not isinstance(history.get(name) or [], list):
            raise UnreadableRun(f"the history in {METRICS_FILE} has {history[name]!r} where a list of {name} belongs")
    steps = history["steps"]
    columns = {one: history[many] for many, one in _VAL.items() if history.get(many)}
    if minutes := history.get("elapsed_times"):
        columns["elapsed_s"] = [60 * minute for minute in minutes]
    for name, values in {"steps": steps, **columns}.items():
        if len(values) != len(steps) or not all(map(is_number, values)):
            raise UnreadableRun(
                f"the history in {METRICS_FILE} has not one number for {name} at each of its {len(steps)} steps"
            )
    if not all(type(step) is int for step in steps):
        raise UnreadableRun(f"the history in {METRICS_FILE} has steps that are no whole numbers")
    if "val_loss" not in columns:
        return []
    per_step = metrics["tokens_seen"] / max(1, metrics["actual_steps"])
    rows = {
        step: {"step": step, "tokens": round(step * per_step)} | {name: values[i] for name, values in columns.items()}
        for i, step in enumerate(steps)
    }
    return [rows[step] for step in sorted(rows)]


def _last_step(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The only row of the `train` table that these files have."""
    loss = _section(metrics, "final_metrics").get("train_loss")
    rate = (_section(metrics, "history").get("learning_rates") or [None])[-1]
    row = {"step": metrics["actual_steps"], "tokens": metrics["tokens_seen"], "train_loss": loss}
    return [row | {"lr": rate if is_number(rate) else None}] if is_number(loss) else []


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
