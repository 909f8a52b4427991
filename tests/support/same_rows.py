"""Rows of two stores beside each other, bit for bit."""

from pathlib import Path

import polars as pl

from analysis.store import open_store
from muon_core.tables import SERIES
from muon_core.throughput import COLUMNS

TIMING = ("attempt", "step_time_s", "tokens_per_s", "elapsed_s", *COLUMNS)


def rows(store: Path | str, table: str, run_ids: list[str]) -> pl.DataFrame:
    """Of these runs, without what measures time."""
    found = open_store(store).table(table).drop(TIMING, strict=False).filter(pl.col("run_id").is_in(run_ids))
    return found.sort("run_id", "seq").collect()


def assert_same_rows(a: Path | str, b: Path | str, run_ids: list[str]) -> None:
    """Every table of series has rows of every run, and the same in both stores."""
    for table in SERIES:
        left, right = rows(a, table, run_ids), rows(b, table, run_ids)
        assert set(left["run_id"]) == set(run_ids), table
        assert left.equals(right), table
