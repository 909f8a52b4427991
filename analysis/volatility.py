"""How far runs that differ only in seed are apart, taken at every cell: a projection's layer at a tracked step.

A spread that is taken after an average over layers is of something else, for layers that part in opposite directions
cancel in it. So here the standard deviation between seeds comes first, at each cell of each arm, and only then are the
cells of a projection summed up, by their quantiles. Two arms are compared over the cells that both have. No test goes
with it: cells of one run move together, so thousands of them are far fewer draws.

An alignment of an update or a momentum without a top 5 is chance (docs/metrics.md). Such values are left out and
counted, and where one seed or none is left the cell has no spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analysis import queries
from analysis.queries import COUNTED
from analysis.store import Store
from muon_core.tables import KNOWN_PROJECTIONS, projection_order

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
    """`volatilities` of one metric."""
    return volatilities(view, members, (metric,))[0]


def volatilities(view: Store, members: pl.DataFrame, metrics: Sequence[str]) -> list[Volatility]:
    """The spread of each of `metrics` between the runs of each arm that are done or running.

    Args:
        members: rows of `sweep_members`. A run that several arms list is taken for the first.

    Raises: ValueError for an unknown metric.
    """
    counted = members.filter(pl.col("status").is_in(COUNTED)).unique("run_id", keep="first", maintain_order=True)
    tables: dict[str, list[str]] = {}
    for metric in metrics:
        tables.setdefault(queries.layer_table(metric), []).append(metric)
    found: dict[str, Volatility] = {}
    for name, own in tables.items():
        names: tuple[str, ...] = KNOWN_PROJECTIONS
        rows = _rows(view.table(name), counted, own, names)
        if rows["projection"].null_count():  # layers of a Hugging Face model that go by their own names
            found_names = view.table(name).select(pl.col("projection").unique()).collect()["projection"].drop_nulls()
            names = tuple(sorted({*names, *found_names}, key=projection_order))
            rows = _rows(view.table(name), counted, own, names)
        cells = _cells(rows, counted, own, names)
        found |= {metric: _of_metric(cells, metric) for metric in own}
    return [found[metric] for metric in metrics]


def _rows(
    table: pl.LazyFrame, members: pl.DataFrame, metrics: Sequence[str], projections: Sequence[str]
) -> pl.DataFrame:
    """A row a run and cell: numbers of arm and of projection among `projections`, null for one that is not, `layer`,
    `step`, and four columns for each of `metrics`.

    These are the value, null where it does not count, and whether it is `ill_posed`, `not_finite` or `untold`.
    """
    flags = [ILL_POSED[metric] for metric in metrics if metric in ILL_POSED]
    cells = queries.layer_cells(table, members, list(dict.fromkeys([*metrics, *flags])))
    rows = cells.with_columns(
        pl.col("projection").cast(pl.Enum(projections), strict=False).to_physical().cast(pl.UInt64),
        run=pl.col("run_id").cast(pl.Enum(members["run_id"])).to_physical(),
    )
    columns = [column for metric in metrics for column in _told(metric)]
    found = rows.select("projection", "layer", "step", "run", *columns).collect()
    arms = members["arm"].cast(pl.Enum(members["arm"].unique(maintain_order=True))).to_physical()
    return found.with_columns(arm=arms.gather(found["run"]).cast(pl.UInt64)).drop("run")


def _told(metric: str) -> list[pl.Expr]:
    value = pl.col(metric).cast(pl.Float64)
    flag = pl.col(ILL_POSED[metric]) if metric in ILL_POSED else pl.lit(value=False)
    is_known, is_ill_posed = value.is_not_null(), flag.fill_null(value=False)
    return [
        pl.when(value.is_finite() & ~is_ill_posed).then(value).alias(metric),
        (is_known & is_ill_posed).alias(f"{metric} ill_posed"),
        (~value.is_finite() & ~is_ill_posed).fill_null(value=False).alias(f"{metric} not_finite"),
        (is_known & flag.is_null()).alias(f"{metric} untold"),
    ]


def _cells(
    rows: pl.DataFrame, members: pl.DataFrame, metrics: Sequence[str], projections: Sequence[str]
) -> pl.DataFrame:
    """One row an arm and cell, sorted by the sweep's order of arms; for each metric what `Volatility.cells` has of it.

    Cells are told apart by one number, which is several times as fast as by four columns.
    """
    num_layers, num_steps = (int(rows[name].max() or 0) + 1 for name in ("layer", "step"))  # type: ignore[arg-type]
    place = (pl.col("arm") * len(projections) + pl.col("projection")) * num_layers + pl.col("layer").cast(pl.UInt64)
    marked = rows.with_columns(cell=place * num_steps + pl.col("step").cast(pl.UInt64))
    cells = marked.group_by("cell").agg(*(expr for metric in metrics for expr in _summed(metric))).sort("cell")
    matrix, cell = pl.col("cell") // num_steps, pl.col("cell")
    number, projection = matrix // num_layers // len(projections), matrix // num_layers % len(projections)
    arms = members.select("arm", "optimizer").unique("arm", keep="first", maintain_order=True)
    numbers = cells.select(number=number)["number"]
    kinds = cells.select(kind=projection)["kind"]
    return cells.select(
        pl.Series("arm", arms["arm"], dtype=pl.Enum(arms["arm"])).gather(numbers),
        arms["optimizer"].cast(pl.Categorical).gather(numbers),
        pl.Series("projection", projections, dtype=pl.Enum(projections)).gather(kinds),
        (matrix % num_layers).cast(pl.Int32).alias("layer"),
        (cell % num_steps).cast(pl.Int64).alias("step"),
        pl.exclude("cell"),
    )


def _summed(metric: str) -> list[pl.Expr]:
    value = pl.col(metric)
    return [
        value.count().alias(f"{metric} n"),
        value.mean().alias(f"{metric} mean"),
        value.std().alias(f"{metric} sd"),
        *(pl.col(f"{metric} {kind}").sum() for kind in ("ill_posed", "not_finite", "untold")),
    ]


def _of_metric(cells: pl.DataFrame, metric: str) -> Volatility:
    """What `cells` have of `metric`, where it was measured."""
    of_it = {f"{metric} {name}": name for name in ("n", "mean", "sd", "ill_posed", "not_finite", "untold")}
    own = cells.select("arm", "optimizer", *CELL, *of_it).rename(of_it)
    own = own.filter(pl.sum_horizontal("n", "ill_posed", "not_finite") > 0)
    is_relative = "alignment" not in metric or metric.endswith("_gap")
    spread = pl.col("sd") / pl.col("mean").abs() if is_relative else pl.col("sd")
    untold = own.filter(pl.col("untold") > 0)["arm"].cast(pl.String).unique(maintain_order=True)
    own = own.with_columns(spread=pl.when(spread.is_finite()).then(spread)).drop("untold")
    return Volatility(metric, is_relative, own, tuple(untold))


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

    Of fewer seeds a deviation is smaller as a rule, so where both have equally many at half of these cells or more,
    only those count.

    Returns: `arm`, `projection`, `cells`; the fewest and most seeds at them `n`, `n_max`, and the fewest of the
        baseline, `baseline_n`; `median` and `baseline_median` spread; `ratio` of these, null where both are 0; `share`
        of the cells where the arm's is larger.
    """
    with_spread = info.cells.select("arm", *CELL, "n", "spread").drop_nulls("spread")
    base = with_spread.filter(pl.col("arm") == baseline).drop("arm")
    others = with_spread.filter(pl.col("arm") != baseline)
    pairs = others.join(base, on=CELL, suffix="_base", maintain_order="left")
    alike = pl.col("n") == pl.col("n_base")
    pairs = pairs.filter(alike | (alike.mean().over("arm", "projection") < 0.5))
    found = pairs.group_by("arm", "projection", maintain_order=True).agg(
        cells=pl.len(),
        n=pl.col("n").min(),
        n_max=pl.col("n").max(),
        baseline_n=pl.col("n_base").min(),
        median=pl.col("spread").median(),
        baseline_median=pl.col("spread_base").median(),
        share=(pl.col("spread") > pl.col("spread_base")).mean(),
    )
    ratio = pl.col("median") / pl.col("baseline_median")
    found = found.with_columns(pl.col("arm").cast(pl.String), pl.col("projection").cast(pl.String), ratio=ratio)
    return found.with_columns(pl.when(~pl.col("ratio").is_nan()).then("ratio"))
