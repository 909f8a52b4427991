"""The runs of a sweep, started or not, one row each, with the name their arm goes by in tables and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import polars as pl

from analysis.tables import SweepRecord, SweepRun
from muon_core.tables import STATUSES

MISSING = "missing"
"""Status of a run that the sweep lists and nobody has started."""
ALL_STATUSES = (*STATUSES, MISSING)


def sweep_members(record: SweepRecord, runs: pl.DataFrame) -> pl.DataFrame:
    """`block`, `role`, `arm` and every column of `runs` for each run the sweep lists, in its order.

    A run nobody has started has status `missing` and nulls. `arm` is readable and names one arm of one block.
    """
    known = runs.drop("block", "role", strict=False).unique("run_id", maintain_order=True)
    readable = dict(zip(known["run_id"], known["arm"], strict=True))
    names = arm_names(record.runs, readable)
    planned = pl.DataFrame(
        [(run.run_id, run.block, run.role, names[run.block, run.arm]) for run in record.runs],
        schema={"run_id": pl.String, "block": pl.String, "role": pl.String, "arm": pl.String},
        orient="row",
    )
    joined = planned.join(known.drop("arm"), on="run_id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("status").fill_null(MISSING))


def arm_names(runs: tuple[SweepRun, ...], readable: dict[str, str | None]) -> dict[tuple[str, str], str]:
    """(block, arm) -> the shortest name that tells the sweep's arms apart: the readable part if that suffices."""
    short: dict[tuple[str, str], str] = {}
    for run in runs:
        if label := readable.get(run.run_id):
            short.setdefault((run.block, run.arm), label)
    keys = list(dict.fromkeys((run.block, run.arm) for run in runs))
    naming: list[Callable[[tuple[str, str]], str]] = [
        lambda key: short.get(key, key[1]),
        lambda key: f"{key[0]}: {short.get(key, key[1])}",
        lambda key: f"{key[0]}: {key[1]}",
    ]
    for name in naming:
        if max(Counter(map(name, keys)).values(), default=1) == 1:
            return {key: name(key) for key in keys}
    raise AssertionError("a block and an arm together are unique")
