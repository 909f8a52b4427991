"""Reads runs of the older project: JSON and JSONL files in a folder a run, or `plots/metrics_*.json`, a file a run.

A run is named after a digest of its config and files, so an import finds what an earlier one wrote, from whichever
folder above it was begun. What the files do not say stays null.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from muon_core.legacy.history import METRICS_FILE, evaluations, layer_rows, section, train_rows
from muon_core.legacy.imported import ImportedRun, UnreadableRun, canonical, digest_of, optimizer_name
from muon_core.legacy.lines import FILES, Counts, is_number, read_layer_tables
from muon_core.legacy.seeds import seed_in
from muon_core.legacy.shapes import add_shapes
from muon_core.statuses import STOPPED_EARLY

CONFIG_FILE = "config.yaml"
INNER_FOLDERS = ("raw", "metrics", "raw_metrics")
"""Folders inside a run's own that hold its files."""
NO_END = f"imported without {METRICS_FILE}, so how it ended is not known"
EARLY = f"{STOPPED_EARLY} the run ended itself, as its {METRICS_FILE} says"
_CONFIGS = ("experiment_config", "ablation_flags", "flags")
"""Parts of a metrics.json that are the run's config; an earlier one counts where they differ."""
_NAMES = ("run_name", "experiment_name", "config_name", "git_branch", "git_dirty")
_WHOLE = (b'"final_metrics"', b'"actual_steps"')  # what marks a JSON file of another name as metrics of a run


def run_files(folder: Path) -> dict[Path, list[Path]]:
    """The files of each run below `folder`, by the run's own folder; a file of metrics elsewhere is a run of its own.

    Those come last: such a file may be a copy of what lies in a run's folder, where more is told of it.
    """
    runs: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(path for name in (METRICS_FILE, *FILES) for path in folder.rglob(name)):
        place = path.parent
        while place.name in INNER_FOLDERS and place != folder:
            place = place.parent
        runs[place].append(path)
    loose = [path for path in sorted(folder.rglob("*.json")) if path.name != METRICS_FILE and _is_metrics(path)]
    return dict(runs) | {path: [path] for path in loose}


def _is_metrics(path: Path) -> bool:
    """Whether a JSON file has the parts of a metrics.json. It may be anything, of any size, so it is not loaded."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return all(data.find(part) >= 0 for part in _WHOLE)


def read_runs(root: Path, found: dict[Path, list[Path]], damaged: dict[str, str]) -> Iterator[ImportedRun]:
    """The runs that `run_files` found, one after the other; `damaged` gets the reason for each that is left out."""
    for place, files in found.items():
        try:
            yield read_run(root, place, files)
        except UnreadableRun as error:
            damaged[str(place.relative_to(root))] = str(error)
        except OverflowError as error:  # JSON has whole numbers of any length
            damaged[str(place.relative_to(root))] = f"it has a number that is out of range ({error})"


def read_run(root: Path, place: Path, files: list[Path]) -> ImportedRun:
    """The run at `place`, from its `files`. Raises UnreadableRun, as for a config that is no YAML."""
    metrics = next((_load_metrics(path) for path in files if path.suffix == ".json"), None)
    told = _find_config(place) | _told(metrics)
    seed = _seed(told, place)
    config = told if seed is None else told | {"seed": seed}
    counts, notes = Counts(), list[str]()
    more = layer_rows(metrics, counts, notes) if metrics else []
    layers, spectra = read_layer_tables([path for path in files if path.name in FILES], counts, more)
    add_shapes(layers, config)
    val, train = (evaluations(metrics), train_rows(metrics, notes)) if metrics else ([], [])
    if not (val or layers or spectra):
        raise UnreadableRun("it has neither an evaluation nor a whole line")
    inside = place if place.is_dir() else place.parent
    optimizer = optimizer_name(config.get("optimizer_type"))
    embedding_lr = _number(config.get("adamw_lr"))
    return ImportedRun(
        folder=str(place.relative_to(root).with_suffix("") if place.is_file() else place.relative_to(root)),
        digest=digest_of(canonical(config), *(f"{path.relative_to(inside)} {_file_digest(path)}" for path in files)),
        place=str(place.resolve()),
        optimizer=optimizer,
        seed=seed,
        config=config,
        val=val,
        train=train,
        layers=layers,
        spectra=spectra,
        steps=metrics["actual_steps"] if metrics else None,
        tokens=metrics.get("tokens_seen") if metrics else None,
        wall_s=_wall_s(metrics or {}),
        no_end=NO_END if metrics is None else EARLY if metrics.get("stopped_early") is True else None,
        lr=_number(config.get("muon_lr")) if optimizer == "muon" else embedding_lr,
        embedding_lr=embedding_lr,
        commit=str(metrics["git_commit"]) if metrics and metrics.get("git_commit") else None,
        notes=[*counts.sentences(), *notes, *_claims(metrics, val)],
    )


def _load_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_bytes())
    except ValueError as error:
        raise UnreadableRun(f"{path} is not JSON ({error})") from error
    if not isinstance(metrics, dict) or type(metrics.get("actual_steps")) is not int or not _counts_tokens(metrics):
        raise UnreadableRun(f"{path} lacks actual_steps or tokens_seen as whole numbers")
    return metrics


def _counts_tokens(metrics: dict[str, Any]) -> bool:
    """Whether the tokens are a number, or left out as the project's trainer itself does."""
    return "tokens_seen" not in metrics or type(metrics["tokens_seen"]) is int


