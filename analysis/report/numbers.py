"""The numbers of a report for machines: report.json and the table of arms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import polars as pl

from analysis.arms import ArmSummary
from analysis.report.figures import Figure
from analysis.summary import Summary
from analysis.verdicts import sentence

SCHEMA = 1  # of report.json; raised when a name or meaning in it changes


def arms_frame(summary: Summary) -> pl.DataFrame:
    """One row an arm, numbers unrounded; null where there is no comparison."""
    return pl.DataFrame([_arm_row(arm) for arm in summary.arms], infer_schema_length=None)


def report_numbers(summary: Summary, members: pl.DataFrame, figures: list[Figure]) -> dict[str, Any]:
    """The content of report.json: plain JSON values; what is not finite is null."""
    arms = []
    for arm in summary.arms:
        found = arm.comparison
        percent = {"percent": found.percent, "percent_interval": found.percent_interval, "n": found.n} if found else {}
        comparison = dataclasses.asdict(found) | percent if found else None
        values = {str(seed): value for seed, value in arm.values.items()}
        text = sentence(arm, summary)
        arms.append(dataclasses.asdict(arm) | {"values": values, "comparison": comparison, "sentence": text})
    names = ("name", "title", "caption", "description")
    numbers = dataclasses.asdict(summary) | {
        "schema": SCHEMA,
        "arms": arms,
        "counts": summary.counts,
        "runs": members.to_dicts(),
        "figures": [{n: getattr(figure, n) for n in names} | {"data": list(figure.tables)} for figure in figures],
    }
    plain: dict[str, Any] = _plain(numbers)
    return plain


def _arm_row(arm: ArmSummary) -> dict[str, Any]:
    found = arm.comparison
    nats = (found.difference_interval if found else None) or (None, None)
    percent = (found.percent_interval if found else None) or (None, None)
    return {
        "arm": arm.arm,
        "block": arm.block,
        "role": arm.role,
        **arm.counts,
        "mean": arm.mean,
        "sd": arm.sd,
        "copy_of": arm.copy_of,
        "paired_mean": found.mean if found else None,
        "paired_baseline_mean": found.baseline_mean if found else None,
        "difference": found.difference if found else None,
        "difference_low": nats[0],
        "difference_high": nats[1],
        "percent": found.percent if found else None,
        "percent_low": percent[0],
        "percent_high": percent[1],
        "pairs": found.n if found else None,
        "better": found.better if found else None,
        "correlation": found.correlation if found else None,
        "p_value": found.p_value if found else None,
        "adjusted_p": arm.adjusted_p,
        "wall_s": arm.wall_s,
        "verdict": arm.verdict,
    }


def _plain(value: Any) -> Any:
    """`value` in the types JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
