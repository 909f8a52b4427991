"""Runs that ended and that their sweep no longer lists: which they are, and how they are named."""

import json
from pathlib import Path

import polars as pl
import pytest
from support.analysis_fixtures import FEW, FakeRun, known_runs, loss_curve, write_store, write_sweep

import analysis
from analysis.report.build import write_report
from analysis.summary import summarize
from muon_core.store.dropped import DroppedRun, describe_dropped, dropped_runs, earlier_runs
from muon_core.store.folder import Folder
from muon_core.store.sweeps import SweepRecord, SweepRun
from ray_jobs.cli.answer_text import render_summary


def record(*runs: str, arm: str = "muon") -> SweepRecord:
    listed = tuple(SweepRun(run_id=run, block="b", role="baseline", arm=arm, seed=int(run[-1])) for run in runs)
    return SweepRecord(sweep="s", runs=listed)


def run(seed: int | None, arm: str = "muon", status: str = "done") -> DroppedRun:
    return DroppedRun(f"{arm}-s{seed}", arm, seed, status)


def test_dropped_runs_are_those_of_any_earlier_record_that_ended() -> None:
    """r1 went at once, r2 later; r3 never ended, r4 is listed again, r5 failed, r6 was stopped early."""
    records = [
        record("r1", "r2", "r3", "r4", "r5", "r6"),
        record("r2", "r3", "r5", "r6", arm="muon lr=1"),
        record("r4"),
    ]
    statuses = {"r1": "done", "r2": "diverged", "r3": "stopped", "r4": "done", "r5": "failed", "r6": "stopped early"}
    assert dropped_runs(earlier_runs(records, {"r4"}), statuses) == (
        DroppedRun("r1", "muon", 1, "done"),
        DroppedRun("r2", "muon lr=1", 2, "diverged"),
        DroppedRun("r5", "muon lr=1", 5, "failed"),
        DroppedRun("r6", "muon lr=1", 6, "stopped early"),
    )


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([], ""),
        ([run(3)], "1 finished run of this sweep is no longer listed: seed 3"),
        ([run(4), run(3), run(3, "adamw")], "3 finished runs of this sweep are no longer listed: seed 3, 4"),
        ([run(1, "lion"), run(2, "lion")], "2 finished runs of this sweep are no longer listed: arm lion"),
        (
            [run(3, "lion"), run(1, "lion"), run(1, status="failed")],
            "3 ended runs of this sweep are no longer listed (2 done, 1 failed): seed 3; arm lion; run muon-s1",
        ),
        ([run(None)], "1 finished run of this sweep is no longer listed: run muon-sNone"),
        (
            [run(1, f"arm{i}") for i in range(5)],
            "5 finished runs of this sweep are no longer listed: arm arm0, arm1, arm2 and 2 more",
        ),
    ],
    ids=["none", "a seed", "two seeds", "an arm", "of each", "no seed", "many arms"],
)
def test_dropped_runs_are_named_by_the_seed_or_arm_that_went(runs: list[DroppedRun], text: str) -> None:
    assert describe_dropped(runs, {1, 2}, {"muon", "adamw"}) == text


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    """Two arms at three seeds and one that failed; the newest record lists neither seed 137 nor that arm."""
    lost = FakeRun("lion", 42, {0: 7.0}, "failed", facts={"error": "boom"}, with_layers=False)
    runs = known_runs()
    for run in runs:
        run.with_layers = False  # no heatmaps to draw
    storage = write_store(tmp_path / "store", [*runs, lost])
    listed = [{"run_id": r.run_id, "block": "b", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    write_sweep(storage, "demo", [row for row in listed if "s137" not in row["run_id"]], number=2)
    return storage


NAMED = "3 ended runs of this sweep are no longer listed (2 done, 1 failed): seed 137; arm lion"


def test_an_answer_names_what_was_dropped_and_keeps_it_out_of_every_number(store: Folder) -> None:
    summary = summarize(analysis.open_store(store).sweep("demo"))
    assert summary.dropped_text == summary.warnings[0] == NAMED
    assert f"warning: {NAMED}\n" in f"{render_summary(summary, 200)}\n"
    assert {run.run_id: run.value for run in summary.dropped} == {
        "adamw-s137-0badcafe": known_runs()[4].val[200],
        "lion-s42-0badcafe": None,
        "muon-s137-0badcafe": known_runs()[1].val[200],
    }
    assert [sorted(arm.values) for arm in summary.arms] == [[42, 256]] * 2
    assert sum(summary.counts.values()) == 4


def test_a_report_names_what_was_dropped_with_its_values(store: Folder, tmp_path: Path) -> None:
    view = analysis.open_store(store).sweep("demo")
    page = write_report(view, tmp_path / "report", FEW).page.read_text()
    assert f"<li>{NAMED}</li>" in page
    assert page.index(NAMED) < page.index("Training curves</h2>")
    # Under fairness in a sentence and the table of what is excluded, and in the table of dropped runs.
    assert page.count("muon-s137-0badcafe") == page.count("lion-s42-0badcafe") == 3
    table, numbers = tmp_path / "report/data/dropped.csv", json.loads((tmp_path / "report/report.json").read_text())
    assert pl.read_csv(table)["run_id"].to_list() == [run["run_id"] for run in numbers["dropped"]]
    assert numbers["dropped"][2]["value"] == known_runs()[1].val[200]
    assert (numbers["dropped_text"], numbers["warnings"][0]) == (NAMED, NAMED)

    again = [{"run_id": r.run_id, "block": "b", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    lion = {"run_id": "lion-s42-0badcafe", "block": "b", "role": "candidate", "arm": "lion"}
    write_sweep(store, "demo", [*again, lion], number=3)
    page = write_report(analysis.open_store(store).sweep("demo"), tmp_path / "report", FEW).page.read_text()
    assert "no longer listed" not in page.lower()
    assert not table.exists()


def test_a_run_that_was_dropped_before_its_end_is_not_named(tmp_path: Path) -> None:
    going = [FakeRun("muon", 7, loss_curve(3.0), "stopped"), FakeRun("muon", 8, {0: 7.0}, None)]
    storage = write_store(tmp_path, [*known_runs(), *going], unstarted=1)
    listed = [{"run_id": r.run_id, "block": "b", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    write_sweep(storage, "demo", listed, number=2)
    assert summarize(analysis.open_store(storage).sweep("demo")).dropped == ()
