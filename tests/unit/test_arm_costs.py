"""What each arm took: planned, spent and lost; and how fast its steps were."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from support.analysis_fixtures import FakeRun, known_runs, loss_curve, put_final, write_attempt, write_store

from analysis.arm_costs import SHARES, arm_costs, arm_speeds, cost_sentences
from analysis.costs import total
from analysis.report.build import write_report
from analysis.report.tables import speeds_table
from analysis.store import Store, open_store
from analysis.summary import members_of
from analysis.verdicts import DASH
from muon_core.store.folder import Folder
from muon_core.store.ledger import Rate, new_entry, write_entry
from muon_core.tables import TRAIN

DOLLAR_A_SECOND = Rate("big", 3600.0, "a quote", "2026-01-31", gpus=2.0)


def view_of(storage: Folder) -> Store:
    return open_store(storage).sweep("demo")


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    """Two done runs of muon, 100 s each and one of them after 50 s lost; one of adamw without a price, one planned."""
    runs = [
        FakeRun("muon", 1, loss_curve(3.0)),
        FakeRun("muon", 2, loss_curve(3.0)),
        FakeRun("adamw", 1, loss_curve(3.0)),
    ]
    for run in runs:
        run.with_layers = False
    storage = write_store(tmp_path, runs, unstarted=1)
    muon, second, adamw = (run.run_id for run in runs)
    lost = replace(new_entry(muon, "00001.aa", DOLLAR_A_SECOND), status="failed", first_step=0, step=5, seconds=50.0)
    again = replace(new_entry(muon, "00002.bb", DOLLAR_A_SECOND), status="done", first_step=0, step=20, seconds=100.0)
    other = replace(new_entry(second, "00001.cc", DOLLAR_A_SECOND), status="done", first_step=0, step=20, seconds=100.0)
    unpriced = replace(new_entry(adamw, "00001.dd", Rate("huge", None)), status="done", step=5, seconds=3600.0)
    for entry in (lost, again, other, unpriced):
        write_entry(storage, entry)
    return storage


def test_an_arm_has_what_it_spent_what_was_lost_and_what_its_runs_take_if_none_dies(store: Folder) -> None:
    muon, adamw = arm_costs(view_of(store), members_of(view_of(store))).rows(named=True)
    assert (muon["arm"], muon["runs"], muon["done"], muon["attempts"], muon["deaths"]) == ("muon", 2, 2, 3, 1)
    assert (muon["usd"], muon["lost_usd"], muon["planned_usd"]) == pytest.approx((250.0, 50.0, 200.0))
    assert muon["gpu_hours"] == pytest.approx(500 / 3600)
    assert muon["planned_hours"] == pytest.approx(200 / 3600)
    assert (adamw["runs"], adamw["done"], adamw["usd"], adamw["planned_usd"]) == (2, 1, None, None)
    assert adamw["planned_hours"] == pytest.approx(2.0)


def test_the_sentences_tell_it(store: Folder) -> None:
    view = view_of(store)
    first, muon, adamw = cost_sentences(arm_costs(view, members_of(view)), total(view), 500)
    assert first == (
        "Spent 1.07 h, 0.139 GPU hours and dollars unknown of a budget of 500 USD in 4 attempts; 0.0139 h and dollars "
        "unknown of it in vain."
    )
    assert muon == (
        "muon: 0.0694 h and 250 USD for 2 of 2 runs; 0.0556 h and 200 USD if none dies; 1 attempt died, 0.0139 h and "
        "50 USD in vain."
    )
    assert adamw == "adamw: 1 h and dollars unknown for 1 of 2 runs; 2 h and dollars unknown if none dies."


def test_without_a_ledger_nothing_is_known(tmp_path: Path) -> None:
    view = view_of(write_store(tmp_path, known_runs()))
    costs = arm_costs(view, members_of(view))
    assert costs.select("arm", "attempts", "usd", "planned_hours").rows() == [
        ("muon", 0, None, None),
        ("adamw", 0, None, None),
    ]
    assert cost_sentences(costs, total(view)) == [
        "The ledger has no attempt of these runs, so it is not known what they took."
    ]


def test_speeds_are_of_the_runs_that_are_done(tmp_path: Path) -> None:
    runs = [
        FakeRun(
            "muon", seed, loss_curve(3.0), with_layers=False, facts={"peak_memory_bytes": 100 * seed, "device": "H100"}
        )
        for seed in (1, 2)
    ]
    runs.append(FakeRun("muon", 3, loss_curve(3.0), "failed", with_layers=False, facts={"peak_memory_bytes": 10**9}))
    storage = write_store(tmp_path, [*runs, FakeRun("adamw", 1, {}, "failed", with_layers=False)])
    for run, seconds in zip(runs, (0.2, 0.4, 9.0), strict=True):
        rows = [
            {
                "run_id": run.run_id,
                "attempt": 1,
                "seq": i,
                "step": i,
                "tokens": i,
                "step_time_s": time,
                "tokens_per_s": 10,
            }
            for i, time in enumerate((60.0, seconds, seconds))  # the first step compiles
        ]
        put_final(storage, TRAIN, write_attempt(storage, run), len(rows), rows)
    view = view_of(storage)
    muon, adamw = arm_speeds(view, members_of(view)).rows(named=True)
    assert (muon["runs"], muon["peak_memory_bytes"], muon["device"], muon["wall_s"]) == (2, 200, "H100", 20.0)
    assert (muon["step_time_s"], muon["step_time_low"], muon["step_time_high"]) == pytest.approx((0.3, 0.2, 0.4))
    assert (adamw["arm"], adamw["runs"], adamw["step_time_s"], adamw["device"]) == ("adamw", 0, None, None)


def throughput_store(folder: Path) -> Folder:
    """Two done runs of muon on a GPU, whose train rows have MFU, and one of adamw as a release before had them."""
    seconds = {"data_s": 1.0, "optimizer_s": 4.0, "tracking_s": 2.0, "evaluation_s": 0.5}  # of 20 s
    runs = [
        FakeRun("muon", 1, loss_curve(3.0), with_layers=False, facts=seconds | {"peak_memory_bytes": 3 * 10**9}),
        FakeRun("muon", 2, loss_curve(3.0), with_layers=False, facts=seconds | {"optimizer_s": 6.0, "mfu": 0.9}),
        FakeRun("adamw", 1, loss_curve(3.0), with_layers=False),
    ]
    storage = write_store(folder, runs)
    for run, mfus in zip(runs, ((0.1, 0.4, 0.4), (0.1, 0.5, 0.5), (None,) * 3), strict=True):
        rows = [
            {"run_id": run.run_id, "attempt": 1, "seq": i, "step": i, "tokens": i, "tokens_per_s": 12340, "mfu": mfu}
            for i, mfu in enumerate(mfus)
        ]
        put_final(storage, TRAIN, write_attempt(storage, run), len(rows), rows)
    return storage


def test_throughput_is_of_the_median_step_and_shares_are_of_the_wall_time(tmp_path: Path) -> None:
    view = view_of(throughput_store(tmp_path))
    muon, adamw = arm_speeds(view, members_of(view)).rows(named=True)
    assert (muon["tokens_per_s"], muon["mfu"]) == pytest.approx((12340.0, 0.45))
    assert [muon[f"{part}_share"] for part in SHARES] == pytest.approx([0.05, 0.25, 0.1, 0.025])
    assert muon["peak_memory_bytes"] == 3 * 10**9  # the other run does not know
    assert adamw["tokens_per_s"] == 12340.0
    assert [adamw[name] for name in ("mfu", *(f"{part}_share" for part in SHARES))] == [None] * 5


def test_the_page_its_csv_and_its_json_have_the_throughput_of_the_frame(tmp_path: Path) -> None:
    view = view_of(throughput_store(tmp_path / "store"))
    speeds = arm_speeds(view, members_of(view))
    page = write_report(view, tmp_path / "report").page
    (first, second) = speeds_table(speeds).rows
    names = [name for name, _ in speeds_table(speeds).columns]
    told = dict(zip(names, first, strict=True))
    shown = [told[name] for name in ("tokens/s", "MFU", *SHARES, "peak memory, GB")]
    assert shown == ["12,340", "45.0 %", "5.0 %", "25.0 %", "10.0 %", "2.5 %", "3.00"]
    assert dict(zip(names, second, strict=True))["MFU"] == DASH
    text = page.read_text(encoding="utf-8")
    assert all(f">{cell}<" in text for cell in shown)
    assert "Model FLOPs utilisation" in text
    assert json.loads((page.parent / "report.json").read_text())["speeds"] == speeds.to_dicts()
    written = pl.read_csv(page.parent / "data" / "speeds.csv", schema_overrides=speeds.schema)
    assert_frame_equal(written, speeds)


def test_speeds_that_were_not_measured_are_null(tmp_path: Path) -> None:
    view = view_of(
        write_store(tmp_path, [FakeRun("muon", 1, loss_curve(3.0), with_layers=False, facts={"device": None})])
    )
    (muon,) = arm_speeds(view, members_of(view)).rows(named=True)
    unknown = ("step_time_s", "tokens_per_s", "mfu", "data_share", "evaluation_share", "peak_memory_bytes", "device")
    assert [muon[name] for name in unknown] == [None] * len(unknown)
