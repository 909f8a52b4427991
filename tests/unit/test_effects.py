"""Main effects along the axes of a block: matched cells, one error, Holm over levels."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.analysis_fixtures import FEW, FakeRun, loss_curve, write_store
from test_names import trained

from analysis.effect_texts import brief_effects, effect_line, effects_frame
from analysis.report.build import write_report
from analysis.store import open_store
from analysis.summary import Summary, summarize
from muon_core.store.sweeps import write_sweep
from ray_jobs.cli.answer_text import render_summary
from ray_jobs.sweep_plan import sweep_record
from search_spaces.plan import plan
from search_spaces.spec import parse_spec

SEEDS = (1, 2, 3)
Cells = list[dict[str, Any]]
BASE = dict(zip(SEEDS, (3.90, 3.92, 3.88), strict=True))


def grid(**axes: list[Any]) -> Cells:
    cells: Cells = [{}]
    for name, values in axes.items():
        cells = [cell | {name: value} for cell in cells for value in values]
    return cells


def sweep(folder: Path, cells: Cells, losses: dict[int, list[float]] | None = None) -> Summary:
    """Muon is the baseline; cell i of block `noise` is 0.01 i above it, or has `losses[i]`, with a little noise."""
    rng = np.random.default_rng(5)
    runs = [FakeRun("muon", s, loss_curve(loss), role="baseline", block="base") for s, loss in BASE.items()]
    for index, cell in enumerate(cells):
        for place, (seed, base) in enumerate(BASE.items()):
            loss = losses[index][place] if losses else base + 0.01 * index + rng.normal(0, 0.001)
            facts = {"arm": f"cell{index}", "config_json": json.dumps({"seed": seed, "optimizer": cell})}
            runs.append(FakeRun(f"o{index}", seed, loss_curve(loss), block="noise", facts=facts))
    return summarize(open_store(write_store(folder, runs)).sweep("demo"))


def test_a_level_is_compared_over_the_cells_that_are_alike_otherwise(tmp_path: Path) -> None:
    """Alpha 2 x annealing 2, complete: the textbook contrast of four cells at three seeds."""
    summary = sweep(tmp_path, grid(alpha=[0.1, 0.01], anneal=["none", "exponential"]))
    alpha, anneal = summary.effects
    assert (alpha.axis, alpha.level, alpha.against) == ("alpha", "0.1", "0.01")  # numbers in their own order
    assert (anneal.axis, anneal.level, anneal.against) == ("anneal", "exponential", "none")  # words in the file's
    y = np.array([[arm.values[seed] for seed in SEEDS] for arm in summary.arms if arm.block == "noise"])
    rest = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    error, df = math.sqrt((rest**2).sum() / 6 / 3), 6
    for effect, expected in (
        (alpha, y[:2].mean() - y[2:].mean()),
        (anneal, y[[1, 3]].mean() - y[[0, 2]].mean()),
    ):
        assert (effect.seeds, effect.cells, effect.df, effect.tests) == (3, 2, df, 1)
        assert effect.difference == pytest.approx(expected)
        half = stats.t.ppf(0.975, df) * error
        assert effect.difference_interval == pytest.approx((expected - half, expected + half))
        assert effect.p_value == pytest.approx(2 * stats.t.sf(abs(expected) / error, df))
    assert alpha.percent == pytest.approx(100 * alpha.difference / y[2:].mean())


def test_p_is_adjusted_for_the_levels_of_an_axis(tmp_path: Path) -> None:
    effects = sweep(tmp_path, grid(rank_threshold=[0.3, 0.5, 0.7])).effects
    assert [(e.level, e.against, e.tests, e.cells) for e in effects] == [("0.5", "0.3", 2, 1), ("0.7", "0.3", 2, 1)]
    assert max(e.adjusted_p / e.p_value for e in effects) == pytest.approx(2)


def test_a_cell_that_was_skipped_or_lost_a_seed_takes_its_counterpart_along(tmp_path: Path) -> None:
    """Without the cell alpha 0.1, none the effect of alpha is that at exponential alone."""
    cells = grid(alpha=[0.01, 0.1], anneal=["none", "exponential"])
    losses = {i: [base + (0.5 if i == 2 else 0.01 * i) for base in BASE.values()] for i in range(4)}
    del cells[2]
    skipped = sweep(tmp_path / "a", cells, {i: losses[j] for i, j in enumerate((0, 1, 3))})
    alpha = next(e for e in skipped.effects if e.axis == "alpha")
    assert (alpha.cells, alpha.difference) == (1, pytest.approx(0.02))
    losses[2][0] = math.nan
    lost = sweep(tmp_path / "b", grid(alpha=[0.01, 0.1], anneal=["none", "exponential"]), losses)
    assert [(e.axis, e.cells, round(e.difference, 9)) for e in lost.effects] == [
        ("alpha", 1, 0.02),
        ("anneal", 1, 0.01),
    ]


def test_parameters_that_vary_together_are_one_axis_and_drawn_ones_none(tmp_path: Path) -> None:
    zipped = [{"lr": lr, "momentum": mu, "alpha": a} for lr, mu in ((0.01, 0.9), (0.02, 0.95)) for a in (0.1, 0.2)]
    assert [(e.axis, e.level) for e in sweep(tmp_path / "a", zipped).effects] == [
        ("lr, momentum", "0.02, 0.95"),
        ("alpha", "0.2"),
    ]
    drawn = [{"lr": 0.01 + i / 1000, "alpha": 0.1 + i / 100} for i in range(4)]
    assert sweep(tmp_path / "b", drawn).effects == ()
    assert sweep(tmp_path / "c", [{"alpha": 0.1}]).effects == ()


TEXT = """\
version: 1
name: hunt
seeds: [1, 2]
constants: {steps: 50, ns_dtype: fp32}
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - name: noise
    optimizer: orthonoise
    grid: {alpha: [0.05, 0.01], anneal: [none, exponential], schedule.warmup_steps: [0, 5]}
    skip: [{alpha: 0.01, anneal: none}]
  - {name: rates, optimizer: muon, zip: {lr: [0.01, 0.03], momentum: [0.9, 0.95]}, grid: {nesterov: [true, false]}}
