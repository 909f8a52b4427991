"""The rows that benches invent fit the tables as they are: a column that is added must not break a bench unseen."""

import runpy
from pathlib import Path

import pytest

from muon_core.tables import HEALTH, LAYERS, SPECTRA, TRAIN, VAL, Table

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.parametrize("table", [TRAIN, VAL, LAYERS], ids=lambda table: table.name)
def test_rows_of_the_bench_of_the_store_have_every_column(table: Table) -> None:
    rows = runpy.run_path(str(BENCH / "store.py"))["rows_of"]("run", table, 0)
    assert rows.schema.equals(table.schema)
    assert rows.num_rows > 0


@pytest.mark.parametrize("table", [TRAIN, VAL, LAYERS, HEALTH, SPECTRA], ids=lambda table: table.name)
def test_rows_of_the_bench_of_reports_have_every_column(table: Table) -> None:
    bench = runpy.run_path(str(BENCH / "report.py"))
    rows = bench["rows_of"](bench["CASES"]["demo"]._replace(events=3), table, "run", "muon", 42)
    assert rows.columns == table.schema.names
    assert rows.height > 0
