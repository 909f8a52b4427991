"""A sweep's curves as one table of plain columns, which other programs read: a row a run, step and kind of measurement.

Training and validation of one step are two rows, as each was measured at a time of its own.
"""

from __future__ import annotations

import polars as pl

from analysis.store import Store
from analysis.summary import members_of

RUN = ("run", "arm", "optimizer", "seed")
"""What tells a row's run."""
METRICS = {
    "train": ("train_loss", "lr", "grad_norm", "step_time_s", "tokens_per_s"),
    "val": ("val_loss", "val_accuracy", "val_perplexity"),
}
SHARED = ("step", "tokens", "elapsed_s")


def history(view: Store) -> pl.LazyFrame:
    """RUN, SHARED and every column of METRICS, by run, step and then training before validation.

    A column of 32 bits has the shortest decimal number that gives it again, so that 0.02 stays 0.02. `arm` is what the
    sweep calls it. Raises ValueError for a store not narrowed to a sweep.
    """
    members = members_of(view).unique("run_id", keep="first", maintain_order=True)
    runs = members.lazy().select("run_id", "arm", "optimizer", "seed").with_row_index("_run")
    tables = [
        _exact(view.table(name).select("run_id", *SHARED, *columns)).with_columns(_table=pl.lit(i)).unique()
        for i, (name, columns) in enumerate(METRICS.items())
    ]
    rows = pl.concat(tables, how="diagonal").join(runs, on="run_id").sort("_run", "step", "_table")
    return rows.select(pl.col("run_id").alias("run"), *RUN[1:], *SHARED, *(c for t in METRICS.values() for c in t))


def _exact(rows: pl.LazyFrame) -> pl.LazyFrame:
    single = [name for name, dtype in rows.collect_schema().items() if dtype == pl.Float32]
    return rows.with_columns(pl.col(single).cast(pl.String).cast(pl.Float64))
