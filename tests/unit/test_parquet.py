"""Rows to Arrow and Parquet and back: the schema with its units survives, and a value of another type is refused."""

import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest

from muon_core.store.parquet import decode, encode, to_arrow
from muon_core.tables import LAYERS, TABLES, Table


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_encode_keeps_schema_units_and_nulls(table: Table) -> None:
    decoded = decode(encode([{}], table))
    assert decoded.schema.equals(table.schema, check_metadata=True)
    assert all(value is None for value in decoded.to_pylist()[0].values())


def test_encode_refuses_a_value_of_another_type() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        encode([{"layer": "first"}], LAYERS)


def value_of(dtype: pa.DataType, number: int) -> Any:
    """A value of a column, or None; numbers go through all that are special."""
    values = {
        pa.string(): ["", "a", "ü結", "x" * 50],
        pa.bool_(): [True, False],
        pa.int32(): [0, -5, 2**31 - 1],
        pa.int64(): [0, -5, 2**63 - 1, -(2**63)],
        pa.float32(): [0, 1.5, math.nan, math.inf, -0.0, 1e-300],
        pa.float64(): [0, 0.1, math.nan, -math.inf, -0.0, 1e-300],
        pa.timestamp("us", tz="UTC"): [datetime.now(UTC), datetime(1969, 1, 1, tzinfo=timezone(timedelta(hours=3)))],
        pa.list_(pa.field("element", pa.float32())): [[], [1.0, 0.1], [math.nan] * 7],
    }[dtype]
    return [None, *values][number % (len(values) + 1)]


@pytest.mark.parametrize("num_rows", [0, 1, 9, 40])
@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_rows_become_what_arrow_makes_of_them(table: Table, num_rows: int) -> None:
    rows = [
        {name: value_of(dtype, row + place) for place, (name, (dtype, _)) in enumerate(table.columns.items())}
        for row in range(num_rows)
    ]
    ours, arrows = to_arrow(rows, table), pa.Table.from_pylist(rows, schema=table.schema)
    ours.validate(full=True)
    assert ours.schema.equals(arrows.schema, check_metadata=True)
    assert encode(ours, table) == encode(arrows.combine_chunks(), table)


@pytest.mark.parametrize(
    "row", [{"layer": 2**40}, {"run_id": 3}, {"layer": 0.5}, {"spectral_norm": "1.5"}, {"ill_posed": 1}]
)
def test_a_value_that_does_not_fit_is_named_with_its_column(row: dict[str, Any]) -> None:
    (name,) = row
    with pytest.raises(pa.ArrowInvalid, match=f"column {name} of layers holds "):
        to_arrow([row], LAYERS)


def test_rows_are_written_without_pandas() -> None:
    """Which takes a process as long to load as a short run takes to train."""
    code = (
        "import sys; from muon_core.store.parquet import encode; from muon_core.tables import TABLES; "
        "[encode([{}], table) for table in TABLES.values()]; print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
