"""Gates and noise over training, the costs of arms, and the quick scan of all runs."""

import re
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from support.analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, write_store

from analysis.figures.cost import cost_figures, cost_info
from analysis.figures.runs_grid import PER_ROW, RunsGrid, draw_runs_grid, runs_grid_figures, runs_grid_info
from analysis.figures.timelines import (
    describe_timeline,
    draw_timeline,
    timeline_caption,
    timeline_figures,
    timeline_info,
)
from analysis.store import Store, open_store
from analysis.summary import members_of
from muon_core.store.ledger import Rate, new_entry, write_entry

STEPS = (0, 10, 20)


def view_of(tmp_path: Path, runs: list[FakeRun]) -> Store:
    write_store(tmp_path, runs)
    return open_store(tmp_path).sweep("demo")


def health() -> tuple[pl.LazyFrame, pl.DataFrame]:
    """NOLAH at two seeds: both of two matrices perturbed, then one, then none. Muon has no noise."""
    rows = []
    for run, arm in (("n1", "nolah"), ("n2", "nolah"), ("m1", "muon")):
        for step in STEPS:
            for layer in (0, 1):
                is_open = arm == "nolah" and step <= 10 * (1 - layer)
                noise = (0.1 * (1 + layer) if run == "n1" else 0.3) if is_open else 0.0
                alpha = 0.1 if arm == "nolah" else None
                rows.append((run, step, layer, "q", alpha, float(is_open), noise))
    columns = ["run_id", "step", "layer", "projection", "alpha", "gate_open", "noise_ratio"]
    members = pl.DataFrame(
        {"run_id": ["m1", "n1", "n2"], "arm": ["muon", "nolah", "nolah"], "optimizer": ["muon", "nolah", "nolah"]}
    ).with_columns(seed=pl.Series([1, 1, 2]))
    return pl.LazyFrame(rows, columns, orient="row"), members


def test_a_step_has_the_share_of_matrices_whose_gate_was_open() -> None:
    info = timeline_info(*health(), "gate_open")
    assert info.arms == ("nolah",)  # others have gates that are never open
    assert info.means.select("step", "value", "n").rows() == [(0, 1.0, 2), (10, 0.5, 2), (20, 0.0, 2)]
    assert "nolah: 1 at step 0, 0 at step 20, from 0 to 1 (2 runs)." in describe_timeline(info, "x.csv")
    assert "Share of the hidden matrices" in timeline_caption(info)


def test_the_size_of_noise_is_the_median_over_matrices_with_its_percentiles() -> None:
    info = timeline_info(*health(), "noise_ratio")
    first = info.seeds.filter(run_id="n1", step=0).row(0, named=True)
    assert (first["value"], first["low"], first["high"]) == pytest.approx((0.15, 0.11, 0.19))
    assert info.means.filter(step=0)["value"].item() == pytest.approx((0.15 + 0.3) / 2)
    spec, data = draw_timeline(info)
    assert len(spec["concat"]) == 1
    assert spec["concat"][0]["layer"][0]["data"]["name"] == "means0"
    assert [row["step"] for row in data["means0"]] == list(STEPS)


def test_without_noise_there_is_no_timeline(tmp_path: Path) -> None:
    assert timeline_figures(view_of(tmp_path, known_runs())) == []


