"""The runs of a sweep, started or not, one row each, with the name their arm goes by in tables and figures."""

from __future__ import annotations

import polars as pl

from muon_core.statuses import STATUSES, STOPPED_EARLY
from muon_core.store.sweeps import SweepRecord

MISSING = "missing"
"""Status of a run that the sweep lists and nobody has started."""
EARLY = "stopped early"
"""Status of a run that was ended for doing worse than others."""
ALL_STATUSES = (*STATUSES, EARLY, MISSING)


def sweep_members(record: SweepRecord, runs: pl.DataFrame) -> pl.DataFrame:
    """`block`, `role`, `arm` and every column of `runs` for each run the sweep lists, in its order.

    A run nobody has started has status `missing` and nulls, one that early stopping ended `stopped early`. `arm` is
    what the sweep calls the arm in that block.
    """
    known = runs.drop("block", "role", strict=False).unique("run_id", maintain_order=True)
    names = record.arm_names()
    planned = pl.DataFrame(
        [(run.run_id, run.block, run.role, names[run.block, run.arm]) for run in record.runs],
        schema={"run_id": pl.String, "block": pl.String, "role": pl.String, "arm": pl.String},
        orient="row",
    )
    joined = planned.join(known.drop("arm"), on="run_id", how="left", maintain_order="left")
    is_early = (pl.col("status") == "stopped") & pl.col("error").str.starts_with(STOPPED_EARLY)
    status = pl.when(is_early).then(pl.lit(EARLY)).otherwise(pl.col("status").fill_null(MISSING))
    return joined.with_columns(status=status)
