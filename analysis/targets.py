"""How much training an arm takes to a target: tokens, seconds and USD, and how often faster than the baseline that is.

The target is the baseline's mean of the primary metric. A run reaches it where the best of its evaluations so far
crosses it, on the line between two of them. One that never does is censored: it took more than all it trained, so
medians are over infinities too, and where a run of the arm never reached it no speed-up is told. About half of the
baseline's own runs end above their mean; there the whole run stands in, and the speed-up is `at least` what is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log
from statistics import fmean, median
from typing import Literal

import polars as pl

from analysis import queries
from analysis.arms import ArmSummary
from analysis.costs import usd_per_run
from analysis.statistics import Goal, Interval, mean_interval
from analysis.store import Store

Quantity = Literal["tokens", "seconds", "usd"]
QUANTITIES: tuple[Quantity, ...] = ("tokens", "seconds", "usd")
ENDED = ("done", "diverged", "failed")


@dataclass(frozen=True, slots=True)
class Way:
    """One run's way to the target; a quantity is None where it was not measured."""

    seed: int | None
    is_reached: bool
    tokens: float | None
    """When it reached the target; all that it trained if it never did."""
    seconds: float | None
    usd: float | None


@dataclass(frozen=True, slots=True)
class Amount:
    """What the runs of an arm took to the target, of one quantity."""

    median: float
    """Infinite where half of the runs never reached it."""
    at_least: float
    """The same with what those runs trained in the place of infinity."""
    speed_up: float | None
    """Geometric mean over paired seeds of what the baseline took over what this arm took; None where a run of the arm
    never reached the target, and for the baseline."""
    interval: Interval | None
    """Of it: 95 %, Student t of the logarithms."""
    pairs: int
    bounds: int
    """Pairs whose baseline never reached it: with any, the speed-up is at least what is told."""


@dataclass(frozen=True, slots=True)
class ArmTarget:
    """How one arm came to the target."""

    arm: str
    reached: int
    ways: tuple[Way, ...]
    amounts: dict[Quantity, Amount]
    """Those that were measured in all its runs."""


@dataclass(frozen=True, slots=True)
class Target:
    """A value of the primary metric, and how the arms came to it."""

    value: float
    arms: tuple[ArmTarget, ...]


def crossing(values: Sequence[float | None], target: float, goal: Goal) -> tuple[int, float] | None:
    """Where the best so far of `values` first is as good as `target`: an index, and the share of the way to it.

    The way is from the value before that was finite. (2, 0.25) is a quarter of the way to the third. None if never.
    """
    sign = 1 if goal == "min" else -1
    best, at = inf, -1
    for index, value in enumerate(values):
        if value is None or not isfinite(value):
            continue
        new = min(best, sign * value)
        if new <= sign * target:
            return index, (1.0 if at < 0 else (best - sign * target) / (best - new))
        best, at = new, index
    return None


def reach_target(
    view: Store, members: pl.DataFrame, arms: Sequence[ArmSummary], baseline: str | None, metric: str, goal: Goal
) -> Target | None:
    """How the arms of a sweep came to the mean of its baseline; None where that has no result, or none to compare."""
    base = next((arm for arm in arms if arm.arm == baseline), None)
    if base is None or base.mean is None or base.errors or len(arms) < 2:
        return None
    runs = members.filter(pl.col("status").is_in(ENDED))
    ways = _ways(view, runs, metric, base.mean, goal)
    by_arm = {
        arm.arm: tuple(ways[run] for run in runs.filter(pl.col("arm") == arm.arm)["run_id"] if run in ways)
        for arm in arms
        if arm.copy_of is None
    }
    found = [_arm(name, own, by_arm[base.arm], is_baseline=name == base.arm) for name, own in by_arm.items() if own]
    return Target(base.mean, tuple(found))


def _ways(view: Store, runs: pl.DataFrame, metric: str, target: float, goal: Goal) -> dict[str, Way]:
    columns = ["run_id", "step", "tokens", "elapsed_s", metric]
    series = view.table(queries.metric_table(metric)).select(columns).unique(["run_id", "step"])
    usd, seeds = usd_per_run(view), dict(zip(runs["run_id"], runs["seed"], strict=True))
    rows = series.filter(pl.col("run_id").is_in(list(seeds))).sort("run_id", "step").collect()
    return {
        str(run): _way(frame, metric, target, goal, seeds[str(run)], usd.get(str(run)))
        for (run,), frame in rows.group_by("run_id", maintain_order=True)
    }


def _way(frame: pl.DataFrame, metric: str, target: float, goal: Goal, seed: int | None, usd: float | None) -> Way:
    found = crossing(frame[metric].to_list(), target, goal)
    tokens, seconds = (_at(frame[name].to_list(), found) for name in ("tokens", "elapsed_s"))
    whole = frame["tokens"].max()
    share = tokens / float(whole) if tokens is not None and isinstance(whole, int) and whole else None
    spent = None if usd is None or share is None else usd * share
    return Way(seed, found is not None, tokens, seconds, spent)


def _at(values: Sequence[float | None], found: tuple[int, float] | None) -> float | None:
    """`values` at a crossing, the last one without any; None where it is not known."""
    if found is None:
        return values[-1]
    index, share = found
    after, before = values[index], values[index - 1] if index else values[0]
    return None if after is None or before is None else before + share * (after - before)


def _arm(name: str, ways: tuple[Way, ...], baseline: tuple[Way, ...], *, is_baseline: bool) -> ArmTarget:
    others = {way.seed: way for way in baseline if way.seed is not None}
    pairs = [] if is_baseline else [(way, others[way.seed]) for way in ways if way.seed in others]
    amounts = {quantity: _amount(quantity, ways, pairs) for quantity in QUANTITIES if _is_known(quantity, ways)}
    return ArmTarget(name, sum(way.is_reached for way in ways), ways, amounts)


def _is_known(quantity: Quantity, ways: Iterable[Way]) -> bool:
    """Whether all were measured, and cost anything."""
    return all(getattr(way, quantity) for way in ways)


def _amount(quantity: Quantity, ways: Sequence[Way], pairs: Sequence[tuple[Way, Way]]) -> Amount:
    taken: Mapping[int, float] = {index: getattr(way, quantity) for index, way in enumerate(ways)}
    ends = [taken[index] if way.is_reached else inf for index, way in enumerate(ways)]
    known = pairs and all(own.is_reached for own, _ in pairs) and _is_known(quantity, [base for _, base in pairs])
    logs = [log(getattr(base, quantity) / getattr(own, quantity)) for own, base in pairs] if known else []
    interval = mean_interval(logs)
    return Amount(
        median=median(ends),
        at_least=median(taken.values()),
        speed_up=exp(fmean(logs)) if logs else None,
        interval=(exp(interval[0]), exp(interval[1])) if interval else None,
        pairs=len(logs),
        bounds=sum(not base.is_reached for _, base in pairs) if logs else 0,
    )
