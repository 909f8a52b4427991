"""A search by the command, without Ray: limited, killed, stopped and continued, two at once, and with failing runs."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.sweeps import muon_here, start_sweep, sweep_file, wait_for_attempts

from analysis.store import open_store
from muon_core.store.folder import Folder
from muon_core.store.ledger import read_entries
from muon_core.store.sweeps import SweepRecord, read_sweep

pytestmark = pytest.mark.slow

SAMPLE = {"n": 7, "searcher": "optuna", "lr": "loguniform(1e-3, 1)"}
BASE = {"name": "base", "role": "baseline", "optimizer": "muon"}
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def search_file(folder: Path, small: dict[str, Any], sample: dict[str, Any] | None = None, **fields: Any) -> Path:
    block = {"name": "rates", "optimizer": "muon", "sample": SAMPLE | (sample or {})}
    return sweep_file(folder, small, [BASE, block], seeds=[1], **fields)


def record(store: Path) -> SweepRecord:
    found = read_sweep(Folder(store), "test")
    assert found
    return found


def attempts(store: Path) -> dict[str, int]:
    """Of each run."""
    return dict(open_store(store).runs.select("run_id", "attempts").collect().iter_rows())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a sweep file in a store, and returns how that ended and what was said."""

    def call(spec: Path, store: Path, *options: str) -> "subprocess.CompletedProcess[str]":
        return muon_here(capsys, "sweep", "run", str(spec), "--in-process", *options, store=store)

    return call


def test_a_search_is_limited_killed_and_continued_by_the_same_command(
    small: dict[str, Any], tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, store = search_file(tmp_path, small | {"steps": 40}), tmp_path / "store"
    limited = run(spec, store, "--limit", "3")
    assert limited.returncode == 0, limited.stderr
    assert "trained 3 runs" in limited.stderr
    assert "the search goes on: 5 of its cells are to be chosen yet" in limited.stdout
    before = open_store(store).runs.collect()
    assert len(before) == 3

    process = start_sweep(spec, store)
    wait_for_attempts(process, store, 5)  # at the baseline and four cells, of which one is under way
    process.kill()
    process.communicate()
    plan = muon_here(capsys, "sweep", "plan", str(spec), store=store).stdout
    assert "search: 7 cells of block rates, chosen as results come; 4 chosen so far: 3 done, 1 interrupted" in plan
    assert "to run: 4 runs, 3 of them to be chosen" in plan

    last = run(spec, store)
    assert last.returncode == 0, last.stderr
    assert "next: muon sweep confirm test --top 1 --fresh-seeds 3" in last.stderr
    found = open_store(store).runs.collect()
    assert found["status"].to_list() == ["done"] * 8
    assert sorted(attempts(store).values()) == [1] * 7 + [2]  # the one that was killed
    assert found.filter(pl.col("run_id").is_in(before["run_id"].to_list())).equals(before)
    listed = record(store)
    assert len({run.run_id for run in listed.runs if run.block == "rates"}) == 7
    assert listed.to_choose == 0


def test_two_calls_at_once_train_each_cell_once_and_both_end_with_the_answer(
    small: dict[str, Any], tmp_path: Path
) -> None:
    spec, store = search_file(tmp_path, small | {"steps": 16}), tmp_path / "store"
    processes = [start_sweep(spec, store) for _ in range(2)]
    answers = [process.communicate(timeout=280) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    entries = read_entries(Folder(store))
    assert [entry.status for entry in entries] == ["done"] * len(entries)
    assert len({entry.run_id for entry in entries}) == len(entries) == 8
    listed = record(store)
    assert {run.run_id for run in listed.runs} == {entry.run_id for entry in entries}
    assert listed.to_choose == 0


def test_cells_that_fail_alike_end_the_search_and_those_that_diverge_do_not(
    small: dict[str, Any], tmp_path: Path, run: Run
) -> None:
    huge = {"model.d_ff": "choice(1000000000000, 1000000000001, 1000000000002, 1000000000003)", "n": 8}
    spec, store = search_file(tmp_path, small, huge, breaker={"same_error": 2}), tmp_path / "store"
    failed = run(spec, store)
    assert failed.returncode == 3, failed.stderr
    assert "left out: 1 run: breaker: 2 runs of this arm died alike" in failed.stderr
    listed = record(store)
    assert (len(listed.runs), listed.to_choose) == (4, 5)  # the baseline, two that failed, and one left out
    statuses = open_store(store).runs.collect()["status"].to_list()
    assert sorted(statuses) == ["done", "failed", "failed"]

    (tmp_path / "high").mkdir()
    spec, store = search_file(tmp_path / "high", small, {"lr": "loguniform(1e30, 1e36)", "n": 3}), tmp_path / "high"
    diverged = run(spec, store)
    assert diverged.returncode == 0, diverged.stderr
    statuses = open_store(store).runs.collect()["status"].to_list()
    assert sorted(statuses) == ["diverged"] * 3 + ["done"]
