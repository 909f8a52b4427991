"""What runs took and what of it was in vain, from the `attempts` table: hours, GPU hours and USD."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from analysis.store import Store

BY = ("block", "optimizer", "status", "node", "run")
"""What costs can be summed by."""
_SUMS = ("hours", "gpu_hours", "usd", "lost_hours", "lost_usd")


def costs(store: Store, by: str) -> pl.DataFrame:
    """Attempts, hours, GPU hours and USD of each `by` (one of BY), and what of them was lost; the dearest first.

    Hours of an attempt are from when it took its run over to its last sign of life. Lost is the share for steps that a
    later attempt did again, and all of an attempt that failed, or was lost before it made a step. USD is null where an
    attempt has no price.
    """
    if by not in BY:
        raise ValueError(f"costs are summed by {', '.join(BY)}, not by {by!r}")
    attempts = attempts_with_costs(store).with_columns(run=pl.col("run_id"))
    sums = attempts.group_by(by).agg(pl.len().alias("attempts"), *(_sum(name) for name in _SUMS))
    return sums.sort("usd", "hours", by, descending=[True, True, False], nulls_last=True)


def total(store: Store) -> pl.DataFrame:
    """The same over all, one row; a run that several blocks contain counts once."""
    attempts = attempts_with_costs(store).unique(["run_id", "attempt"])
    return attempts.select(pl.len().alias("attempts"), *(_sum(name) for name in _SUMS))


class SeedCost(NamedTuple):
    """What a run took, all its attempts together."""

    gpu_hours: float
    usd: float | None
    """None where an attempt has no price."""


def cost_per_seed(store: Store, members: pl.DataFrame) -> dict[str, SeedCost]:
    """Arm -> the mean over its done runs that the ledger knows; arms without one are left out.

    Args:
        members: rows of `sweep_members`.
    """
    attempts = store.attempts.unique(["run_id", "attempt"])
    runs = attempts.group_by("run_id").agg(pl.col("gpu_hours").sum(), _sum("usd"))
    done = members.lazy().filter(pl.col("status") == "done").select("arm", "run_id").unique()
    usd = _unless_null("usd", pl.col("usd").mean())
    means = done.join(runs, on="run_id").group_by("arm").agg(pl.col("gpu_hours").mean(), usd)
    return {arm: SeedCost(gpu_hours, usd) for arm, gpu_hours, usd in means.collect().iter_rows()}


def usd_per_run(store: Store) -> dict[str, float]:
    """run_id -> what all its attempts cost together; runs of which an attempt has no price are left out."""
    attempts = store.attempts.unique(["run_id", "attempt"])
    runs = attempts.group_by("run_id").agg(_sum("usd")).drop_nulls("usd").collect()
    return dict(zip(runs["run_id"], runs["usd"], strict=True))


def _sum(name: str) -> pl.Expr:
    return _unless_null(name, pl.col(name).sum())


def _unless_null(name: str, value: pl.Expr) -> pl.Expr:
    """`value` of the column `name`, null where any of its rows is."""
    return pl.when(pl.col(name).is_null().any()).then(None).otherwise(value).alias(name)


def attempts_with_costs(store: Store) -> pl.DataFrame:
    """One row an attempt (and block, in a sweep) with what it took and what of it was lost."""
    attempts = store.attempts.sort("run_id", "attempt").collect()
    if "block" not in attempts.columns:
        attempts = attempts.with_columns(block=pl.lit(None, pl.String), role=pl.lit(None, pl.String))
    runs = store.runs.select("run_id", "optimizer").unique("run_id").collect()
    done = pl.col("step") - pl.col("first_step").fill_null(0)
    taken_up = pl.col("first_step").shift(-1).over("run_id", "block")  # by the next attempt
    again = (pl.col("step") - taken_up).clip(lower_bound=0)
    nothing_kept = (pl.col("status") == "failed") | ((pl.col("status") == "lost") & (done == 0))
    in_vain = pl.when(nothing_kept).then(1.0).when(done > 0).then((again / done).clip(0, 1))
    return attempts.join(runs, on="run_id", how="left", maintain_order="left").with_columns(
        hours=pl.col("seconds") / 3600,
        lost_hours=pl.col("seconds") / 3600 * in_vain.fill_null(0.0),
        lost_usd=pl.col("usd") * in_vain.fill_null(0.0),
    )
