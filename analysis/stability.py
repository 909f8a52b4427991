"""How steadily runs began: what is seen of an optimizer before its loss curves tell anything."""

from __future__ import annotations

import math

import polars as pl

EARLY_SHARE = 0.1
"""Of the steps of the longest run: while learning rates warm up, and momenta fill."""


def early_stability(train: pl.LazyFrame, members: pl.DataFrame) -> pl.DataFrame:
    """One row a run that was started, in the order of `members`.

    Args:
        train: rows of the `train` table.
        members: rows of `sweep_members`.
    Returns: `arm`, `run_id`, `seed`, `status`; `early_steps`, the same for all; `rise`, the most that the training loss
        of those steps rose above what it had been, in nats per token; `grad_peak`, the largest gradient norm of those
        steps, and `grad_median`, the median of the later ones; `nonfinite`, rows of the whole run whose loss or
        gradient norm is not; `loss_spikes` and `skipped_steps` of the whole run. Null where it was not measured.
    """
    rows = train.select("run_id", "step", "train_loss", "grad_norm").unique().sort("run_id", "step").collect()
    early_steps = math.ceil(EARLY_SHARE * int(rows["step"].max() or 0))  # type: ignore[arg-type]
    loss, grad, is_early = pl.col("train_loss"), pl.col("grad_norm"), pl.col("step") <= early_steps
    risen = rows.filter(is_early & loss.is_finite()).with_columns(rise=loss - loss.cum_min().over("run_id"))
    found = rows.group_by("run_id").agg(
        grad_peak=grad.filter(is_early & grad.is_finite()).max(),
        grad_median=grad.filter(~is_early & grad.is_finite()).median(),
        nonfinite=(~(loss.is_finite() & grad.is_finite())).sum(),
    )
    started = members.filter(pl.col("status") != "planned").unique(["arm", "run_id"], maintain_order=True)
    about = started.select("arm", "run_id", "seed", "status", "loss_spikes", "skipped_steps")
    about = about.with_columns(early_steps=pl.lit(early_steps))
    for frame in (risen.group_by("run_id").agg(pl.col("rise").max()), found):
        about = about.join(frame, on="run_id", how="left", maintain_order="left")
    return about


def stability_of_arms(runs: pl.DataFrame) -> pl.DataFrame:
    """One row an arm of `early_stability`: the worst of its runs, and sums of what is counted."""
    return runs.group_by("arm", maintain_order=True).agg(
        runs=pl.len(),
        diverged=(pl.col("status") == "diverged").sum(),
        rise=pl.col("rise").max(),
        grad_ratio=(pl.col("grad_peak") / pl.col("grad_median")).max(),
        loss_spikes=pl.col("loss_spikes").sum(),
        skipped_steps=pl.col("skipped_steps").sum(),
        nonfinite=pl.col("nonfinite").sum(),
    )
