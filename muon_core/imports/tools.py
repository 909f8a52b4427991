"""Reads what training libraries write beside each run: Lightning, Ray Tune, Hugging Face's Trainer, and W&B.

Each is a table whose columns the tool names, and a file beside it that holds the run's parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from muon_core.imports.log import Log, UnreadableLog, flat, number, own_name, whole
from muon_core.imports.tables import read_csv, read_lines


def read_lightning(path: Path, place: str) -> Log:
    """`metrics.csv` of Lightning's CSVLogger, and `hparams.yaml` beside it."""
    log = read_csv(path, place)
    log.format, log.is_one_run, log.name = "Lightning metrics.csv", True, own_name(path)
    log.config = _read_yaml(path.with_name("hparams.yaml"), log)
    return log


def read_ray_result(path: Path, place: str) -> Log:
    """`result.json` of a trial of Ray Tune, a line a report, and `params.json` beside it."""
    return _of_trial(read_lines(path, place), path, "Ray Tune result.json")


def read_ray_progress(path: Path, place: str) -> Log:
    """`progress.csv` of a trial of Ray Tune, and `params.json` beside it."""
    return _of_trial(read_csv(path, place), path, "Ray Tune progress.csv")


def _of_trial(log: Log, path: Path, format: str) -> Log:
    log.format, log.is_one_run, log.name = format, True, path.parent.name
    log.config = _read_json(path.with_name("params.json")) or _config_of(log)
    log.rows = [{name: value for name, value in row.items() if not name.startswith("config/")} for row in log.rows]
    log.header = [name for name in log.header if not name.startswith("config/")]
    return log


def _config_of(log: Log) -> dict[str, Any]:
    """What the first report says of the config."""
    first = log.rows[0] if log.rows else {}
    return {name.removeprefix("config/"): value for name, value in first.items() if name.startswith("config/")}


def read_trainer_state(path: Path, place: str) -> Log:
    """`trainer_state.json` of Hugging Face's Trainer. Raises UnreadableLog if it has no list `log_history`.

    Its last entry sums the training up, with a mean loss over all of it that is no loss of that step.
    """
    state = _read_json(path)
    entries = state.get("log_history")
    if not isinstance(entries, list):
        raise UnreadableLog(f"{place} has no list log_history, as Hugging Face's trainer_state.json has")
    log = Log(place, "Hugging Face trainer_state.json", [], own_name(path), lines=len(entries))
    log.config = dict(flat(state.get("trial_params") or {}))
    log.planned_steps = whole(state.get("max_steps")) or None
    for entry in entries:
        if not isinstance(entry, dict):
            log.torn += 1
            continue
        row = dict(flat(entry))
        if "train_runtime" in row:
            log.wall_s = number(row["train_runtime"])
            if "train_loss" in row:
                mean = row.pop("train_loss")
                log.notes.append(f"train_loss {mean} of the summary is a mean over all steps, and is left out")
        log.rows.append(row)
    return log


def read_wandb_history(path: Path, place: str) -> Log:
    """`wandb-history.jsonl` of a run of W&B, a line a call of `log`, and `config.yaml` beside it."""
    log = read_lines(path, place)
    log.format, log.is_one_run, log.name = "W&B wandb-history.jsonl", True, own_name(path)
    for name, entry in _read_yaml(path.with_name("config.yaml"), log).items():
        if not name.startswith(("_wandb", "wandb_")):
            log.config[name] = entry["value"] if isinstance(entry, dict) and "value" in entry else entry
    return log


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty if there is no such file. Raises UnreadableLog if it holds something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnreadableLog(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UnreadableLog(f"{path} is no JSON object")
    return value


def _read_yaml(path: Path, log: Log) -> dict[str, Any]:
    """The mapping in `path`; empty if there is none, or one that only Python can read, which `log` is told."""
    if not path.is_file():
        return {}
    try:
        value = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        log.notes.append(f"{path.name} is no plain YAML ({reason}), so the parameters of its run are not known")
        return {}
    return {str(name): entry for name, entry in value.items()} if isinstance(value, dict) else {}
