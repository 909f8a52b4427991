"""The words of a report: what its quantities mean, and where its numbers come from."""

from __future__ import annotations

import hashlib
import json
import shlex

import polars as pl

from analysis import queries
from analysis.figures.heatmap import METRICS as LAYER_METRICS
from analysis.report.page import Choice, Pairs
from analysis.summary import Summary
from analysis.verdicts import DASH
from muon_core.store.sweeps import SweepRecord


def definitions(summary: Summary, layer_metrics: tuple[str, ...]) -> Pairs:
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
        (
            "MFU",
            "Model FLOPs utilisation: FLOPs of the forward and backward pass a token, times tokens a second, over the "
            "peak FLOP/s of all GPUs in the run's precision. Those FLOPs are 6 a weight and 12 × layers × width × "
            "sequence for attention; what is computed again under activation checkpointing, and the optimizer, count "
            "for nothing.",
        ),
        *((name, f"{queries.metric_unit(name)}. {_LAYER_NOTES.get(name, '')}".strip()) for name in layer_metrics),
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


def provenance(record: SweepRecord, members: pl.DataFrame, url: str, choice: Choice) -> Pairs:
    """Where the numbers come from, and how to make this page again."""
    spec_hash = hashlib.sha256(json.dumps(record.spec, sort_keys=True).encode()).hexdigest()
    ended = members["ended_at"].drop_nulls().sort().dt.strftime("%Y-%m-%d %H:%M:%S UTC")
    columns = {
        "Commit": "commit",
        "Uncommitted changes": "diff_hash",
        "Device": "device",
        "Data": "data_hash",
        "Workers": "world_size",
    }
    return [
        ("Store", url),
        ("Sweep file", f"sha256 {spec_hash} as it was read" if "name" in record.spec else _no_file(record)),
        *((term, _values(members[column])) for term, column in columns.items()),
        ("Versions", _versions(members["environment_json"])),
        ("Initial weights", _seeds_reached(members, "init_hash", "initial weights")),
        ("First batches", _seeds_reached(members, "first_batch_hash", "first batches")),
        ("Newest result", ended[-1] if len(ended) else DASH),
        ("Make again", shlex.join(["muon", "report", record.sweep, "--store", url, *_options(choice), "-o", "FOLDER"])),
    ]


def _no_file(record: SweepRecord) -> str:
    return "None: its runs were imported." if record.is_imported else "None: it is a run on its own."


def _options(choice: Choice) -> list[str]:
    """What makes `muon report` choose the same."""
    metrics = () if choice.metrics == LAYER_METRICS else choice.metrics
    seed = [] if choice.seed is None else ["--seed", str(choice.seed)]
    pairs = [*(("--metric", name) for name in metrics), *(("--projection", name) for name in choice.projections)]
    return [*(word for pair in pairs for word in pair), *seed]


def _versions(environments: pl.Series) -> str:
    """`python 3.11.2, torch 2.13.0, ...` of each environment that runs were trained in."""
    found = [json.loads(text) for text in environments.drop_nulls().unique(maintain_order=True)]
    return "; ".join(", ".join(f"{k} {v}" for k, v in each.items() if v is not None) for each in found) or DASH


def _seeds_reached(members: pl.DataFrame, column: str, what: str) -> str:
    """Whether seeds differ in what they are to vary, and arms agree in it."""
    known = members.drop_nulls(column)
    if known.is_empty():
        return "Not recorded."
    by_seed = known.drop_nulls("seed").group_by("seed").agg(pl.col(column).n_unique())
    agree = "the arms agree at each seed" if (by_seed[column] == 1).all() else "arms differ at a seed"
    seeds, different = by_seed.height, known[column].n_unique()
    return f"{different} different {what} over {seeds} {'seed' if seeds == 1 else 'seeds'}; {agree}."


def _values(column: pl.Series) -> str:
    """The different values of a column over the runs that were started."""
    return "; ".join(str(value) for value in column.drop_nulls().unique(maintain_order=True)) or DASH
