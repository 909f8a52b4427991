"""The words and tables of a report: definitions, provenance, a row for each run."""

from __future__ import annotations

import hashlib
import json
import shlex

import polars as pl

from analysis import queries
from analysis.summary import Summary
from analysis.verdicts import DASH, seconds_text
from muon_core.statuses import last_line
from muon_core.store.sweeps import SweepRecord

Pairs = list[tuple[str, str]]

RUN_COLUMNS = (
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
"""Heading, and whether the column holds numbers."""


DROPPED_COLUMNS = (("run", False), ("arm", False), ("seed", True), ("status", False))
"""The same of the table of dropped runs, before the primary metric."""


def definitions(summary: Summary, layer_metric: str) -> Pairs:
    """What each quantity on the page means."""
    return [
        ("val_loss", "Mean cross-entropy in nats per token of predicting each next token of the validation files."),
        ("val_accuracy", "Share of validation tokens whose most probable prediction is exactly right."),
        (
            "difference, %",
            "Candidate minus baseline at the same seed, averaged over the seeds both finished; the per cent are the "
            "same divided by the baseline's mean. Where an arm finished other seeds than the baseline, it is not the "
            "difference of the two means in the table.",
        ),
        (
            "95 % interval",
            "Student t over the paired seeds, n − 1 degrees of freedom. One seed has no interval. Bootstrap intervals "
            "are not used: with three seeds they cover far less than they say. Where runs do not tell their seed, "
            "it is Welch's, over all runs of both arms.",
        ),
        (
            "verdict",
            "lower or higher if p < 0.05 in the paired t test of the difference, adjusted by Holm for the number of "
            "arms tested, arms of the same runs once; else not resolved, which is no claim that the arms are equal. "
            "Where seeds of the arm or the baseline diverged or failed, the rest are survivors, and the verdict stays "
            "not resolved. Invalid if runs that should be independent are not.",
        ),
        (
            "fresh seeds",
            "So many give about even odds of p < 0.05, after the strictest adjustment, if the difference and its "
            "spread are as measured, itself uncertain with two or three seeds. Fresh: whoever adds seeds one by one, "
            "from three to six, until an arm without effect is lower or higher, sees that in about 12 % of sweeps, "
            "not in 5 %.",
        ),
        *([("gate", _GATE)] if summary.gates else []),
        ("pair corr.", "Correlation of candidate and baseline over seeds, from three pairs on: what pairing gains."),
        ("seeds", "Runs done of runs asked for. Means are over done runs; the others are named with the verdict."),
        (layer_metric, f"{queries.metric_unit(layer_metric)}. {_LAYER_NOTES.get(layer_metric, '')}".strip()),
    ]


_GATE = (
    "PASS and FAIL are tests, each at 5 % and adjusted by Holm for the arms of the gate, which show that the true "
    "difference is as it must be, or that it is not; INCONCLUSIVE is neither. Of a margin they are one-sided, and an "
    "end of the 90 % interval is a 95 % bound. Better asks for p < 0.05, two-sided, against no difference, and an "
    "estimate of the size named. An arm that lost a seed cannot pass, and nothing is decided while seeds are to come."
)
_LAYER_NOTES = {
    "effective_rank": "Entropy is -sum p log p over all singular values of the weight, p = s / sum s. It is at most "
    "min(rows, cols), which is smaller for k and v than for q and o under grouped-query attention.",
}


def provenance(record: SweepRecord, members: pl.DataFrame, url: str, metric: str) -> Pairs:
    """Where the numbers come from and how to make this page, with its heatmaps of `metric`, again."""
    spec_hash = hashlib.sha256(json.dumps(record.spec, sort_keys=True).encode()).hexdigest()
    ended = members["ended_at"].drop_nulls().sort().dt.strftime("%Y-%m-%d %H:%M:%S UTC")
    columns = {
        "Commit": "commit",
        "Uncommitted changes": "diff_hash",
        "Device": "device",
        "Environment": "environment_json",
        "Data": "data_hash",
        "Workers": "world_size",
    }
    return [
        ("Store", url),
        ("Sweep spec", f"sha256 {spec_hash}"),
        *((term, _values(members[column])) for term, column in columns.items()),
        ("Newest result", ended[-1] if len(ended) else DASH),
        (
            "Make again",
            f"muon report {shlex.quote(record.sweep)} --store {shlex.quote(url)} --metric {metric} -o FOLDER",
        ),
    ]


def run_rows(members: pl.DataFrame) -> list[list[str]]:
    """Rows of the runs table as text, in the order of `RUN_COLUMNS`."""
    return [
        [
            row["run_id"],
            row["arm"],
            _count_text(row["seed"]),
            row["status"],
            DASH if row["final_val_loss"] is None else f"{row['final_val_loss']:.4f}",
            _count_text(row["steps"]),
            seconds_text(row["wall_s"]),
            _count_text(row["attempts"]),
            last_line(row["error"]),
        ]
        for row in members.iter_rows(named=True)
    ]


def dropped_rows(summary: Summary) -> list[list[str]]:
    """Rows of the table of runs that the sweep no longer lists."""
    return [
        [
            run.run_id,
            run.arm,
            _count_text(run.seed),
            run.status,
            DASH if run.value is None else f"{run.value:.4f}",
        ]
        for run in summary.dropped
    ]


def _count_text(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _values(column: pl.Series) -> str:
    """The different values of a column over the runs that were started."""
    return "; ".join(str(value) for value in column.drop_nulls().unique(maintain_order=True)) or DASH
