"""The tables of a report: arms twice, once to see at a glance and once in full; runs, dropped runs, anomalies."""

from __future__ import annotations

import polars as pl

from analysis.anomalies import Anomalies
from analysis.report.page import Table
from analysis.summary import Summary
from analysis.verdicts import DASH, arm_texts, how_compared, seconds_text
from muon_core.statuses import last_line

TOP_REGIONS = 12
_WORDS = ("arm", "block", "role", "verdict")  # columns of text, the others are numbers
_RUN_COLUMNS = (
    ("run", False),
    ("arm", False),
    ("seed", True),
    ("status", False),
    ("final val_loss", True),
    ("steps", True),
    ("wall", True),
    ("attempts", True),
    ("error", False),
)


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
    return Table(
        "Verdicts", caption, _headed(columns), [[row[name] for name in columns] for row in rows], "data/arms.csv"
    )


def arms_table(summary: Summary) -> Table:
    """Every column of the arms."""
    rows = [arm_texts(arm, summary) for arm in summary.arms]
    columns = _headed(tuple(rows[0]) if rows else ("arm",))
    caption = f"Each arm in full; differences are to {summary.baseline or 'no baseline'}."
    return Table("Arms in full", caption, columns, [list(row.values()) for row in rows], "data/arms.csv")


def runs_table(members: pl.DataFrame) -> Table:
    """A row for each run that the sweep lists."""
    rows = [
        [
            row["run_id"],
            row["arm"],
            _count_text(row["seed"]),
            row["status"],
            _value_text(row["final_val_loss"]),
            _count_text(row["steps"]),
            seconds_text(row["wall_s"]),
            _count_text(row["attempts"]),
            last_line(row["error"]),
        ]
        for row in members.iter_rows(named=True)
    ]
    caption = "Every run the sweep asks for, also those that failed or were never started."
    return Table("Runs", caption, _RUN_COLUMNS, rows, "data/runs.csv")


def dropped_table(summary: Summary) -> Table:
    """A row for each run that ended and is no longer listed."""
    columns = (("run", False), ("arm", False), ("seed", True), ("status", False))
    rows = [[run.run_id, run.arm, _count_text(run.seed), run.status, _value_text(run.value)] for run in summary.dropped]
    caption = (
        "Runs that ended, that an earlier version of the sweep listed, and this one does not. They are in no other "
        "number of this page."
    )
    heading = (f"{summary.at} {summary.metric}", True)
    return Table("Runs that are no longer listed", caption, (*columns, heading), rows, "data/dropped.csv")


def regions_table(found: Anomalies) -> Table:
    """The regions that stand out most, each with the worst value in it and what is normal there."""
    columns = (
        ("score", True),
        ("kind", False),
        ("run", False),
        ("layers", False),
        ("steps", False),
        ("metric", False),
        ("value", True),
        ("normal", True),
    )
    rows = [
        [
            f"{row['score']:.1f}",
            row["kind"],
            row["run_id"],
            f"{row['projection']} {_span(row['layer_from'], row['layer_to'])}",
            _span(row["step_from"], row["step_to"]),
            row["metric"],
            _number_text(row["value"]),
            _number_text(row["normal"]),
        ]
        for row in found.regions.head(TOP_REGIONS).iter_rows(named=True)
    ]
    caption = "The worst first: robust standard deviations from normal, where, and the worst value there."
    return Table("Anomalies", caption, columns, rows, "data/anomalies.csv")


def stability_table(arms: pl.DataFrame, early_steps: int) -> Table:
    """A row for each arm of `stability_of_arms`."""
    columns = (
        ("arm", False),
        ("runs", True),
        ("diverged", True),
        ("early rise", True),
        ("early gradient peak", True),
        ("loss spikes", True),
        ("skipped steps", True),
        ("not finite", True),
    )
    rows = [
        [
            row["arm"],
            _count_text(row["runs"]),
            _count_text(row["diverged"]),
            DASH if row["rise"] is None else f"{row['rise']:.3f}",
            DASH if row["grad_ratio"] is None else f"{row['grad_ratio']:.1f}",
            *(_count_text(row[name]) for name in ("loss_spikes", "skipped_steps", "nonfinite")),
        ]
        for row in arms.iter_rows(named=True)
    ]
    caption = (
        f"Early is up to step {early_steps:,}, a tenth of the longest run. The rise is the most that a training loss "
        "went up above its lowest so far, in nats per token; the gradient peak is in medians of the later steps. Both "
        "are of an arm's worst run; the other columns count over whole runs."
    )
    return Table("Early stability", caption, columns, rows, "data/stability.csv")


def _headed(names: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
    return tuple((name, name not in _WORDS) for name in names)


def _count_text(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _value_text(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"


def _number_text(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
