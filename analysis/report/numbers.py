"""The numbers of a report for machines: report.json and the table of arms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import polars as pl

from analysis.answer import answer
from analysis.arms import ArmSummary
from analysis.figures.figure import Figure
from analysis.summary import Summary
from analysis.verdicts import Found, sentence

SCHEMA = 2  # of report.json; raised when a name or meaning in it changes


def arms_frame(summary: Summary) -> pl.DataFrame:
    """One row an arm, numbers unrounded; null where there is no comparison."""
    return pl.DataFrame([_arm_row(arm) for arm in summary.arms], infer_schema_length=None)


def dropped_frame(summary: Summary) -> pl.DataFrame:
    """One row a run that ended and is no longer listed, with its value of the primary metric."""
    return pl.DataFrame([dataclasses.asdict(run) for run in summary.dropped], infer_schema_length=None)


def report_numbers(
    summary: Summary, members: pl.DataFrame, figures: list[Figure], files: list[str], speeds: pl.DataFrame | None = None
) -> dict[str, Any]:
    """The content of report.json: plain JSON values; what is not finite is null.

    Args:
        speeds: as `analysis.arm_costs.arm_speeds` gives them; None where no arm has any.
        files: pictures and data that lie beside the page.
    """
    arms = []
    for arm in summary.arms:
        compared = {"comparison": _comparison(arm.comparison), "unpaired": _comparison(arm.unpaired)}
        values = {str(seed): value for seed, value in arm.values.items()}
        arms.append(dataclasses.asdict(arm) | compared | {"values": values, "sentence": sentence(arm, summary)})
    names = ("name", "title", "caption", "description")
    numbers = dataclasses.asdict(summary) | {
        "schema": SCHEMA,
        "answer": answer(summary),
        "arms": arms,
        "equivalences": [dataclasses.asdict(test) | {"is_shown": test.is_shown} for test in summary.equivalences],
        "effects": [dataclasses.asdict(effect) | {"percent": effect.percent} for effect in summary.effects],
        "counts": summary.counts,
        "speeds": [] if speeds is None else speeds.to_dicts(),
        "runs": members.to_dicts(),
        "figures": [{n: getattr(figure, n) for n in names} | {"data": list(figure.tables)} for figure in figures],
        "files": sorted(files),
    }
    plain: dict[str, Any] = _plain(numbers)
    return plain


def _comparison(found: Found | None) -> dict[str, Any] | None:
    """Its fields, and what follows from them."""
    if found is None:
        return None
    derived = {"percent": found.percent, "percent_interval": found.percent_interval, "n": found.n}
    return dataclasses.asdict(found) | derived


def _arm_row(arm: ArmSummary) -> dict[str, Any]:
    found, pairs = arm.found, arm.comparison
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
        "paired_mean": pairs.mean if pairs else None,
        "paired_baseline_mean": pairs.baseline_mean if pairs else None,
        "difference": found.difference if found else None,
        "difference_low": nats[0],
        "difference_high": nats[1],
        "percent": found.percent if found else None,
        "percent_low": percent[0],
        "percent_high": percent[1],
        "pairs": pairs.n if pairs else None,
        "better": pairs.better if pairs else None,
        "correlation": pairs.correlation if pairs else None,
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
