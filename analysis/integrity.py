"""Checks whether the runs of a sweep may be compared at all; each finding is one sentence for the reader.

Seeds count as independent draws only if they reached what they are to vary. Each run records a hash of its initial
weights and one of its first batch. Runs of an arm with different seeds and the same hash are one draw counted as
several: an error, and the arm is invalid, unless their configs pin that stream to one seed. Imported runs have no
hashes; of them equal losses at step 0, to the last digit, say as much, but only as a warning. So are all findings that
weaken a comparison without making it void.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import polars as pl

from analysis.first_losses import equal_first_losses, first_losses

_HASHES = {"init_hash": "initial weights", "first_batch_hash": "first batch"}
_STREAMS = {"init_hash": "init", "first_batch_hash": "data"}
"""Hash -> the random stream it is a function of."""
ALIKE = {
    "device": "devices",
    "environment_json": "environments (versions, threads, platform, micro-batches of auto)",
    "world_size": "numbers of workers",
    "data_hash": "tokenized data sets",
    "commit": "commits of the code",
    "diff_hash": "states of uncommitted changes",
}
"""Columns that all runs of a comparison should share -> what they are called."""
_SHOWN = 3  # arms of one length that are named


def integrity_errors(members: pl.DataFrame) -> dict[str, list[str]]:
    """Arm -> its runs that are the same draw although their seeds for it differ: the seed never reached it.

    Args:
        members: rows of `sweep_members`.
    """
    errors: dict[str, list[str]] = {}
    for row in _same_draws(_started(members)):
        if not row["is_pinned"]:
            errors.setdefault(row["arm"], []).append(
                f"seeds {row['seeds']} of {row['arm']} have the same {row['what']}, though nothing pins them: the seed "
                f"did not reach them, and one draw was counted as several ({row['runs']})"
            )
    return errors


def integrity_warnings(members: pl.DataFrame, val: pl.LazyFrame, apart: Collection[str] = ()) -> list[str]:
    """What makes the comparison weaker than it looks; empty if nothing was found.

    Args:
        members: rows of `sweep_members`.
        val: the sweep's validation losses by step; read only where runs have no hashes.
        apart: arms that are not compared with the others for their length.
    """
    started = _started(members)
    return [
        *_unequal_lengths(started.filter(~pl.col("arm").is_in(list(apart)))),
        *_pinned_streams(started),
        *equal_first_losses(started, val),
        *_unequal_starts(started),
        *_unequal_first_losses(started, val),
        *_repeated_seeds(started),
        *_flagged(started),
        *_unlike(started.unique("run_id", maintain_order=True)),
    ]


def _started(members: pl.DataFrame) -> pl.DataFrame:
    return members.filter(pl.col("status") != "planned").unique(["arm", "run_id"], maintain_order=True)


def _same_draws(started: pl.DataFrame) -> list[dict[str, Any]]:
    """Runs of one arm with different seeds and the same hash; `is_pinned` where their configs ask for that."""
    return [
        {
            "arm": arm,
            "what": what,
            "seeds": ", ".join(map(str, runs["seed"].unique().sort())),
            "runs": ", ".join(runs["run_id"]),
            "is_pinned": len(_stream_seeds(runs, _STREAMS[column])) == 1,
        }
        for column, what in _HASHES.items()
        for (arm, _), runs in started.drop_nulls(column).group_by("arm", column, maintain_order=True)
        if runs["seed"].n_unique() > 1
    ]


def _stream_seeds(runs: pl.DataFrame, stream: str) -> set[int]:
    """The seeds of one random stream: those set apart for it in the runs' configs, else the runs' own."""
    pins = [json.loads(text or "{}").get("seeds", {}).get(stream) for text in runs["config_json"]]
    return {seed if pin is None else pin for seed, pin in zip(runs["seed"], pins, strict=True)}


def _pinned_streams(started: pl.DataFrame) -> list[str]:
    return [
        f"{row['arm']}: seeds {row['seeds']} have the same {row['what']}, as their configs ask, so they are not "
        f"independent draws of it ({row['runs']})"
        for row in _same_draws(started)
        if row["is_pinned"]
    ]


def _unequal_starts(started: pl.DataFrame) -> list[str]:
    """Arms that start one seed from different weights or data: less of what the seed does cancels in a pair then."""
    return [text for column, what in _HASHES.items() for text in _unequal(started.drop_nulls(column), column, what)]


def _unequal_first_losses(started: pl.DataFrame, val: pl.LazyFrame) -> list[str]:
    """The same, by the losses at step 0 of runs without hashes."""
    return _unequal(first_losses(started, val), "val_loss", "validation loss at step 0")


def _unequal(runs: pl.DataFrame, column: str, what: str) -> list[str]:
    by_seed = runs.drop_nulls("seed").group_by("seed").agg(pl.col(column).n_unique())
    seeds = by_seed.filter(pl.col(column) > 1)["seed"].sort().to_list()
    if not seeds:
        return []
    return [
        f"arms differ in their {what} at seed {', '.join(map(str, seeds))}: pairs by seed share less than they should"
    ]


def _unequal_lengths(started: pl.DataFrame) -> list[str]:
    """Done runs that trained for other numbers of steps, or other numbers of tokens a step, than others did."""
    done = started.filter(pl.col("status") == "done").unique("run_id", maintain_order=True).drop_nulls("steps")
    groups = done.group_by("steps", "tokens").agg(pl.col("arm").unique(maintain_order=True), runs=pl.len())
    if groups.height < 2:
        return []
    lengths = groups.sort("steps", "tokens", nulls_last=True).iter_rows(named=True)
    return [f"runs of unequal length or batch are compared: {'; '.join(map(_length, lengths))}"]


def _length(group: dict[str, Any]) -> str:
    """`500 steps of 65,536 tokens (muon, adamw: 6 runs)`."""
    steps, tokens, arms, runs = group["steps"], group["tokens"], group["arm"], group["runs"]
    each = "" if tokens is None else f" of {tokens / max(1, steps):,.0f} tokens"
    named = ", ".join(arms[:_SHOWN]) + (f" and {len(arms) - _SHOWN:,} more" if len(arms) > _SHOWN else "")
    return f"{steps:,} steps{each} ({named}: {runs:,} {'run' if runs == 1 else 'runs'})"


def _repeated_seeds(started: pl.DataFrame) -> list[str]:
    counts = started.drop_nulls("seed").group_by("arm", "seed", maintain_order=True).len().filter(pl.col("len") > 1)
    return [
        f"{row['arm']}: {row['len']} runs have seed {row['seed']} (other streams differ); their mean stands for it"
        for row in counts.iter_rows(named=True)
    ]


def _flagged(started: pl.DataFrame) -> list[str]:
    """Arms whose optimizer was seen to stop optimizing, by the first of their runs, or left steps out."""
    found = []
    for (arm,), runs in started.group_by("arm", maintain_order=True):
        if skipped := runs["skipped_steps"].sum():
            found.append(f"{arm}: {skipped} steps without update, for losses or gradients that were not finite")
        flagged = runs.drop_nulls("health")
        if flagged.height:
            seeds = ", ".join(map(str, flagged["seed"].unique(maintain_order=True)))
            found.append(
                f"{arm}: {flagged.height} of {runs.height} runs flagged (seed {seeds}): {flagged['health'][0]}"
            )
    return found


def _unlike(runs: pl.DataFrame) -> list[str]:
    found = []
    for column, what in ALIKE.items():
        values = runs[column].value_counts(sort=True)
        if values.height > 1:
            counts = ", ".join(str(count) for count in values["count"])
            found.append(f"runs of {values.height} different {what} are pooled ({counts} runs; column {column})")
    return found
