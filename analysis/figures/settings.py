"""The settings that a sweep varied: the values each arm has, and along which of them arms form a row.

Arms that differ in one setting only are a row along it. Settings that a sweep varied together, zipped or drawn at
random, are never held fixed: their arms are a row along each of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

COLUMNS = ("alpha", "rank_threshold", "lr", "embedding_lr", "anneal", "noise_norm")
"""Settings with a column in `runs`, which stored runs tell whatever their sweep's file says."""
Value = float | str | bool | None


@dataclass(frozen=True, slots=True)
class AxisRow:
    """Arms of one block that differ in nothing but the setting `axis` and those varied with it."""

    axis: str
    name: str
    """The block, and what is fixed here and varies elsewhere in it."""
    arms: tuple[str, ...]
    """In ascending order of their value."""
    values: tuple[float, ...]


def axis_rows(members: pl.DataFrame, spec: Mapping[str, Any]) -> list[AxisRow]:
    """Rows of two arms or more along every number that varies within a block, in the order of blocks and settings.

    Args:
        members: rows of `sweep_members`.
        spec: of the sweep's record.
    """
    blocks = {str(block["name"]): block for block in spec.get("blocks") or () if "name" in block}
    swept = [name for block in blocks.values() for name in _swept(block)]
    names = dict.fromkeys([*COLUMNS, *swept])
    started = members.drop_nulls("optimizer").unique("arm", keep="first", maintain_order=True)
    arms: dict[str, dict[str, dict[str, Value]]] = defaultdict(dict)
    for row in started.iter_rows(named=True):
        config = json.loads(row["config_json"] or "{}")
        arms[row["block"]][row["arm"]] = {name: row.get(name, _lookup(config, name)) for name in names}
    rows = [
        found
        for block, settings in arms.items()
        for axis in names
        for found in _rows_along(axis, block, settings, _together(blocks.get(block, {}), axis))
    ]
    return sorted(rows, key=lambda row: list(names).index(row.axis))


def _swept(block: Mapping[str, Any]) -> list[str]:
    return [*(block.get("grid") or ()), *(block.get("zip") or ())]


def _together(block: Mapping[str, Any], axis: str) -> set[str]:
    """The settings that vary with `axis`, itself too."""
    if block.get("sample"):
        return {axis, *_swept(block)}
    zipped = block.get("zip") or {}
    return {axis, *zipped} if axis in zipped else {axis}


def _rows_along(
    axis: str, block: str, settings: Mapping[str, Mapping[str, Value]], together: set[str]
) -> list[AxisRow]:
    varying = [name for name in next(iter(settings.values())) if len({str(own[name]) for own in settings.values()}) > 1]
    fixed = [name for name in varying if name not in together]
    rows: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for arm, own in settings.items():
        value = own[axis]
        if isinstance(value, int | float) and not isinstance(value, bool):
            rows[", ".join([block, *(f"{name} = {_text(own[name])}" for name in fixed)])].append((float(value), arm))
    return [
        AxisRow(axis, name, tuple(arm for _, arm in sorted(pairs)), tuple(value for value, _ in sorted(pairs)))
        for name, pairs in rows.items()
        if len({value for value, _ in pairs}) > 1
    ]


def _lookup(config: Mapping[str, Any], name: str) -> Value:
    """The value of a setting in a resolved config, where an optimizer's stand without its name before them."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    optimizer = config.get("optimizer")  # of an imported run that may be its mere name
    if value is None and isinstance(optimizer, Mapping):
        value = optimizer.get(name)
    return value if isinstance(value, int | float | str | bool) else None


def _text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