"""


def test_axes_of_real_configs_are_the_parameters_of_the_file_by_their_names(tmp_path: Path) -> None:
    planned = plan(parse_spec(TEXT), {})
    runs = [trained(run, 3.0 + 0.01 * index + 0.1 * run.config.seed) for index, run in enumerate(planned.runs)]
    for fake, run in zip(runs, planned.runs, strict=True):
        fake.facts["config_json"] = run.config.model_dump_json()
    storage = write_store(tmp_path, runs)
    write_sweep(storage, sweep_record(planned))
    effects = summarize(open_store(storage).sweep("hunt")).effects
    assert [(e.block, e.axis, e.level, e.against, e.cells) for e in effects] == [
        ("noise", "alpha", "0.05", "0.01", 2),
        ("noise", "anneal", "exponential", "none", 2),
        ("noise", "schedule.warmup_steps", "5", "0", 3),
        ("rates", "lr, momentum", "0.03, 0.95", "0.01, 0.9", 2),
        ("rates", "nesterov", "false", "true", 2),
    ]


def test_answer_report_and_frame_have_the_effects(tmp_path: Path) -> None:
    summary = sweep(tmp_path / "store", grid(alpha=[0.01 * i for i in range(1, 9)]))
    assert len(summary.effects) == 7
    line = effect_line(summary.effects[0], summary)
    assert line.startswith("noise: alpha 0.02 against 0.01: +0.0")
    assert "; 3 seeds, 1 cell; p " in line
    assert line.endswith(", Holm over 7 levels")
    brief = brief_effects(summary)
    assert (len(brief), brief[-1]) == (7, "and 1 effect more")
    assert brief[0] in render_summary(summary, 1000)
    assert effects_frame(summary)["difference"].to_list() == [e.difference for e in summary.effects]
    page = write_report(open_store(tmp_path / "store").sweep("demo"), tmp_path / "report", FEW).page
    numbers = json.loads((page.parent / "report.json").read_text())["effects"]
    assert [e["adjusted_p"] for e in numbers] == [e.adjusted_p for e in summary.effects]
