"""Rows to Parquet and back: the schema with its units survives, and a value of another type is refused."""

import pyarrow as pa
import pytest

from muon_core.store.parquet import decode, encode
from muon_core.tables import LAYERS, TABLES, Table


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_encode_keeps_schema_units_and_nulls(table: Table) -> None:
    decoded = decode(encode([{}], table))
    assert decoded.schema.equals(table.schema, check_metadata=True)
    assert all(value is None for value in decoded.to_pylist()[0].values())


def test_encode_refuses_a_value_of_another_type() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        encode([{"layer": "first"}], LAYERS)
