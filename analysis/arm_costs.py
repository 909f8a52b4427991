"""What each arm took: hours and dollars planned, spent and lost to failures; speed, where time went, peak memory."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.costs import attempts_with_costs
from analysis.store import Store
from muon_core.spelling import counted

_SUMS = ("hours", "gpu_hours", "usd", "lost_hours", "lost_usd")
_DIED = ("failed", "lost")
SHARES = ("data", "optimizer", "tracking", "evaluation")
"""Parts of a run's seconds that `arm_speeds` has as `<part>_share`."""


def arm_costs(view: Store, members: pl.DataFrame) -> pl.DataFrame:
    """A row an arm in the sweep's order, as `analysis.costs` counts it.

    A run that arms of several blocks list counts in each, so rows may add up to more than `analysis.costs.total`.

    Returns: `arm`; `runs` asked for and `done`; `attempts`, and of these `deaths`, which failed or were lost; `hours`,
        `gpu_hours` and `usd` spent, `lost_hours` and `lost_usd` in vain, null for an arm without an attempt in the
        ledger, dollars also where an attempt has no price; `planned_hours` and `planned_usd`, what all runs asked for
        take if none dies, by the mean of those that are done; null where none is.
    """
    asked = members.unique(["arm", "run_id"], keep="first", maintain_order=True)
    arms = asked.group_by("arm", maintain_order=True).agg(runs=pl.len(), done=(pl.col("status") == "done").sum())
    attempts = attempts_with_costs(view)
    rows = asked.select("arm", "block", "run_id", run_status="status").join(attempts, on=["run_id", "block"])
    spent = rows.group_by("arm").agg(
        attempts=pl.len(),
        deaths=pl.col("status").is_in(_DIED).sum(),
        **{name: _unless_null(name) for name in _SUMS},
    )
    kept = (
        rows.filter(pl.col("run_status") == "done")
        .group_by("arm", "run_id")
        .agg(
            hours=pl.col("hours").sum() - pl.col("lost_hours").sum(), usd=_unless_null("usd") - _unless_null("lost_usd")
        )
    )
    each = kept.group_by("arm").agg(
        pl.col("hours").mean(), usd=pl.when(pl.col("usd").is_not_null().all()).then(pl.col("usd").mean())
    )
    planned = {f"planned_{name}": pl.col("runs") * pl.col(f"{name}_each") for name in ("hours", "usd")}
    frame = arms.join(spent, on="arm", how="left", maintain_order="left")
    frame = frame.join(each, on="arm", how="left", maintain_order="left", suffix="_each").with_columns(**planned)
    return frame.with_columns(pl.col("attempts", "deaths").fill_null(0)).drop("hours_each", "usd_each")


def arm_speeds(view: Store, members: pl.DataFrame) -> pl.DataFrame:
    """A row an arm in the sweep's order, over its runs that are done; what was not measured is null.

    Returns: `arm`; `runs`; `step_time_s`, the mean over runs of the median logged step, `step_time_low` and
        `step_time_high`, of the fastest and the slowest run; `tokens_per_s` and `mfu` likewise, as the `train` table
        has them; `<part>_share` for SHARES, the mean over runs of the part's seconds over `wall_s`; `wall_s`, mean of
        the whole run; `peak_memory_bytes`, the largest of a worker; `device`, or several.
    """
    done = members.filter(pl.col("status") == "done").unique(["arm", "run_id"], keep="first", maintain_order=True)
    ids = done["run_id"].unique().to_list()
    of_step = ("step_time_s", "tokens_per_s", "mfu")
    rows = view.train.filter(pl.col("run_id").is_in(ids)).select("run_id", "step", *of_step).unique()
    steps = rows.group_by("run_id").agg(pl.col(of_step).cast(pl.Float64).median()).collect()
    # `runs` has speeds of its own, over all steps; those of the median step leave out compilation and warm-up.
    known = done.drop("tokens_per_s", "mfu").join(steps, on="run_id", how="left", maintain_order="left")
    wall = pl.when(pl.col("wall_s") > 0).then(pl.col("wall_s"))
    shares = {f"{part}_share": (pl.col(f"{part}_s") / wall).mean() for part in SHARES}
    found = known.group_by("arm", maintain_order=True).agg(
        pl.col(*of_step, "wall_s").mean(),
        pl.col("peak_memory_bytes").max(),
        runs=pl.len(),
        step_time_low=pl.col("step_time_s").min(),
        step_time_high=pl.col("step_time_s").max(),
        device=pl.col("device").drop_nulls().unique(maintain_order=True).str.join(", ").replace("", None),
        **shares,
    )
    order = members.select("arm").unique(maintain_order=True)
    columns = ("arm", "runs", "step_time_s", "step_time_low", "step_time_high", "tokens_per_s", "mfu", *shares)
    found = order.join(found, on="arm", how="left", maintain_order="left")
    return found.select(*columns, "wall_s", "peak_memory_bytes", "device").with_columns(pl.col("runs").fill_null(0))


def cost_sentences(costs: pl.DataFrame, total: pl.DataFrame, budget_usd: float | None = None) -> list[str]:
    """What the sweep took and lost, then an arm a sentence.

    Args:
        costs: as `arm_costs` gives it.
        total: as `analysis.costs.total` gives it, a run of several blocks counted once.
        budget_usd: the limit in the sweep file.
    """
    (row,) = total.to_dicts()
    if not row["attempts"]:
        return ["The ledger has no attempt of these runs, so it is not known what they took."]
    limit = "" if budget_usd is None else f" of a budget of {budget_usd:,.4g} USD"
    first = (
        f"Spent {_hours(row['hours'])}, {row['gpu_hours']:,.3g} GPU hours and {_usd(row['usd'])}{limit} in "
        f"{counted(row['attempts'], 'attempt')}; {_hours(row['lost_hours'])} and {_usd(row['lost_usd'])} of it in vain."
    )
    return [first, *(_arm_sentence(arm) for arm in costs.iter_rows(named=True) if arm["attempts"])]


def _arm_sentence(row: dict[str, Any]) -> str:
    runs = counted(row["runs"], "run")
    parts = [f"{row['arm']}: {_hours(row['hours'])} and {_usd(row['usd'])} for {row['done']} of {runs}"]
    if row["planned_hours"] is not None:
        parts.append(f"{_hours(row['planned_hours'])} and {_usd(row['planned_usd'])} if none dies")
    if row["deaths"]:
        died = f"{counted(row['deaths'], 'attempt')} died"
        parts.append(f"{died}, {_hours(row['lost_hours'])} and {_usd(row['lost_usd'])} in vain")
    return f"{'; '.join(parts)}."


def _hours(value: float) -> str:
    return f"{value:,.3g} h"


def _usd(value: float | None) -> str:
    return "dollars unknown" if value is None else f"{value:,.4g} USD"


def _unless_null(name: str) -> pl.Expr:
    return pl.when(pl.col(name).is_not_null().all()).then(pl.col(name).sum())
