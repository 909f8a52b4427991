"""Tokens, seconds and USD to the baseline's mean: crossings by hand, speed-ups, and runs that never came there."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.analysis_fixtures import FakeRun, write_store

from analysis.report.numbers import report_numbers
from analysis.store import open_store
from analysis.summary import Summary, members_of, summarize
from analysis.target_texts import brief_targets, target_caption, target_rows, targets_frame
from analysis.targets import crossing
from muon_core.store.folder import Folder
from muon_core.store.ledger import Rate, new_entry, write_entry
from ray_jobs.cli.answer_text import render_summary

TOKENS = 2048  # a step, in the fixture


@pytest.mark.parametrize(
    ("values", "goal", "found"),
    [
        ([7.0, 5.0, 3.0], "min", (2, 0.5)),
        ([7.0, 5.0, 6.0, 4.0], "min", (3, 1.0)),  # from the best before, which is where it was last better
        ([7.0, math.nan, 3.0], "min", (2, 0.75)),
        ([7.0, None, 5.0], "min", None),
        ([3.5, 5.0], "min", (0, 1.0)),
        ([0.1, 4.5], "max", (1, 3.9 / 4.4)),
        ([], "min", None),
    ],
)
def test_a_crossing_by_hand(values: list[float | None], goal: str, found: tuple[int, float] | None) -> None:
    assert crossing(values, 4.0, goal) == (found if found is None else (found[0], pytest.approx(found[1])))  # type: ignore[arg-type]


def line(name: str, seed: int, steps: int, *, role: str = "candidate", to: float = 2.0) -> FakeRun:
    """Falls from 7 in a line, to `to` after so many steps."""
    val = {step: 7.0 + (to - 7.0) * step / steps for step in range(0, steps + 1, steps // 4)}
    return FakeRun(name, seed, val, role=role, with_layers=False)


def store(folder: Path, runs: list[FakeRun], *, priced: bool = False) -> Folder:
    storage = write_store(folder, runs)
    for run in runs if priced else ():
        entry = new_entry(run.run_id, "00001.ab", Rate("big", 4.0, gpus=1.0))
        write_entry(storage, replace(entry, status="done", seconds=10.0 * max(run.val)))
    return storage


def summary_of(storage: Folder) -> Summary:
    return summarize(open_store(storage).sweep("demo"))


STEPS = {"base": (200, 240, 220), "fast": (100, 100, 120)}
SEEDS = (1, 2, 3)


def races() -> list[FakeRun]:
    """All end at 2.0, so every run of the baseline reaches its mean, exactly at its end."""
    return [
        line(name, seed, steps, role="baseline" if name == "base" else "candidate")
        for name, counts in STEPS.items()
        for seed, steps in zip(SEEDS, counts, strict=True)
    ]


def test_speed_up_is_the_ratio_at_each_seed_with_a_t_interval_of_its_log(tmp_path: Path) -> None:
    summary = summary_of(store(tmp_path, races(), priced=True))
    assert summary.target is not None
    assert summary.target.value == 2.0
    base, fast = summary.target.arms
    ratios = [math.log(a / b) for a, b in zip(*STEPS.values(), strict=True)]
    low, high = stats.t.interval(0.95, 2, np.mean(ratios), stats.sem(ratios))
    tokens, usd = fast.amounts["tokens"], fast.amounts["usd"]
    assert (tokens.median, tokens.pairs, tokens.bounds) == (100 * TOKENS, 3, 0)
    assert tokens.speed_up == pytest.approx(math.exp(np.mean(ratios)))
    assert tokens.interval == pytest.approx((math.exp(low), math.exp(high)))
    assert usd.median == pytest.approx(4.0 * 1000 / 3600)
    assert usd.speed_up == pytest.approx(tokens.speed_up)
    assert "seconds" not in fast.amounts  # the fixture's rows have none
    assert (base.reached, base.amounts["tokens"].speed_up) == (3, None)
    rows = target_rows(summary)
    assert rows[1]["tokens"] == f"{100 * TOKENS:,}"
    assert rows[1]["speed-up, tokens"] == f"{tokens.speed_up:.2f}x [{math.exp(low):.2f}, {math.exp(high):.2f}]"
    assert rows[1]["time"] == "–"
    assert target_caption(summary) == "to val_loss 2.0000, the mean of base"
    assert brief_targets(summary)[1] in render_summary(summary, 1000)


def test_a_baseline_that_ends_above_its_mean_gives_a_bound(tmp_path: Path) -> None:
    runs = races()
    runs[0] = line("base", 1, 200, role="baseline", to=2.3)
    summary = summary_of(store(tmp_path, runs))
    assert summary.target is not None
    base, fast = summary.target.arms
    assert (base.reached, fast.reached) == (2, 3)
    assert fast.amounts["tokens"].bounds == 1
    assert target_rows(summary)[1]["speed-up, tokens"].startswith("≥ ")
    assert next(way.tokens for way in base.ways) == 200 * TOKENS  # all that it trained


def test_runs_that_never_reach_the_target_are_in_the_median_and_leave_no_speed_up(tmp_path: Path) -> None:
    runs = races()
    runs[3:5] = [line("fast", 1, 100, to=2.5), line("fast", 2, 100, to=2.5)]
    runs[4].status = "diverged"
    storage = store(tmp_path, runs)
    summary = summary_of(storage)
    assert summary.target is not None
    fast = summary.target.arms[1]
    amount = fast.amounts["tokens"]
    assert (fast.reached, amount.median, amount.at_least) == (1, math.inf, 100 * TOKENS)
    assert (amount.speed_up, amount.interval, amount.pairs) == (None, None, 0)
    assert target_rows(summary)[1]["tokens"] == f"≥ {100 * TOKENS:,}"
    assert targets_frame(summary).filter(arm="fast")["is_reached"].to_list() == [False, False, True]
    view = open_store(storage).sweep("demo")
    numbers = json.dumps(report_numbers(summary, members_of(view), [], []), allow_nan=False)
    assert json.loads(numbers)["target"]["arms"][1]["amounts"]["tokens"]["median"] is None


def test_without_a_baseline_or_its_result_there_is_no_target(tmp_path: Path) -> None:
    alone = summary_of(store(tmp_path / "a", [line("base", 1, 200, role="baseline")]))
    nothing = summary_of(store(tmp_path / "b", [line("fast", 1, 200), line("other", 1, 200)]))
    assert (alone.target, nothing.target, brief_targets(nothing), target_rows(alone)) == (None, None, [], [])
