"""Curves over wall time, rows of arms by reach, margins, and what is drawn of long ones."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.analysis_fixtures import FakeRun, demo_runs, loss_curve, write_store

from analysis.figures.curves import MAX_POINTS, Curves, axis_range, curves_info, difference_info, rows_of_arms
from analysis.figures.describe import curves_caption, describe_curves
from analysis.figures.draw_curves import draw_curves, time_unit
from analysis.figures.training_curves import curve_figures, why_no_curves
from analysis.store import Store, open_store
from analysis.summary import members_of


def view_of(tmp_path: Path, runs: list[FakeRun], **spec: Any) -> Store:
    write_store(tmp_path, runs, spec={"version": 1, "name": "demo"} | spec)
    return open_store(tmp_path).sweep("demo")


def timed(pace: dict[str, float], steps: range) -> tuple[pl.LazyFrame, pl.DataFrame]:
    """Runs by name that take so many seconds a step, in one arm each, `muon1` and `muon2` in one."""
    rows = [
        {"run_id": run, "step": step, "tokens": step * 2048, "elapsed_s": step * seconds, "val_loss": 4 - step / 1000}
        for run, seconds in pace.items()
        for step in steps
    ]
    members = [
        {"run_id": run, "arm": run.rstrip("12"), "optimizer": run.rstrip("12"), "seed": i, "status": "done"}
        for i, run in enumerate(pace)
    ]
    return pl.LazyFrame(rows), pl.DataFrame(members)


def timed_info(pace: dict[str, float], steps: range = range(0, 101, 10)) -> Curves:
    series, members = timed(pace, steps)
    return curves_info(series, members, "val_loss", "muon", "elapsed_s")


def test_over_wall_time_a_mean_is_at_the_mean_of_its_seeds_times() -> None:
    info = timed_info({"muon1": 1.0, "muon2": 3.0, "adamw": 5.0})
    last = {row["arm"]: row for row in info.means.filter(step=100).iter_rows(named=True)}
    assert (last["muon"]["elapsed_s"], last["adamw"]["elapsed_s"]) == (200.0, 500.0)
    assert "against wall time, 0 to 500 s;" in describe_curves(info, "x.csv")
    assert "over wall time" in curves_caption(info)


@pytest.mark.parametrize(("pace", "unit"), [(1.0, "seconds"), (10.0, "minutes"), (1000.0, "hours")])
def test_wall_time_is_in_the_unit_that_fits(pace: float, unit: str) -> None:
    info = timed_info({"adamw": pace})
    assert time_unit(info)[0] == unit
    _, data = draw_curves(info)
    assert data["means"][-1]["x"] * time_unit(info)[1] == pytest.approx(100 * pace)


def test_long_curves_are_thinned_to_what_a_panel_can_show_and_keep_their_ends() -> None:
    info = timed_info({"muon1": 1.0, "muon2": 1.0}, range(3 * MAX_POINTS + 2))
    assert info.stride == 4
    _, data = draw_curves(info)
    assert len(data["means"]) <= MAX_POINTS
    assert max(row["x"] for row in data["means"]) * time_unit(info)[1] == pytest.approx(3 * MAX_POINTS + 1)
    assert "One step in 4 is drawn." in curves_caption(info)
    assert info.seeds.height == 2 * (3 * MAX_POINTS + 2)  # the data have them all


def test_an_arm_of_one_run_is_drawn_once_dashed_and_thinner_than_a_mean() -> None:
    info = timed_info({"muon": 1.0})
    spec, data = draw_curves(info)
    assert data["seeds"] == []
    single = spec["vconcat"][0]["hconcat"][0]["layer"][2]
    assert single["mark"]["strokeWidth"] < 2.5
    assert single["encoding"]["strokeDash"]["scale"]["range"] == [[4, 2]]


def test_arms_near_the_baseline_are_not_flattened_by_one_that_is_far(tmp_path: Path) -> None:
    view = view_of(tmp_path, demo_runs())
    for make in (curves_info, difference_info):
        info = make(view.val, members_of(view), "val_loss", "muon")
        base = [] if info.is_difference else ["muon"]
        assert rows_of_arms(info) == [[*base, "adamw"], [*base, "orthonoise", "isotropic"]]
    low, high = axis_range(info, 0.0, ["orthonoise", "isotropic"])
    assert high - low < 0.05 < 0.2 < axis_range(info, 0.0, ["adamw"])[1]
    assert "Each row of panels has a scale of its own." in curves_caption(info)


def test_margins_are_drawn_where_they_are_near_and_named(tmp_path: Path) -> None:
    gates = [
        {"name": "near", "kind": "non_inferior", "of": "*", "margin": 0.02},
        {"name": "far", "kind": "non_inferior", "of": "*", "margin": 9.0},
    ]
    figures = {figure.name: figure for figure in curve_figures(view_of(tmp_path, demo_runs(), gates=gates))}
    assert list(figures) == ["val_loss", "val_accuracy", "val_loss_difference"]  # these runs did not tell the time
    assert "margins of gates: near at +0.0200." in figures["val_loss_difference"].caption
    assert "margins" not in figures["val_loss"].caption


def test_without_a_finite_value_there_is_no_figure_and_a_reason(tmp_path: Path) -> None:
    nothing = view_of(tmp_path / "a", [FakeRun("muon", 1, {}, "failed", "baseline", with_layers=False)])
    broken = view_of(tmp_path / "b", [FakeRun("muon", 1, {0: float("nan")}, "diverged", "baseline")])
    assert curve_figures(nothing) == curve_figures(broken) == []
    assert why_no_curves(nothing, "val_loss") == "No run has been evaluated yet."
    assert why_no_curves(broken, "val_loss") == "val_loss was measured 1 times, with no finite value."


def test_the_late_panel_of_a_row_whose_arms_never_get_there_has_an_axis(tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, loss_curve(3.0), role="baseline"), FakeRun("adamw", 1, {0: 7.0, 20: 6.0}, "failed")]
    view = view_of(tmp_path, runs)
    info = difference_info(view.val, members_of(view), "val_loss", "muon")
    assert axis_range(info, 200 * 2048, ["adamw"])[0] < 0
    info = curves_info(view.val, members_of(view), "val_loss", None)
    assert axis_range(info, 200 * 2048, ["adamw"]) == axis_range(info, 0.0, ["adamw"])