def test_costs_are_of_arms_with_what_was_in_vain_and_what_is_planned(tmp_path: Path) -> None:
    """At a dollar a second: muon's done run took 20 + 40 s, 10 s of them again; its other runs are to come."""
    runs = [FakeRun("muon", 1, loss_curve(3.0), role="baseline"), FakeRun("adamw", 1, loss_curve(3.5), "failed")]
    storage = write_store(tmp_path, runs, unstarted=1)
    rate = Rate("big", 3600.0, "a quote", "2026-01-31", gpus=1.0)
    attempts = [("muon", "00001.ab", "lost", 20.0, 0), ("muon", "00002.ab", "done", 40.0, 5)]
    for run, number, status, seconds, first in [*attempts, ("adamw", "00001.ab", "failed", 7.0, 0)]:
        entry = new_entry(f"{run}-s1-0badcafe", number, rate)
        write_entry(storage, replace(entry, status=status, seconds=seconds, first_step=first, step=first + 10))
    view = open_store(tmp_path).sweep("demo")
    info = cost_info(view, members_of(view))
    assert info is not None
    rows = {row["arm"]: row for row in info.arms.iter_rows(named=True)}
    assert info.unit == "usd"
    assert (rows["muon"]["kept"], rows["muon"]["lost"], rows["muon"]["planned"]) == pytest.approx((50.0, 10.0, 50.0))
    assert (rows["adamw"]["kept"], rows["adamw"]["lost"], rows["adamw"]["planned"]) == (0.0, 7.0, None)
    (figure,) = cost_figures(view)
    assert "together 67, 17 of it in vain. muon: 60 USD, 10 in vain, 50 planned; 1 of 1 run done." in figure.description


def test_runs_that_no_ledger_knows_have_no_costs(tmp_path: Path) -> None:
    assert cost_figures(view_of(tmp_path, known_runs())) == []


def grid_of(view: Store) -> RunsGrid:
    return runs_grid_info(view.val, members_of(view), "val_loss")


def test_every_run_has_a_panel_also_one_without_rows(tmp_path: Path) -> None:
    view = view_of(tmp_path, demo_runs())
    info = grid_of(view)
    _, data = draw_runs_grid(info)
    assert len(data["frames"]) == info.runs.height == 12
    assert [row["text"] for row in data["names"] if "failed" in row["text"]] == ["seed 256, failed"]
    assert {row["text"] for row in data["names"]} >= {"muon", "adamw", "orthonoise", "isotropic", "seed 137, diverged"}
    (figure,) = runs_grid_figures(view)
    assert "one for each of 12 runs: 10 done, 1 diverged, 1 failed." in figure.description
    ends = re.findall(r"(\d\.\d{4}) \((\w+), seed (\d+)", figure.description)
    known = info.runs.drop_nulls("last").sort("last")
    assert [(float(value), arm) for value, arm, _ in ends] == [
        (round(row["last"], 4), row["arm"]) for row in (known.row(0, named=True), known.row(-1, named=True))
    ]


def test_a_point_lies_where_its_value_is_on_the_scale_of_all(tmp_path: Path) -> None:
    info = grid_of(view_of(tmp_path, demo_runs()))
    _, data = draw_runs_grid(info)
    lowest = info.runs.drop_nulls("last").sort("last")["run_id"][0]
    end = next(row for row in data["ends"] if row["run_id"] == lowest)
    assert (end["x"], end["y"]) in {(row["x2"], row["y"]) for row in data["frames"]}  # at the foot of its panel
    highest = next(row for row in data["lines"] if row["run_id"] == lowest)
    assert end["y"] - highest["y"] == 46  # the first loss is beyond the scale, and lies on its edge


def test_two_hundred_runs_are_rows_of_panels_that_do_not_touch() -> None:
    rows = [
        {
            "run_id": f"r{i}",
            "arm": f"arm{i // 5} with a long name",
            "optimizer": "muon",
            "seed": i % 5,
            "status": "done",
        }
        for i in range(200)
    ]
    losses = [{"run_id": f"r{i}", "step": s, "tokens": s, "val_loss": 4 - s / 9} for i in range(200) for s in (0, 9)]
    series = pl.LazyFrame(losses)
    info = runs_grid_info(series, pl.DataFrame(rows), "val_loss")
    spec, data = draw_runs_grid(info)
    assert len(data["frames"]) == 200
    assert len({row["y"] for row in data["frames"]}) == 200 // PER_ROW
    assert all(a["x2"] < b["x"] for a, b in zip(data["frames"], data["frames"][1:], strict=False) if a["y"] == b["y"])
    assert spec["height"] < 2400


def test_nothing_measured_gives_no_scan(tmp_path: Path) -> None:
    assert runs_grid_figures(view_of(tmp_path, [FakeRun("muon", 1, {}, "failed", with_layers=False)])) == []
