"""A sweep as a user runs it: the `muon` command on a real Ray, the answer, the report, Ctrl-C, and the same again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import yaml

from analysis.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]
MUON = str(Path(sys.executable).with_name("muon"))


def constants(small: dict[str, Any]) -> dict[str, Any]:
    """The fixture's fields as dotted names of a sweep file."""
    flat: dict[str, Any] = {}
    for name, value in small.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def sweep_file(folder: Path, small: dict[str, Any], blocks: list[dict[str, Any]], **fields: Any) -> Path:
    spec = {"version": 1, "name": "test", "question": "Does it hold?", "seeds": [1, 2]}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec | {"constants": constants(small), "blocks": blocks} | fields))
    return path


def muon(*arguments: str, store: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MUON_STORE": str(store)}
    return subprocess.run([MUON, *arguments], capture_output=True, text=True, env=environment, timeout=280)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def test_a_sweep_ends_with_an_answer_and_a_report_and_repeats_nothing(tmp_path: Path, small: dict[str, Any]) -> None:
    """Two arms, two seeds, and an arm whose runs cannot be built: they fail, are recorded, and the others go on."""
    blocks = [
        {"name": "muon", "role": "baseline", "optimizer": "muon"},
        {"name": "adamw", "optimizer": "adamw"},
        {"name": "huge", "optimizer": "muon", "set": {"model.d_ff": 10**12}},
    ]
    spec, store = sweep_file(tmp_path, small, blocks), tmp_path / "results"
    planned = muon("sweep", "plan", str(spec), "--json", store=store)
    assert planned.returncode == 0, planned.stderr
    assert len(json.loads(planned.stdout)["to_run"]) == 6

    first = muon("sweep", "run", str(spec), store=store)
    assert first.returncode == 3, first.stderr
    assert not [word for word in ("WARN", "raylet", "Traceback", "INFO") if word in first.stderr], first.stderr
    assert "failed" in first.stderr
    opened = open_store(store)
    runs = opened.sweep("test").runs.collect()
    by_block = runs.group_by("block").agg(pl.col("status").sort()).sort("block").rows()
    assert by_block == [("adamw", ["done"] * 2), ("huge", ["failed"] * 2), ("muon", ["done"] * 2)]
    assert runs.filter(pl.col("block") == "huge")["error"].str.contains("Traceback").all()

    plain = pl.read_parquet(f"{store}/final/table=val/**/*.parquet", hive_partitioning=True)
    assert (
        plain.sort("run_id", "step")
        .select("run_id", "step", "val_loss")
        .equals(
            opened.val.filter(pl.col("run_id").is_in(plain["run_id"].unique().implode()))
            .sort("run_id", "step")
            .select("run_id", "step", "val_loss")
            .collect()
        )
    )
    final = plain.filter(pl.col("step") == 8).group_by("run_id").agg(pl.col("val_loss").first())
    for row in final.join(runs, on="run_id").iter_rows(named=True):
        assert row["val_loss"] == row["final_val_loss"]
    assert "2/2" in first.stdout
    assert "0/2" in first.stdout

    again = muon("sweep", "run", str(spec), store=store)
    assert again.returncode == 3, again.stderr  # the failed runs are still there
    assert "0 to train" in again.stderr
    assert open_store(store).runs.collect().equals(opened.runs.collect())

    report = muon("report", "test", "-o", str(tmp_path / "report"), store=store)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Does it hold?" in page
    assert page.count("<svg") >= 7  # curves, and a grid for each of six projections


def test_ctrl_c_keeps_finished_runs_leaves_no_process_and_the_same_command_continues(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    blocks = [
        {"name": "short", "role": "baseline", "optimizer": "muon"},
        {"name": "long", "optimizer": "adamw", "set": {"steps": 400}},
    ]
    spec = sweep_file(tmp_path, small, blocks, seeds=[1], resources={"max_concurrent": 1})
    store = tmp_path / "results"
    command = subprocess.Popen(
        [MUON, "sweep", "run", str(spec), "--store", str(store)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )

    def long_run_trains() -> bool:
        assert command.poll() is None, command.communicate()
        if not (store / "live").exists():
            return False
        runs = open_store(store).sweep("test").runs.collect()
        return runs.height == 2 and set(runs["status"]) == {"done", "running"}

    wait_for(long_run_trains, 200)
    family = psutil.Process(command.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in family)
    begin = time.monotonic()
    os.killpg(command.pid, signal.SIGINT)  # what a terminal does
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130, stderr
    assert time.monotonic() - begin < 45
    assert "Traceback" not in stderr
    assert "the same command continues" in stderr
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    statuses = dict(open_store(store).sweep("test").runs.select("block", "status").collect().iter_rows())
    assert statuses == {"short": "done", "long": "stopped"}

    finished = open_store(store).sweep("test").runs.filter(pl.col("block") == "short").collect()
    again = muon("sweep", "run", str(spec), store=store)
    assert again.returncode == 0, again.stderr
    after = open_store(store).sweep("test")
    assert set(after.runs.collect()["status"]) == {"done"}
    assert after.runs.filter(pl.col("block") == "short").collect().equals(finished)
    steps = after.train.filter(pl.col("block") == "long").sort("step").collect()["step"].to_list()
    assert steps == list(range(1, 401))
