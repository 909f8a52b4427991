"""Rows whose values follow from where they belong."""

import random

import pyarrow as pa

from muon_core.store.parquet import Row
from muon_core.tables import SERIES

COMMON = ("run_id", "attempt", "seq", "step", "tokens")


def made_up(table: str, *source: object) -> Row:
    """A value for every column that `table` does not share with others; `source` alone decides which."""
    chance = random.Random("/".join(map(str, (table, *source))))
    columns = SERIES[table].columns.items()
    return {name: _value(dtype, chance) for name, (dtype, _) in columns if name not in COMMON}


def _value(dtype: pa.DataType, chance: random.Random) -> object:
    """Exact in 32 bits; one in ten is null."""
    if chance.random() < 0.1:
        return None
    if pa.types.is_list(dtype):
        return [chance.randrange(1 << 20) / 1024 for _ in range(chance.randrange(4))]
    if pa.types.is_floating(dtype):
        return chance.randrange(1 << 20) / 1024
    if pa.types.is_boolean(dtype):
        return chance.random() < 0.5
    return chance.choice("qkvo") if pa.types.is_string(dtype) else chance.randrange(1 << 20)
