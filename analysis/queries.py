"""Questions to the result tables: LazyFrame in, LazyFrame out, no I/O.

A view of a sweep has the rows of a run once in each block that lists it. So each question here first drops rows that
repeat, and what counts is the run, not how often it is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from muon_core.tables import HEALTH, LAYERS, SERIES

At = Literal["final", "best"]
COUNTED = ("done", "running")
"""Statuses of the runs that a mean curve is over."""
DERIVED = {
    "effective_rank_share": pl.col("effective_rank") / pl.min_horizontal("rows", "cols"),
    "stable_rank_share": pl.col("stable_rank") / pl.min_horizontal("rows", "cols"),
}
"""Layer metrics computed from columns: ranks as a share of full rank, to compare matrices of different shape."""
DERIVED_UNITS = {name: f"{name.removesuffix('_share')} / min(rows, cols)" for name in DERIVED}
_NOT_MEASURED = {"run_id", "attempt", "seq", "step", "tokens", "layer", "projection", "rows", "cols"}


def metric_table(metric: str) -> str:
    """Name of the table that holds `metric` of a whole run, `val` or `train`. Raises ValueError naming the metrics."""
    names = {column: table for table in ("train", "val") for column in SERIES[table].columns}
    names = {column: table for column, table in names.items() if column not in _NOT_MEASURED}
    if metric not in names:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(names)}")
    return names[metric]


def metric_unit(metric: str) -> str:
    """Unit or definition of a column of `val`, `train` or `layers`, as its table states it."""
    columns = {name: unit for table in SERIES.values() for name, (_, unit) in table.columns.items()}
    return (columns | DERIVED_UNITS)[metric]


def layer_metrics() -> list[str]:
    """What `layer_cells` can show: metrics of single matrices, of the tables `layers` and `health`."""
    return [name for table in (LAYERS, HEALTH) for name in table.columns if name not in _NOT_MEASURED] + list(DERIVED)


def check_layer_metric(metric: str) -> None:
    """Raises ValueError naming the layer metrics for one that `layer_cells` cannot show."""
    if metric not in layer_metrics():
        raise ValueError(f"unknown layer metric {metric!r}; choose one of {', '.join(layer_metrics())}")


def layer_table(metric: str) -> str:
    """Name of the table that holds a layer metric, `layers` or `health`. Raises ValueError for an unknown one."""
    check_layer_metric(metric)
    return HEALTH.name if metric in HEALTH.columns else LAYERS.name


def value_per_run(
    series: pl.LazyFrame, metric: str, *, at: At = "final", goal: Literal["min", "max"] = "min"
) -> pl.LazyFrame:
    """`run_id`, `step`, `value`: `metric` at a run's last row that has one, or its best finite row."""
    rows = series.select("run_id", "step", value=pl.col(metric)).drop_nulls("value").unique()
    if at == "best":
        rows = rows.filter(pl.col("value").is_finite()).sort("value", "step", descending=[goal == "max", False])
        return rows.group_by("run_id", maintain_order=True).first()
    return rows.sort("step").group_by("run_id", maintain_order=True).last()


Over = Literal["tokens", "elapsed_s"]
"""What a curve may be over, beside steps: training tokens, or seconds since the run's start."""


def curves(series: pl.LazyFrame, members: pl.LazyFrame, metric: str, over: Over = "tokens") -> pl.LazyFrame:
    """`metric` over time for every run of `members` (`run_id`, `arm`, `optimizer`, `seed`, `status`), sorted."""
    rows = series.select("run_id", "step", over, value=pl.col(metric)).drop_nulls(["value", over]).unique()
    who = members.select("run_id", "arm", "optimizer", "seed", "status")
    return who.join(rows, on="run_id", how="inner").sort("arm", "seed", "run_id", "step")


def mean_over_seeds(curves: pl.LazyFrame, over: Over = "tokens") -> pl.LazyFrame:
    """Mean and sample deviation of `value` over the seeds of an arm, at the steps all of its counted runs reached.

    Runs that diverged, failed or were stopped do not count: a mean that loses a seed half way would jump. `sd` is null
    for one seed; `n` counts the seeds. Seconds are a mean, as seeds do not take the same.
    """
    arm = ["arm", "optimizer"]
    rows = curves.filter(pl.col("status").is_in(COUNTED)).with_columns(seeds=pl.col("run_id").n_unique().over(arm))
    points = rows.group_by(*arm, "step").agg(
        pl.col(over).max() if over == "tokens" else pl.col(over).mean(),
        mean=pl.col("value").mean(),
        sd=pl.col("value").std(),
        n=pl.len(),
        seeds=pl.col("seeds").first(),
    )
    return points.filter(pl.col("n") == pl.col("seeds")).drop("seeds").sort(*arm, "step")


def difference_to_baseline(curves: pl.LazyFrame, baseline: str) -> pl.LazyFrame:
    """`value` minus the baseline arm's at the same seed and step, for the other arms, in the columns of `curves`."""
    is_baseline = pl.col("arm") == baseline
    counted = curves.filter(is_baseline & pl.col("status").is_in(COUNTED))
    base = counted.group_by("seed", "step").agg(baseline=pl.col("value").mean())
    pairs = curves.filter(~is_baseline).join(base, on=["seed", "step"], how="inner")
    difference = pairs.with_columns(value=pl.col("value") - pl.col("baseline")).drop("baseline")
    return difference.sort("arm", "seed", "run_id", "step")


def layer_cells(table: pl.LazyFrame, members: pl.DataFrame, metrics: Sequence[str]) -> pl.LazyFrame:
    """Cells of layer x step heatmaps: `run_id`, `projection`, `layer`, `step` and a column a metric, each row once.

    Args:
        table: the one that holds `metrics`; those it lacks, as plain columns beside them may be, are left out.
        members: rows of `sweep_members`, or any frame with the `run_id` of the runs to show.
    """
    known = table.collect_schema().names()
    values = [DERIVED[name].alias(name) if name in DERIVED else pl.col(name) for name in metrics]
    keys = ["run_id", "block"] if "block" in known and "block" in members.columns else ["run_id"]
    runs = members.unique("run_id", keep="first", maintain_order=True).select(keys)
    of_runs = table.filter(pl.col("run_id").is_in(runs["run_id"].implode()))  # unlike a join, it spares reading others
    cells = of_runs.join(runs.lazy(), on=keys, how="semi").select("run_id", "projection", "layer", "step", *values)
    return cells if len(keys) == 2 else cells.unique()  # in a view, one block has each row of a run once


def shared_scale(cells: pl.LazyFrame, low: float = 0.01, high: float = 0.99) -> pl.LazyFrame:
    """One colour scale over all `cells`: `low`, `high` quantiles of the finite values, `clipped` the share beyond."""
    value = pl.col("value")
    finite = cells.filter(value.is_finite())
    bounds = finite.with_columns(low=value.quantile(low, "nearest"), high=value.quantile(high, "nearest"))
    clipped = (value < pl.col("low")) | (value > pl.col("high"))
    return bounds.select(pl.col("low").first(), pl.col("high").first(), clipped=clipped.mean())
