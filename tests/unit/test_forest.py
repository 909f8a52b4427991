"""Forest plots: what they hold, how arms are grouped, and that every number told is one of the summary's."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, write_store

from analysis.figures.effects import Effects, axis_around_zero, effects_of, scale_groups
from analysis.figures.forest import draw_forest, drawn_margins, forest_caption, forest_figures, why_no_forest
from analysis.store import Store, open_store
from analysis.summary import summarize


def view_of(tmp_path: Path, runs: list[FakeRun], **spec: Any) -> Store:
    write_store(tmp_path, runs, spec={"version": 1, "name": "demo"} | spec)
    return open_store(tmp_path).sweep("demo")


def effects(view: Store) -> Effects:
    found = effects_of(summarize(view))
    assert found is not None
    return found


def gate(kind: str, size: float | str, **more: str) -> dict[str, Any]:
    field = "min_effect" if kind == "superior" else "margin"
    return {"name": kind, "kind": kind, "of": "*", field: size} | more


def test_the_rows_of_a_forest_are_the_comparisons_of_the_summary(tmp_path: Path) -> None:
    view = view_of(tmp_path, demo_runs())
    summary, found = summarize(view), effects(view)
    rows = {row["arm"]: row for row in found.arms.iter_rows(named=True)}
    assert list(rows) == ["adamw", "orthonoise", "isotropic"]
    for arm in summary.arms[1:]:
        assert arm.comparison is not None
        row = rows[arm.arm]
        assert (row["difference"], row["n"], row["verdict"]) == (
            arm.comparison.difference,
            arm.comparison.n,
            arm.verdict,
        )
        assert (row["low"], row["high"]) == (arm.comparison.difference_interval or (None, None))
    dots = found.seeds.filter(pl.col("arm") == "adamw")
    assert dict(dots.select("seed", "difference").iter_rows()) == pytest.approx({42: 0.14, 137: 0.11, 256: 0.16})


def test_arms_of_unlike_reach_get_axes_of_their_own() -> None:
    assert scale_groups({"noise": 0.002, "adamw": 0.14, "damped": 0.001}) == [["adamw"], ["noise", "damped"]]
    assert scale_groups({"a": 0.0, "b": 1.0}) == [["a", "b"]]
    assert scale_groups({"a": 0.0}) == [["a"]]
    assert len(scale_groups({str(i): 10.0**-i for i in range(9)})) == 3


def test_a_far_margin_does_not_flatten_what_is_measured() -> None:
    low, high = axis_around_zero([-0.01, 0.01], [0.02, 0.5])
    assert (low, high) == pytest.approx((-0.0118, 0.0218))
    assert axis_around_zero([None, float("nan")])[0] < 0 < axis_around_zero([])[1]


def test_the_margins_of_gates_are_edges_in_the_unit_of_the_metric(tmp_path: Path) -> None:
    gates = [gate("non_inferior", "1%"), gate("equivalent", 0.2), gate("superior", 0.05, vs="block:noise")]
    found = effects(view_of(tmp_path, demo_runs(), gates=gates))
    margins = {(row["gate"], row["arm"]): row["margin"] for row in found.margins.iter_rows(named=True)}
    base = (3.899 + 3.921 + 3.880) / 3
    assert margins["non_inferior", "adamw"] == pytest.approx(0.01 * base)
    assert found.margins.filter(gate="equivalent", arm="adamw")["margin"].to_list() == [-0.2, 0.2]
    assert "superior" not in found.margins["gate"].to_list()  # it compares with another arm than the baseline
    assert drawn_margins(found, ["adamw"]).filter(gate="equivalent")["margin"].to_list() == [0.2]
    text = forest_caption(found)
    assert "non_inferior at +0.0390" in text
    assert "Margins beyond the axis: " in text


def test_a_description_has_every_arm_with_the_numbers_of_its_row(tmp_path: Path) -> None:
    (figure,) = forest_figures(view_of(tmp_path, demo_runs()))
    table = figure.tables["data/forest.csv"]
    for row in table.iter_rows(named=True):
        (told,) = re.findall(rf"{row['arm']}: ([^.]*\.[\d. \[\]to+−-]*)", figure.description)
        numbers = [float(text.replace("−", "-")) for text in re.findall(r"[+−]\d+\.\d+", told)]
        assert numbers == [round(row[name], 4) for name in ("difference", "low", "high") if row[name] is not None]
    assert figure.file == "data/forest.csv"
    assert "isotropic: +0.0060, one pair, not resolved." in figure.description


def test_one_seed_is_a_dot_without_an_interval(tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, loss_curve(3.0), role="baseline"), FakeRun("adamw", 1, loss_curve(3.5))]
    found = effects(view_of(tmp_path, runs))
    assert found.arms.select("n", "low", "high").rows() == [(1, None, None)]
    (figure,) = forest_figures(view_of(tmp_path, runs))
    assert "adamw: +0.5000, one pair" in figure.description
    colour = found.styles["adamw"].colour
    assert figure.svg.count(f'stroke="{colour}"') == 1  # the circle
    assert f'fill="{colour}"' not in figure.svg  # no diamond


def test_runs_without_seeds_have_a_dot_each(tmp_path: Path) -> None:
    runs = known_runs()
    for run in runs:
        run.facts["seed"] = None
    found = effects(view_of(tmp_path, runs))
    assert found.seeds.height == 3
    assert found.seeds["seed"].null_count() == 3
    assert found.seeds["difference"].mean() == pytest.approx(found.arms["difference"].item())


def test_without_a_baseline_or_a_pair_there_is_no_forest_and_a_reason(tmp_path: Path) -> None:
    alone = view_of(tmp_path / "a", [FakeRun("adamw", 1, loss_curve(3.5))])
    apart = view_of(tmp_path / "b", [FakeRun("muon", 1, loss_curve(3), role="baseline"), FakeRun("adamw", 2, {0: 3.5})])
    for view, reason in ((alone, "No arm has the role baseline"), (apart, "No arm has finished a seed that muon has")):
        assert forest_figures(view) == []
        assert why_no_forest(summarize(view)).startswith(reason)


def test_invalid_arms_are_drawn_and_called_so(tmp_path: Path) -> None:
    runs = known_runs()
    for run in runs:
        run.facts["init_hash"] = "one"
    found = effects(view_of(tmp_path, runs))
    assert found.arms["verdict"].to_list() == ["invalid"]
    assert found.seeds.height == 3


def test_thirty_arms_have_a_row_each(tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, loss_curve(3.0), role="baseline")]
    runs += [FakeRun(f"arm{i}", 1, loss_curve(3.0 + i / 100)) for i in range(30)]
    found = effects(view_of(tmp_path, runs))
    spec, _ = draw_forest(found)
    drawn = [arm for panel in spec["vconcat"] for arm in panel["layer"][1]["encoding"]["y"]["sort"]]
    assert sorted(drawn) == sorted(f"arm{i}" for i in range(30))