def _told(metrics: dict[str, Any] | None) -> dict[str, Any]:
    """What a metrics.json tells of its run's config, names and seed."""
    metrics = metrics or {}
    config: dict[str, Any] = {name: metrics[name] for name in (*_NAMES, "seed") if metrics.get(name) is not None}
    for name in reversed(_CONFIGS):
        config |= section(metrics, name)
    return config


def _seed(config: dict[str, Any], place: Path) -> int | None:
    """The seed that the config tells, or else a name of the run. Raises UnreadableRun if it is no whole number."""
    seed = config.get("seed")
    if seed is None:
        names = (place.stem if place.is_file() else place.name, config.get("run_name"), config.get("experiment_name"))
        return next((found for name in names if (found := seed_in(str(name or ""))) is not None), None)
    if type(seed) is not int:
        raise UnreadableRun(f"seed {seed!r} is no whole number; correct it in {CONFIG_FILE}")
    return seed


def _find_config(place: Path) -> dict[str, Any]:
    """The run's config: in its folder, in `configs/` beside it, or the nearest above that names an optimizer.

    The run is named after it, so it is the same whichever of the folders above is imported. A file that is a run of its
    own may lie anywhere, so of the folders above it nothing is taken. Empty if there is none.
    """
    name = place.stem if place.is_file() else place.name
    own = [place / CONFIG_FILE, place.parent / "configs" / f"{name}.yaml", place.parent / "configs" / f"{name}.yml"]
    above = [] if place.is_file() else [folder / CONFIG_FILE for folder in place.resolve().parents]
    for path in (*own, *above):
        if path.is_file():
            try:
                config = yaml.safe_load(path.read_bytes())
            except yaml.YAMLError as error:
                raise UnreadableRun(f"{path} is not YAML ({str(error).partition(chr(10))[0]})") from error
            if isinstance(config, dict) and (path in own or "optimizer_type" in config):
                return config
    return {}


def _claims(metrics: dict[str, Any] | None, val: list[dict[str, Any]]) -> list[str]:
    claimed = section(metrics, "final_metrics").get("val_loss")
    if not val or claimed is None or claimed == val[-1]["val_loss"]:
        return []
    return [f"final_metrics say val_loss {claimed}, the last evaluation {val[-1]['val_loss']}, which counts"]


def _wall_s(metrics: dict[str, Any]) -> float | None:
    """Seconds from start to end, where the metrics have them."""
    for name, unit in (("total_wall_time_seconds", 1.0), ("total_time_minutes", 60.0)):
        if is_number(metrics.get(name)):
            return float(unit * metrics[name])
    return None


def _number(value: Any) -> float | None:
    """YAML 1.1 reads 1e-3 as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
