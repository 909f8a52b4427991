"""Checks whether the runs of a sweep may be compared at all; each finding is one sentence for the reader."""

from __future__ import annotations

import polars as pl

_HASHES = {"init_hash": "initial weights", "first_batch_hash": "first batch"}
_POOLED = {
    "device": "devices",
    "environment_json": "environments (versions, threads, platform)",
    "world_size": "numbers of workers",
    "data_hash": "tokenized data sets",
    "commit": "commits of the code",
    "diff_hash": "states of uncommitted changes",
}


def integrity_warnings(members: pl.DataFrame) -> list[str]:
    """What makes the comparison weaker than it looks, from the rows of `sweep_members`; empty if nothing was found."""
    started = members.filter(pl.col("status") != "missing").unique(["arm", "run_id"], maintain_order=True)
    return [
        *_seeds_that_do_not_vary(started),
        *_unequal_starts(started),
        *_repeated_seeds(started),
        *_pooled(started.unique("run_id", maintain_order=True)),
    ]


def _seeds_that_do_not_vary(started: pl.DataFrame) -> list[str]:
    """Runs of one arm with different seeds and the same hash: the seed did not reach that stream."""
    found = []
    for column, what in _HASHES.items():
        groups = started.drop_nulls(column).group_by("arm", column, maintain_order=True).agg("seed", "run_id")
        for row in groups.filter(pl.col("seed").list.n_unique() > 1).iter_rows(named=True):
            seeds = ", ".join(map(str, sorted(row["seed"])))
            found.append(
                f"{row['arm']}: seeds {seeds} have the same {what}, so they are not independent draws of it "
                f"({', '.join(row['run_id'])})"
            )
    return found


def _unequal_starts(started: pl.DataFrame) -> list[str]:
    """Arms that start one seed from different weights or data: pairing by seed then removes less noise."""
    found = []
    for column, what in _HASHES.items():
        by_seed = started.drop_nulls(column).group_by("seed").agg(pl.col(column).n_unique())
        seeds = by_seed.filter(pl.col(column) > 1)["seed"].sort().to_list()
        if seeds:
            found.append(
                f"arms differ in their {what} at seed {', '.join(map(str, seeds))}: "
                "pairs by seed share less than they should"
            )
    return found


def _repeated_seeds(started: pl.DataFrame) -> list[str]:
    counts = started.group_by("arm", "seed", maintain_order=True).len().filter(pl.col("len") > 1)
    return [
        f"{row['arm']}: {row['len']} runs have seed {row['seed']} (other streams differ); their mean stands for it"
        for row in counts.iter_rows(named=True)
    ]


def _pooled(runs: pl.DataFrame) -> list[str]:
    found = []
    for column, what in _POOLED.items():
        values = runs[column].value_counts(sort=True)
        if values.height > 1:
            counts = ", ".join(str(count) for count in values["count"])
            found.append(f"runs of {values.height} different {what} are pooled ({counts} runs; column {column})")
    return found
