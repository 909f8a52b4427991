"""Tables of one run in two stores, compared in every column that must not differ."""

import polars as pl
import polars.selectors as cs
from polars.testing import assert_frame_equal

from analysis.store import open_store
from muon_core.tables import RUNS, SERIES
from muon_core.throughput import COLUMNS

VARYING = cs.ends_with("_s") | cs.by_name("attempt", "attempts", "started_at", "ended_at", *COLUMNS, require_all=False)
"""Seconds and what is made of them, memory and the number of attempts."""


def whole_table(url: str, table: str) -> pl.DataFrame:
    """All rows of `table` in the order of their emission, without the columns VARYING."""
    order = "seq" if table in SERIES else "run_id"
    return open_store(url).table(table).sort(order).select(~VARYING).collect()


def assert_same_tables(url: str, other: str) -> None:
    """Every table holds the same in both stores, bit for bit, and none is empty."""
    for table in (*SERIES, RUNS.name):
        found, expected = whole_table(url, table), whole_table(other, table)
        assert expected.height
        assert_frame_equal(found, expected, check_exact=True)
