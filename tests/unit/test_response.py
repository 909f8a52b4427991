"""Responses to what a sweep varied: rows along a setting, bests at the edge of the grid, numbers of the summary."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.analysis_fixtures import FakeRun, demo_runs, loss_curve, write_store

from analysis.figures.effects import effects_of
from analysis.figures.response import Response, best, response_figures, responses, why_no_response
from analysis.figures.settings import axis_rows
from analysis.store import Store, open_store
from analysis.summary import members_of, summarize

SEEDS = (1, 2, 3)


def arm(name: str, effect: float, block: str = "noise", **facts: Any) -> list[FakeRun]:
    """Runs of an arm at three seeds, so much above the baseline's loss."""
    runs = []
    for seed in SEEDS:
        run = FakeRun("orthonoise", seed, loss_curve(3 + seed / 10 + effect), block=block, facts={"arm": name} | facts)
        run.__class__ = type("Named", (FakeRun,), {"run_id": f"{name}-s{seed}-0badcafe"})
        runs.append(run)
    return runs


def grid() -> list[FakeRun]:
    """Two annealings by three alphas: with none the best is the largest alpha, with linear the middle one."""
    effects = {("none", 0.01): 0.02, ("none", 0.1): 0.01, ("none", 1.0): -0.01}
    effects |= {("linear", 0.01): 0.01, ("linear", 0.1): -0.02, ("linear", 1.0): 0.03}
    runs = [FakeRun("muon", seed, loss_curve(3 + seed / 10), role="baseline", block="base") for seed in SEEDS]
    for (anneal, alpha), effect in effects.items():
        runs += arm(f"{anneal}-{alpha}", effect, alpha=alpha, anneal=anneal)
    return runs


def view_of(tmp_path: Path, runs: list[FakeRun], blocks: list[dict[str, Any]] | None = None) -> Store:
    write_store(tmp_path, runs, spec={"version": 1, "name": "demo", "blocks": blocks or []})
    return open_store(tmp_path).sweep("demo")


def infos(view: Store) -> list[Response]:
    effects = effects_of(summarize(view))
    assert effects is not None
    assert view.record is not None
    return responses(effects, axis_rows(members_of(view), view.record.spec))


def test_a_panel_is_a_row_of_arms_that_differ_in_the_setting_alone(tmp_path: Path) -> None:
    (info,) = infos(view_of(tmp_path, grid()))
    assert (info.axis, info.is_log) == ("alpha", True)
    assert [row.name for row in info.rows] == ["noise, anneal = none", "noise, anneal = linear"]
    assert [row.values for row in info.rows] == [(0.01, 0.1, 1.0)] * 2
    assert info.points["difference"].to_list() == pytest.approx([0.02, 0.01, -0.01, 0.01, -0.02, 0.03])
    assert info.seeds.height == 6 * len(SEEDS)


def test_a_best_at_the_edge_of_the_grid_is_told(tmp_path: Path) -> None:
    view = view_of(tmp_path, grid())
    (info,) = infos(view)
    assert best(info, "noise, anneal = none") == ("none-1.0", 1.0, "largest")
    assert best(info, "noise, anneal = linear") == ("linear-0.1", 0.1, None)
    (figure,) = response_figures(view)
    edge = "Edge of the grid: noise, anneal = none is best at alpha = 1, the largest tried"
    assert edge in figure.caption
    assert edge in figure.description
    assert "anneal = linear is best" not in figure.caption
    told = re.findall(r"means ([+−][\d.]+) to ([+−][\d.]+), best at ([\d.]+)", figure.description)
    assert told == [("−0.0100", "+0.0200", "1"), ("−0.0200", "+0.0300", "0.1")]
    assert figure.svg.count("noise, anneal = ") >= 2


def test_settings_varied_together_are_a_row_along_each(tmp_path: Path) -> None:
    runs = [FakeRun("muon", seed, loss_curve(3 + seed / 10), role="baseline", block="base") for seed in SEEDS]
    for lr, alpha in ((0.01, 0.1), (0.02, 0.2)):
        runs += arm(f"a{alpha}", alpha / 10, lr=lr, alpha=alpha)
    zipped = {"name": "noise", "zip": {"lr": [0.01, 0.02], "alpha": [0.1, 0.2]}}
    assert [info.axis for info in infos(view_of(tmp_path / "zip", runs, [zipped]))] == ["alpha", "lr"]
    assert infos(view_of(tmp_path / "grid", runs)) == []  # as a grid, no two arms differ in one alone


def test_a_setting_without_a_column_is_read_from_the_config(tmp_path: Path) -> None:
    runs = [FakeRun("muon", seed, loss_curve(3 + seed / 10), role="baseline", block="base") for seed in SEEDS]
    for momentum, depth in ((0.9, 2), (0.9, 4), (0.95, 2)):
        config = json.dumps({"model": {"num_layers": depth}, "optimizer": {"momentum": momentum}})
        runs += arm(f"m{momentum}-d{depth}", momentum / 100, config_json=config)
    block = {"name": "noise", "grid": {"momentum": [0.9, 0.95], "model.num_layers": [2, 4]}}
    found = infos(view_of(tmp_path, runs, [block]))
    assert [(info.axis, [row.name for row in info.rows]) for info in found] == [
        ("momentum", ["noise, model.num_layers = 2"]),
        ("model.num_layers", ["noise, momentum = 0.9"]),
    ]


def test_without_a_varied_number_or_a_baseline_there_is_no_response_and_a_reason(tmp_path: Path) -> None:
    plain = view_of(tmp_path / "a", demo_runs())
    alone = view_of(tmp_path / "b", arm("a", 0.1, alpha=0.1) + arm("b", 0.2, alpha=0.2))
    assert response_figures(plain) == response_figures(alone) == []
    assert why_no_response(summarize(plain)).startswith("No number varies within a block")
    assert why_no_response(summarize(alone)).startswith("No arm has a difference to a baseline yet")
