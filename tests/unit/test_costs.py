"""`muon cost`: hours, GPU hours and USD of attempts, and what of them was in vain."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.costs import costs, total
from analysis.store import open_store
from muon_core.store.folder import Folder
from muon_core.store.ledger import Rate, new_entry, write_entry
from muon_core.store.sweeps import SweepRecord, SweepRun, write_sweep
from muon_core.store.writer import RunWriter
from ray_jobs.cli.main import main

DOLLAR_A_SECOND = Rate("big", 3600.0, "a quote", "2026-01-31", gpus=2.0)


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    """Run a in two blocks: 10 steps, of which 4 were done again, then to its end. Run b failed, c has no price."""
    storage = Folder(tmp_path)
    for run, optimizer in (("a", "muon"), ("b", "adamw"), ("c", "adamw")):
        RunWriter(storage, run, {"optimizer": optimizer}).end(status="done")
    first = replace(new_entry("a", "00001.aa", DOLLAR_A_SECOND), status="lost", first_step=0, step=10, seconds=100.0)
    second = replace(new_entry("a", "00002.bb", DOLLAR_A_SECOND), status="done", first_step=6, step=20, seconds=140.0)
    failed = replace(new_entry("b", "00001.cc", DOLLAR_A_SECOND), status="failed", first_step=0, step=2, seconds=30.0)
    unpriced = replace(new_entry("c", "00001.dd", Rate("huge", None)), status="done", step=5, seconds=3600.0)
    for entry in (first, second, failed, unpriced):
        write_entry(storage, entry)
    runs = [SweepRun(run_id="a", block=block, role="candidate", arm="muon", seed=1) for block in ("x", "y")]
    runs.append(SweepRun(run_id="b", block="z", role="baseline", arm="adamw", seed=1))
    write_sweep(storage, SweepRecord(sweep="s", runs=tuple(runs)))
    return storage


def test_costs_are_summed_and_steps_that_were_done_again_are_in_vain(store: Folder) -> None:
    by_run = {row["run"]: row for row in costs(open_store(store), "run").iter_rows(named=True)}
    assert by_run["a"]["usd"] == pytest.approx(240.0)
    assert by_run["a"]["gpu_hours"] == pytest.approx(480 / 3600)
    assert by_run["a"]["lost_usd"] == pytest.approx(40.0)  # 4 of the 10 steps of 100 s
    assert by_run["b"]["lost_usd"] == pytest.approx(30.0)
    assert by_run["c"]["usd"] is None
    assert by_run["c"]["hours"] == pytest.approx(1.0)


def test_an_attempt_that_was_lost_before_its_first_step_was_all_in_vain(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    RunWriter(storage, "a", {"optimizer": "muon"}).end(status="done")
    lost = replace(new_entry("a", "00001.aa", DOLLAR_A_SECOND), status="lost", seconds=15.0)
    again = replace(new_entry("a", "00002.bb", DOLLAR_A_SECOND), status="done", first_step=0, step=20, seconds=40.0)
    for entry in (lost, again):
        write_entry(storage, entry)
    assert total(open_store(storage)).to_dicts()[0]["lost_usd"] == pytest.approx(15.0)


def test_a_run_of_two_blocks_counts_in_each_and_once_in_all(store: Folder) -> None:
    view = open_store(store).sweep("s")
    by_block = {row["block"]: row["usd"] for row in costs(view, "block").iter_rows(named=True)}
    assert by_block == {"x": pytest.approx(240.0), "y": pytest.approx(240.0), "z": pytest.approx(30.0)}
    assert total(view).to_dicts()[0]["usd"] == pytest.approx(270.0)
    assert total(open_store(store)).to_dicts()[0]["usd"] is None  # c has no price


def test_the_command_shows_it_and_where_prices_are_from(
    store: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUON_STORE", store.url)
    with pytest.raises(SystemExit) as ended:
        main(["cost", "s", "--by", "optimizer"])
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert "together 0.075 h, 0.15 GPU hours, 270 USD; 0.0194 h of it in vain" in shown.out
    assert "price: a quote (2026-01-31)" in shown.err
    with pytest.raises(SystemExit):
        main(["cost", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert {row["optimizer"] for row in answer["rows"]} == {"muon", "adamw"}
    assert answer["total"]["usd"] is None
