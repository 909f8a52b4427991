"""The runs of a sweep, started or not, one row each, with the name their arm goes by in tables and figures."""

from __future__ import annotations

from collections import Counter

import polars as pl

from muon_core.store.sweeps import SweepRecord, SweepRun
from muon_core.tables import STATUSES

MISSING = "missing"
"""Status of a run that the sweep lists and nobody has started."""
ALL_STATUSES = (*STATUSES, MISSING)


def sweep_members(record: SweepRecord, runs: pl.DataFrame) -> pl.DataFrame:
    """`block`, `role`, `arm` and every column of `runs` for each run the sweep lists, in its order.

    A run nobody has started has status `missing` and nulls. `arm` is readable and names one arm of one block.
    """
    known = runs.drop("block", "role", strict=False).unique("run_id", maintain_order=True)
    labels = dict(known.select("arm_id", "arm").drop_nulls().iter_rows())
    names = arm_names(record.runs, labels)
    planned = pl.DataFrame(
        [(run.run_id, run.block, run.role, names[run.block, run.arm]) for run in record.runs],
        schema={"run_id": pl.String, "block": pl.String, "role": pl.String, "arm": pl.String},
        orient="row",
    )
    joined = planned.join(known.drop("arm"), on="run_id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("status").fill_null(MISSING))


def arm_names(runs: tuple[SweepRun, ...], labels: dict[str, str]) -> dict[tuple[str, str], str]:
    """(block, arm) -> the shortest name that no other arm of the sweep has.

    That is what the sweep calls the arm; of a sweep that only knows its arm_id, the readable part, from `labels`. Arms
    that share it have their block before it, and, if that is not enough, the arm_id.
    """
    names = {(run.block, run.arm): labels.get(run.arm, run.arm) for run in runs}
    for whole in (False, True):
        taken = Counter(names.values())
        names = {
            (block, arm): name if taken[name] == 1 else f"{block}: {arm if whole else labels.get(arm, arm)}"
            for (block, arm), name in names.items()
        }
    assert len(set(names.values())) == len(names), "a block and an arm together are unique"
    return names
