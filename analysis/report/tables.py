"""The tables of a report, as text: arms at a glance and in full, runs of all fates, what stands out, what it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from analysis.anomalies import Anomalies
from analysis.arm_costs import SHARES
from analysis.effect_texts import effect_texts
from analysis.report.page import Table
from analysis.summary import Summary
from analysis.target_texts import target_caption, target_rows
from analysis.verdicts import DASH, arm_texts, how_compared, seconds_text
from muon_core.statuses import last_line

TOP_REGIONS = 12
_WORDS = ("arm", "block", "role", "verdict", "parameter", "level", "against", "same runs as")
"""Columns of text that stand beside numbers."""
Show = Callable[[Mapping[str, Any]], str]
"""A cell of a row."""


def verdict_table(summary: Summary) -> Table:
    """What the first screen has room for: the verdict beside the arm, and the difference with its interval."""
    better = "lower" if summary.goal == "min" else "higher"
    rows = [arm_texts(arm, summary) for arm in summary.arms]
    difference = [name for name in (rows[0] if rows else ()) if name.startswith("difference")]
    columns = ("arm", "verdict", *difference, "%", "better", "seeds", summary.metric)
    caption = (
        f"{summary.at.capitalize()} {summary.metric} ({summary.unit}; {better} is better) against "
        f"{summary.baseline or 'no baseline'}, {how_compared(summary)}."
    )
    shown = [[row[name] for name in columns] for row in rows]
    return Table("verdicts", caption, _headed(columns), shown, "data/arms.csv")


def arms_table(summary: Summary) -> Table:
    """Every column of the arms."""
    rows = [arm_texts(arm, summary) for arm in summary.arms]
    columns = _headed(tuple(rows[0]) if rows else ("arm",))
    caption = f"Each arm in full; differences are to {summary.baseline or 'no baseline'}."
    return Table("arms in full", caption, columns, [list(row.values()) for row in rows], "data/arms.csv")


def effects_table(summary: Summary) -> Table:
    """A row for each level of each parameter that a block varies."""
    rows = [effect_texts(effect, summary) for effect in summary.effects]
    caption = "Main effects of parameters: one level against another, over all cells and seeds that have both."
    return Table("main effects", caption, _headed(tuple(rows[0])), [list(r.values()) for r in rows], "data/effects.csv")


def targets_table(summary: Summary) -> Table:
    """A row for each arm: what it took to come to the target."""
    rows = target_rows(summary)
    caption = f"The way {target_caption(summary)}: what it took, and how many times sooner than the baseline."
    return Table("target", caption, _headed(tuple(rows[0])), [list(r.values()) for r in rows], "data/targets.csv")


def runs_table(members: pl.DataFrame) -> Table:
    """A row for each run that the sweep lists."""
    columns: dict[str, tuple[Show, bool]] = {
        "run": (_word("run_id"), False),
        "arm": (_word("arm"), False),
        "seed": (_count("seed"), True),
        "status": (_word("status"), False),
        "final val_loss": (_fixed("final_val_loss", 4), True),
        "steps": (_count("steps"), True),
        "wall": (lambda row: seconds_text(row["wall_s"]), True),
        "attempts": (_count("attempts"), True),
        "error": (lambda row: last_line(row["error"]), False),
    }
    caption = "Every run the sweep asks for, also those that failed or were never started."
    return _table("runs", caption, members, columns, "data/runs.csv")


def dropped_table(summary: Summary, dropped: pl.DataFrame) -> Table:
    """A row for each run that ended and is no longer listed."""
    columns: dict[str, tuple[Show, bool]] = {
        "run": (_word("run_id"), False),
        "arm": (_word("arm"), False),
        "seed": (_count("seed"), True),
        "status": (_word("status"), False),
        f"{summary.at} {summary.metric}": (_fixed("value", 4), True),
    }
    caption = (
        "Runs that ended, that an earlier version of the sweep listed, and this one does not. They are in no other "
        "number of this page."
    )
    return _table("runs that are no longer listed", caption, dropped, columns, "data/dropped.csv")


def regions_table(found: Anomalies) -> Table:
    """The regions that stand out most, each with the worst value in it and what is normal there."""
    columns: dict[str, tuple[Show, bool]] = {
        "score": (_fixed("score", 1), True),
        "kind": (_word("kind"), False),
        "run": (_word("run_id"), False),
        "layers": (lambda row: f"{row['projection']} {_span(row['layer_from'], row['layer_to'])}", False),
        "steps": (lambda row: _span(row["step_from"], row["step_to"]), False),
        "metric": (_word("metric"), False),
        "value": (_digits("value"), True),
        "normal": (_digits("normal"), True),
    }
    caption = "The worst first. Scores are robust standard deviations from normal; values are the worst of a region."
    return _table("anomalies", caption, found.regions.head(TOP_REGIONS), columns, "data/anomalies.csv")


def early_table(stability: pl.DataFrame) -> Table:
    """A row for each arm of `analysis.early.early_stability`."""
    columns: dict[str, tuple[Show, bool]] = {
        "arm": (_word("arm"), False),
        "runs": (_count("runs"), True),
        "diverged": (_count("diverged"), True),
        "failed": (_count("failed"), True),
        "gradient norm": (_digits("grad_norm", 3), True),
        "× later median": (_digits("times_later", 2), True),
        "of a matrix": (_digits("matrix_grad_norm", 3), True),
        "not finite": (_count("not_finite"), True),
        "loss spikes": (_count("loss_spikes"), True),
        "skipped steps": (_count("skipped_steps"), True),
        "momenta not finite": (_count("nonfinite_momenta"), True),
    }
    first = stability["first_steps"].drop_nulls()
    until = f"up to step {first[0]:,}" if len(first) else "of the first steps"
    caption = f"Gradient norms are the largest {until}; spikes, skipped steps and momenta are of whole runs."
    return _table("early stability", caption, stability, columns, "data/stability.csv")


def excluded_table(excluded: pl.DataFrame) -> Table:
    """A row for each run that ended and is in no mean."""
    columns: dict[str, tuple[Show, bool]] = {
        "run": (_word("run_id"), False),
        "arm": (_word("arm"), False),
        "seed": (_count("seed"), True),
        "status": (_word("status"), False),
        "reason": (_word("reason"), False),
    }
    return _table("excluded runs", "Runs that ended and are in no mean.", excluded, columns, "data/excluded.csv")


def tuning_table(tuned: pl.DataFrame) -> Table:
    """A row for each optimizer."""
    columns: dict[str, tuple[Show, bool]] = {
        "optimizer": (_word("optimizer"), False),
        "arms": (_count("arms"), True),
        "runs": (_count("runs"), True),
        "runs elsewhere": (_count("other_runs"), True),
        "arms tried": (_count("arms_tried"), True),
        "learning rates tried": (_count("learning_rates"), True),
    }
    caption = "What this store holds of each optimizer: in this sweep, and over all sweeps."
    return _table("tuning", caption, tuned, columns, "data/tuning.csv")


def costs_table(costs: pl.DataFrame) -> Table:
    """A row for each arm of `analysis.arm_costs.arm_costs`."""
    columns: dict[str, tuple[Show, bool]] = {
        "arm": (_word("arm"), False),
        "done": (lambda row: f"{row['done']}/{row['runs']}", True),
        "attempts": (_count("attempts"), True),
        "died": (_count("deaths"), True),
        "hours": (_digits("hours", 3), True),
        "GPU hours": (_digits("gpu_hours", 3), True),
        "USD": (_digits("usd"), True),
        "lost hours": (_digits("lost_hours", 3), True),
        "lost USD": (_digits("lost_usd"), True),
        "planned hours": (_digits("planned_hours", 3), True),
        "planned USD": (_digits("planned_usd"), True),
    }
    caption = "What each arm took, what of it was in vain, and what all its runs take if none dies."
    return _table("cost", caption, costs, columns, "data/costs.csv")


def speeds_table(speeds: pl.DataFrame) -> Table:
    """A row for each arm of `analysis.arm_costs.arm_speeds`."""
    columns: dict[str, tuple[Show, bool]] = {
        "arm": (_word("arm"), False),
        "runs": (_count("runs"), True),
        "step, s": (_digits("step_time_s"), True),
        "fastest, s": (_digits("step_time_low"), True),
        "slowest, s": (_digits("step_time_high"), True),
        "tokens/s": (_rate("tokens_per_s"), True),
        "MFU": (_percent("mfu"), True),
        **{part: (_percent(f"{part}_share"), True) for part in SHARES},
        "wall": (lambda row: seconds_text(row["wall_s"]), True),
        "peak memory, GB": (_gigabytes, True),
        "device": (_word("device"), False),
    }
    caption = (
        "Over runs that are done: means of the median logged step, the share of the wall time that went to data, "
        "optimizer, tracking and evaluation, and the largest memory of a worker. MFU is not known of CPUs."
    )
    return _table("speed", caption, speeds, columns, "data/speeds.csv")


def _table(label: str, caption: str, frame: pl.DataFrame, columns: dict[str, tuple[Show, bool]], file: str) -> Table:
    rows = [[show(row) for show, _ in columns.values()] for row in frame.iter_rows(named=True)]
    return Table(label, caption, tuple((name, is_number) for name, (_, is_number) in columns.items()), rows, file)


def _headed(names: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
    return tuple((name, name not in _WORDS) for name in names)


def _word(column: str) -> Show:
    return lambda row: DASH if row[column] is None else str(row[column])


def _count(column: str) -> Show:
    return lambda row: DASH if row[column] is None else f"{row[column]:,}"


def _fixed(column: str, decimals: int) -> Show:
    return lambda row: DASH if row[column] is None else f"{row[column]:.{decimals}f}"


def _digits(column: str, digits: int = 4) -> Show:
    return lambda row: DASH if row[column] is None else f"{row[column]:,.{digits}g}"


def _rate(column: str) -> Show:
    """Whole from 100 on."""
    return lambda row: f"{row[column]:,.0f}" if (row[column] or 0) >= 100 else _digits(column)(row)


def _percent(column: str) -> Show:
    return lambda row: DASH if row[column] is None else f"{100 * row[column]:.1f} %"


def _gigabytes(row: Mapping[str, Any]) -> str:
    return DASH if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.2f}"


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
