"""How far runs that differ only in seed are apart, taken at every cell: a projection's layer at a tracked step.

A spread that is taken after an average over layers is of something else, for layers that part in opposite directions
cancel in it. So here the standard deviation between seeds comes first, at each cell of each arm, and only then are the
cells of a projection summed up, by their quantiles. Two arms are compared over the cells that both have. No test goes
with it: cells of one run move together, so thousands of them are far fewer draws.

An alignment of an update or a momentum without a top 5 is chance (docs/metrics.md). Such values are left out and
counted, and where one seed or none is left the cell has no spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from analysis import queries
from analysis.queries import COUNTED
from analysis.store import Store
from muon_core.tables import PROJECTIONS

METRICS = ("update_alignment", "right_alignment", "momentum_left_alignment", "effective_rank")
"""What a report looks at."""
ILL_POSED = {
    "update_alignment": "ill_posed",
    "left_alignment": "ill_posed",
    "right_alignment": "ill_posed",
    "momentum_left_alignment": "momentum_ill_posed",
    "momentum_right_alignment": "momentum_ill_posed",
}
"""Metric -> the column that says where it has no meaning."""
CELL = ("projection", "layer", "step")


@dataclass(frozen=True, slots=True)
class Volatility:
    """The spread between seeds of one layer metric."""

    metric: str
    is_relative: bool
    """Whether `spread` is a share of the cell's mean; alignments, between 0 and 1, are compared as they are."""
    cells: pl.DataFrame
    """A row an arm and cell that was measured, sorted: `arm`, `optimizer`, `projection`, `layer`, `step`; `n` seeds
    that count, their `mean` and sample deviation `sd` (null for one), `spread`; values that were left out as
    `ill_posed` or `not_finite`."""
    untold: tuple[str, ...]
    """Arms whose rows do not tell where they are ill-posed, as imported ones; they are taken as they are."""

    @property
    def arms(self) -> list[str]:
        """Those with a spread at some cell, in the sweep's order."""
        return self.cells.drop_nulls("sd")["arm"].cast(pl.String).unique(maintain_order=True).to_list()


def volatility(view: Store, members: pl.DataFrame, metric: str) -> Volatility:
    """The spread of `metric` between the runs of each arm that are done or running.

    Args:
        members: rows of `sweep_members`. A run that several arms list is taken for the first.

    Raises: ValueError for an unknown metric.
    """
    queries.check_layer_metric(metric)
    counted = members.filter(pl.col("status").is_in(COUNTED)).unique("run_id", keep="first", maintain_order=True)
    cells = _cells(_values(view.layers, counted, metric), counted)
    is_relative = "alignment" not in metric or metric.endswith("_gap")
    spread = pl.col("sd") / pl.col("mean").abs() if is_relative else pl.col("sd")
    untold = cells.filter(pl.col("untold") > 0)["arm"].cast(pl.String).unique(maintain_order=True)
    cells = cells.with_columns(spread=pl.when(spread.is_finite()).then(spread)).drop("untold")
    return Volatility(metric, is_relative, cells, tuple(untold))


def _values(layers: pl.LazyFrame, members: pl.DataFrame, metric: str) -> pl.DataFrame:
    """A row a run and cell: `arm`, a number, `value` where it counts, `ill_posed`, `not_finite` and `untold`."""
    arms = members["arm"].unique(maintain_order=True)
    number = pl.col("run_id").cast(pl.Enum(members["run_id"]), strict=False).to_physical()
    of_arm = members["arm"].cast(pl.Enum(arms)).to_physical()
    value = queries.DERIVED.get(metric, pl.col(metric)).cast(pl.Float64)
    told = pl.col(ILL_POSED[metric]) if metric in ILL_POSED else pl.lit(value=False)
    # A view of a sweep has a run's rows once in each block that lists it.
    twice = [pl.col("block")] if "block" in layers.collect_schema() else []
    rows = layers.select(
        *twice,
        pl.col("projection").cast(pl.Enum(PROJECTIONS), strict=False),
        "layer",
        "step",
        run=number,
        value=value,
        ill_posed=told.fill_null(value=False),
        untold=told.is_null(),
    ).filter(pl.col("run").is_not_null(), pl.col("value").is_not_null())
    if twice:
        blocks = members.select("block", run=pl.int_range(pl.len(), dtype=pl.UInt32))
        rows = rows.join(blocks.lazy(), on=["run", "block"], how="semi").drop("block")
    found = rows.collect()
    is_finite = pl.col("value").is_finite()
    return found.with_columns(
        arm=of_arm.gather(found["run"]),
        value=pl.when(is_finite & ~pl.col("ill_posed")).then("value"),
        not_finite=~is_finite & ~pl.col("ill_posed"),
    )


