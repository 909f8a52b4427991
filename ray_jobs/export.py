"""Writes a sweep's curves as files of other tools: CSV, W&B's history lines, TensorBoard's events.

Each is written where nothing is yet, and `muon import` reads the first two again to the last digit. TensorBoard keeps
32 bits of a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from analysis.history import METRICS, RUN, history
from analysis.store import Store


def to_csv(view: Store, output: Path) -> int:
    """One file, a row a run, step and kind of measurement; returns the number of runs."""
    rows = history(view).collect()
    output.parent.mkdir(parents=True, exist_ok=True)
    rows.write_csv(output)
    return rows["run"].n_unique()


def to_wandb(view: Store, output: Path) -> int:
    """A folder a run with `wandb-history.jsonl` and `config.yaml`, as W&B lays them out; returns the number of runs."""
    runs = list(_runs(view))
    for run, rows in runs:
        folder = output / run["run_id"]
        folder.mkdir(parents=True)
        config = {"optimizer": run["optimizer"]} | json.loads(run["config_json"] or "{}")
        config |= {"arm": run["arm"], "seed": run["seed"]}
        told = {"wandb_version": 1} | {name: {"desc": None, "value": value} for name, value in config.items()}
        (folder / "config.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
        started = run["started_at"].timestamp() if run["started_at"] else None
        with (folder / "wandb-history.jsonl").open("w", encoding="utf-8") as file:
            for i, row in enumerate(rows.iter_rows(named=True)):
                elapsed = row.pop("elapsed_s")
                times = {"_runtime": elapsed, "_timestamp": started and started + (elapsed or 0.0)}
                line = {"_step": i} | times | row
                file.write(
                    json.dumps({name: _plain(value) for name, value in line.items() if value is not None}) + "\n"
                )
    return len(runs)


def to_tensorboard(view: Store, output: Path) -> int:
    """A folder a run with its events; tags are `val/loss`, `train/lr` and so on. Returns the number of runs."""
    from tensorboardX.writer import SummaryWriter

    runs = list(_runs(view))
    for run, rows in runs:
        started = run["started_at"].timestamp() if run["started_at"] else 0.0
        with SummaryWriter(str(output / run["run_id"])) as writer:
            writer.add_text("config", f"    {run['config_json']}", walltime=started)
            for row in rows.iter_rows(named=True):
                for table, columns in METRICS.items():
                    for column in columns:
                        if row[column] is not None:
                            tag = f"{table}/{column.removeprefix(f'{table}_')}"
                            writer.add_scalar(tag, row[column], row["step"], started + (row["elapsed_s"] or 0.0))
    return len(runs)


WRITERS: dict[str, Callable[[Store, Path], int]] = {
    "csv": to_csv,
    "wandb-jsonl": to_wandb,
    "tensorboard": to_tensorboard,
}
"""Format -> what writes it."""


def _runs(view: Store) -> Iterator[tuple[Mapping[str, Any], pl.DataFrame]]:
    """(row of `runs`, its rows of `history` without what tells the run), in the order of the sweep."""
    about = {row["run_id"]: row for row in view.runs.collect().iter_rows(named=True)}
    for (run_id, arm), rows in history(view).collect().group_by("run", "arm", maintain_order=True):
        yield about[str(run_id)] | {"arm": arm}, rows.drop(RUN)


def _plain(value: Any) -> Any:
    """JSON has no number that is not finite: W&B writes a text."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
