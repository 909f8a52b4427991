"""What a summary says of every arm as rows to draw: its difference to the baseline, that of each seed, and margins.

Arms of one sweep may differ from the baseline by a tenth and by a ten-thousandth. On one axis the second are at zero,
so those who draw differences give arms of unlike reach an axis of their own (`scale_groups`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import expm1, isfinite

import polars as pl

from analysis.arms import ArmSummary
from analysis.figures.style import ArmStyle, arm_styles
from analysis.margins import region
from analysis.statistics import Goal
from analysis.summary import Summary

MAX_REACH = 6  # times the smallest of a group: what reaches a sixth of an axis can still be read
MAX_GROUPS = 3


@dataclass(frozen=True, slots=True)
class Effects:
    """The arms of a sweep beside its baseline, in the sweep's order, in the metric's unit.

    `arms` has a row per arm: `arm`, `optimizer`, `verdict`, `n` (pairs, or runs where there are none), `difference`,
    `low`, `high` (null where there is none). `seeds` has one per pair: `arm`, `seed`, `difference`; where runs are not
    paired, one per run and its difference to the baseline's mean, `seed` null. `margins` has one per gate, arm it
    judges and edge: `gate`, `arm`, `margin`; of a share, that share of the baseline's mean.
    """

    metric: str
    unit: str
    goal: Goal
    baseline: str
    styles: dict[str, ArmStyle]
    arms: pl.DataFrame
    seeds: pl.DataFrame
    margins: pl.DataFrame


def effects_of(summary: Summary) -> Effects | None:
    """Every arm but the baseline; None without a baseline, or where no arm has a difference to it."""
    base = next((arm for arm in summary.arms if arm.arm == summary.baseline), None)
    others = [arm for arm in summary.arms if arm.verdict != "baseline" and arm is not base]
    if base is None or not any(arm.found for arm in others):
        return None
    started: list[tuple[str, str | None]] = [(arm.arm, arm.optimizer) for arm in [base, *others] if arm.optimizer]
    return Effects(
        metric=summary.metric,
        unit=summary.unit,
        goal=summary.goal,
        baseline=base.arm,
        styles=arm_styles(started) | arm_styles([(arm.arm, None) for arm in others if not arm.optimizer]),
        arms=pl.DataFrame([_row(arm) for arm in others], _ARMS, orient="row"),
        seeds=pl.DataFrame([row for arm in others for row in _seeds(arm, base)], _SEEDS, orient="row"),
        margins=pl.DataFrame(_margins(summary), _MARGINS, orient="row").unique(maintain_order=True),
    )


def reaches(effects: Effects) -> dict[str, float]:
    """Arm -> how far from 0 its seeds and its interval go, of the arms that have a difference."""
    ends = effects.arms.drop_nulls("difference").unpivot(("difference", "low", "high"), index="arm").drop("variable")
    rows = pl.concat([ends, effects.seeds.select("arm", value="difference")])
    far = rows.group_by("arm", maintain_order=True).agg(pl.col("value").abs().max())
    return dict(far.iter_rows())


def scale_groups(reach: Mapping[str, float]) -> list[list[str]]:
    """The names in groups that fit one axis each, the farthest first; within a group their order is kept.

    >>> scale_groups({"noise": 0.002, "adamw": 0.14, "damped": 0.001})
    [['adamw'], ['noise', 'damped']]
    """
    top, number, group = 0.0, -1, {}
    for name, far in sorted(reach.items(), key=lambda item: -item[1]):
        if number < 0 or (0 < far < top / MAX_REACH and number < MAX_GROUPS - 1):
            top, number = far, number + 1
        group[name] = number
    return [[name for name in reach if group[name] == i] for i in range(number + 1)]


def axis_around_zero(values: Iterable[float | None], margins: Iterable[float] = ()) -> tuple[float, float]:
    """An axis for `values` with 0 on it, and with those of `margins` that do not make it more than twice as long."""
    inner = [0.0, *(value for value in values if value is not None and isfinite(value))]
    low, high = min(inner), max(inner)
    length = high - low or 0.01
    for margin in sorted(margins, key=abs):
        wider = min(low, margin), max(high, margin)
        if wider[1] - wider[0] <= 2 * length:
            low, high = wider
    space = 0.06 * (high - low or length)
    return low - space, high + space


def _row(arm: ArmSummary) -> tuple[object, ...]:
    found = arm.found
    low, high = (found.difference_interval if found else None) or (None, None)
    n, difference = (found.n, found.difference) if found else (0, None)
    return arm.arm, arm.optimizer, arm.verdict, n, difference, low, high


def _seeds(arm: ArmSummary, base: ArmSummary) -> list[tuple[str, int | None, float]]:
    if arm.comparison:
        return [(arm.arm, seed, arm.values[seed] - base.values[seed]) for seed in arm.comparison.seeds]
    if arm.unpaired:
        return [(arm.arm, None, value - arm.unpaired.baseline_mean) for value in arm.all_values]
    return []


def _margins(summary: Summary) -> list[tuple[str, str, float]]:
    """Edges of the gates that compare with the baseline, 0 left out: there is a line anyway."""
    means = {arm.arm: arm.found.baseline_mean for arm in summary.arms if arm.found}
    rows = []
    for result in summary.gates:
        gate = result.gate
        if result.vs != summary.baseline:
            continue
        for edge in region(gate.kind, gate.size, summary.goal):
            for judged in result.arms:
                if isfinite(edge) and edge != 0 and judged.arm in means:
                    margin = means[judged.arm] * expm1(edge) if gate.is_relative else edge
                    rows.append((gate.name, judged.arm, margin))
    return rows


_ARMS = {
    "arm": pl.String,
    "optimizer": pl.String,
    "verdict": pl.String,
    "n": pl.Int64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}
_SEEDS = {"arm": pl.String, "seed": pl.Int64, "difference": pl.Float64}
_MARGINS = {"gate": pl.String, "arm": pl.String, "margin": pl.Float64}
