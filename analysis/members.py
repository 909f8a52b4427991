"""The runs of a sweep, started or not, one row each, with the name their arm goes by in tables and figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from analysis.store import Store
from muon_core.statuses import MEANINGS, record_told, status_told
from muon_core.store.sweeps import SweepRecord, SweepRun

ALL_STATUSES = tuple(word for word in MEANINGS if word != "left out")
"""What a run may be called by whoever knows the store alone."""


def sweep_members(record: SweepRecord, runs: pl.DataFrame, alive: Collection[str] = ()) -> pl.DataFrame:
    """`block`, `role`, `arm` and every column of `runs` for each run the sweep lists, in its order.

    A run nobody has started has nulls. `status` is what `muon_core.statuses` tells of it, `arm` what the sweep calls
    the arm in that block.

    Args:
        alive: run_id of those that somebody trains now.
    """
    known = runs.drop("block", "role", strict=False).unique("run_id", maintain_order=True)
    names = record.arm_names()
    planned = pl.DataFrame(
        [(run.run_id, run.block, run.role, names[run.block, run.arm]) for run in record.runs],
        schema={"run_id": pl.String, "block": pl.String, "role": pl.String, "arm": pl.String},
        orient="row",
    )
    joined = planned.join(known.drop("arm"), on="run_id", how="left", maintain_order="left")
    return tell_statuses(joined, alive)


def view_of_run(store: Store, run: Mapping[str, Any]) -> Store:
    """`store` narrowed to one run, a row of the `runs` table, as if a sweep without a file listed it alone."""
    listed = SweepRun(
        run_id=run["run_id"], block="run", role="candidate", arm=run["arm"] or run["run_id"], seed=run["seed"]
    )
    return replace(store.run(listed.run_id), record=SweepRecord(sweep=listed.run_id, runs=(listed,)))


def tell_statuses(runs: pl.DataFrame, alive: Collection[str]) -> pl.DataFrame:
    """`runs` with `status`, as the store records it or null, put as `muon_core.statuses` tells it."""
    stored = zip(runs["run_id"], runs["status"], runs["error"], strict=True)
    told = [status_told(record_told(status, error), alive=run_id in alive) for run_id, status, error in stored]
    return runs.with_columns(status=pl.Series(told, dtype=pl.String))