def _cells(values: pl.DataFrame, members: pl.DataFrame) -> pl.DataFrame:
    """One row an arm and cell, sorted by the sweep's order of arms."""
    arms = members.select("arm", "optimizer").unique("arm", keep="first", maintain_order=True)
    value = pl.col("value")
    cells = values.group_by("arm", *CELL).agg(
        n=value.count(),
        mean=value.mean(),
        sd=value.std(),
        ill_posed=pl.col("ill_posed").sum(),
        not_finite=pl.col("not_finite").sum(),
        untold=pl.col("untold").sum(),
    )
    cells = cells.sort("arm", *CELL)
    optimizers = arms["optimizer"].cast(pl.Categorical).gather(cells["arm"])
    names = pl.Series(arms["arm"], dtype=pl.Enum(arms["arm"])).gather(cells["arm"])
    return cells.with_columns(names.alias("arm"), optimizer=optimizers).select(
        "arm", "optimizer", pl.exclude("arm", "optimizer")
    )


def table(info: Volatility, *by: str) -> pl.DataFrame:
    """The distribution over the cells of each `by`, of which there may be `arm`, `optimizer`, `projection` and `layer`.

    Of an optimizer with several arms it is over the cells of all, each the spread within its arm.

    Returns: `by`; `cells` with a spread, `n_min` and `n_max`, the seeds at them; `q10`, `q25`, `median`, `q75`, `q90`
        of the spread; `median_sd` and `mean_variance` of the metric itself; `cells_left_out`, those without a spread;
        `ill_posed` and `not_finite` values.
    """
    n, spread = pl.col("n").filter(pl.col("sd").is_not_null()), pl.col("spread")
    quantiles = {"q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}
    return info.cells.group_by(by, maintain_order=True).agg(
        cells=pl.col("sd").count(),
        n_min=n.min(),
        n_max=n.max(),
        **{name: spread.quantile(share, "linear") for name, share in quantiles.items()},
        median_sd=pl.col("sd").median(),
        mean_variance=(pl.col("sd") ** 2).mean(),
        cells_left_out=pl.col("sd").null_count(),
        ill_posed=pl.col("ill_posed").sum(),
        not_finite=pl.col("not_finite").sum(),
    )


def compare(info: Volatility, baseline: str) -> pl.DataFrame:
    """Each other arm beside `baseline`, over the cells where both have a spread, a row a projection.

    Returns: `arm`, `projection`, `cells`, the fewest seeds at them `n` and `baseline_n`; `median` and `baseline_median`
        spread; `ratio` of these, null where both are 0; `share` of the cells where the arm's is larger.
    """
    columns = ["arm", *CELL, "n", "spread"]
    with_spread = info.cells.select(columns).drop_nulls("spread")
    base = with_spread.filter(pl.col("arm") == baseline).drop("arm")
    others = with_spread.filter(pl.col("arm") != baseline)
    pairs = others.join(base, on=CELL, suffix="_base", maintain_order="left")
    found = pairs.group_by("arm", "projection", maintain_order=True).agg(
        cells=pl.len(),
        n=pl.col("n").min(),
        baseline_n=pl.col("n_base").min(),
        median=pl.col("spread").median(),
        baseline_median=pl.col("spread_base").median(),
        share=(pl.col("spread") > pl.col("spread_base")).mean(),
    )
    ratio = pl.col("median") / pl.col("baseline_median")
    found = found.with_columns(pl.col("arm").cast(pl.String), pl.col("projection").cast(pl.String), ratio=ratio)
    return found.with_columns(pl.when(~pl.col("ratio").is_nan()).then("ratio"))
