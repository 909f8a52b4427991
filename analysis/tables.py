"""Opens a results store: typed Polars LazyFrames of its tables, each complete row once, also while runs train."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa

from muon_core import layout
from muon_core.storage import Storage, open_storage
from muon_core.tables import RUNS, SERIES, SWEEP_RUNS, TABLES, Table

MEMBERSHIP = {"block": pl.String(), "role": pl.String()}
"""What a sweep adds to the rows of its runs."""


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run as a sweep lists it; `arm` is shared by the runs of a block that differ only in seed."""

    run_id: str
    block: str
    role: str
    arm: str


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """What a sweep asked: `metrics` names the primary metric, its goal (min, max) and when (final, best)."""

    name: str
    question: str
    spec: dict[str, Any]
    metrics: dict[str, str]
    runs: tuple[SweepRun, ...]


def open_store(url: str | os.PathLike[str]) -> Store:
    """The results store at `url`, a folder. Raises ValueError if it holds none, StoreError for an unknown scheme."""
    storage = open_storage(url)
    if not storage.list("sweeps/") and not storage.list("attempts/"):
        raise ValueError(
            f"{storage.url} is no results store: it has neither sweeps/ nor attempts/; "
            "give the folder that holds them, or run a sweep first"
        )
    return Store(storage)


@dataclass(frozen=True, slots=True)
class Store:
    """Result tables as LazyFrames in no particular order. Each access lists the store anew, so it sees what is new.

    With a `record` the view is narrowed to that sweep's runs and every table has `block` and `role`; a run that two
    blocks share has its rows once in each.
    """

    storage: Storage
    record: SweepRecord | None = None

    @property
    def runs(self) -> pl.LazyFrame:
        """One row a run that was started."""
        return self.table(RUNS.name)

    @property
    def sweep_runs(self) -> pl.LazyFrame:
        """Which runs belong to which sweep, started or not."""
        return self.table(SWEEP_RUNS.name)

    @property
    def train(self) -> pl.LazyFrame:
        """Training loss, learning rate, gradient norm and speed by step."""
        return self.table("train")

    @property
    def val(self) -> pl.LazyFrame:
        """Validation loss, accuracy and perplexity by step."""
        return self.table("val")

    @property
    def layers(self) -> pl.LazyFrame:
        """Norms and spectra of every hidden matrix by step, layer and projection."""
        return self.table("layers")

    def table(self, name: str) -> pl.LazyFrame:
        """The table `name` in its fixed schema, empty if nothing was written. Raises ValueError for an unknown one."""
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; the tables are {', '.join(sorted(TABLES))}")
        if name == SWEEP_RUNS.name:
            return _sweep_runs([self.record] if self.record else self._records())
        frame = self._series(SERIES[name]) if name in SERIES else self._runs()
        if self.record is None:
            return frame
        members = pl.LazyFrame([(run.run_id, run.block, run.role) for run in self.record.runs], _MEMBERS, orient="row")
        return frame.join(members, on="run_id", how="inner", maintain_order="left")

    def sweep(self, name: str) -> Store:
        """This store narrowed to one sweep. Raises ValueError naming the sweeps there are."""
        keys = layout.parse_sweeps(self._keys("sweeps/"))
        if name not in keys:
            raise ValueError(f"no sweep {name!r} in {self.storage.url}; it holds: {', '.join(keys) or 'no sweep yet'}")
        return Store(self.storage, _sweep_record(self.storage, name, keys[name]))

    def sweep_names(self) -> list[str]:
        """Sweeps recorded in the store, sorted."""
        return list(layout.parse_sweeps(self._keys("sweeps/")))

    def _records(self) -> list[SweepRecord]:
        keys = layout.parse_sweeps(self._keys("sweeps/"))
        return [_sweep_record(self.storage, name, key) for name, key in keys.items()]

    def _series(self, table: Table) -> pl.LazyFrame:
        # Attempts first, live before final: a listing then misses at most the newest rows, never some in the middle.
        attempts = self._keys("attempts/")
        sizes = dict(self.storage.list(f"live/table={table.name}/")) | dict(
            self.storage.list(f"final/table={table.name}/")
        )
        objects = self._mine(layout.visible(attempts, sizes, table.name))
        _refuse_empty(self.storage, ((item.key, sizes[item.key]) for item in objects))
        whole = _scan(self.storage, [item.key for item in objects if item.bound is None], table)
        cut = [
            _scan(self.storage, [i.key], table).filter(pl.col("seq") < i.bound) for i in objects if i.bound is not None
        ]
        return pl.concat([whole, *cut])

    def _runs(self) -> pl.LazyFrame:
        """Start record of each run's newest attempt, overlaid by its end record where it has ended."""
        attempts = layout.parse_attempts(self._keys("attempts/"))
        wanted = self._wanted()
        heads = {run: max(tries.values()) for run, tries in attempts.items() if wanted is None or run in wanted}
        rows = [_start_row(self.storage, head) | {"attempts": len(attempts[run])} for run, head in heads.items()]
        started = _from_arrow(pa.Table.from_pylist(rows, schema=RUNS.schema))
        sizes = dict(self.storage.list(f"final/table={RUNS.name}/"))
        ends = [key for run, head in heads.items() if (key := layout.final_key(RUNS.name, run, head.id)) in sizes]
        _refuse_empty(self.storage, ((key, sizes[key]) for key in ends))
        # What only the reader knows, the number of tries, stays; a column the end record leaves empty keeps its start.
        ended = _scan(self.storage, ends, RUNS).drop("attempts")
        own = [name for name in RUNS.columns if name not in ("run_id", "attempts")]
        overlaid = [pl.coalesce(f"{name}_end", name).alias(name) for name in own]
        joined = started.lazy().join(ended, on="run_id", how="left", suffix="_end", maintain_order="left")
        return joined.with_columns(overlaid).select(list(RUNS.columns))

    def _mine(self, objects: list[layout.Visible]) -> list[layout.Visible]:
        wanted = self._wanted()
        return [item for item in objects if wanted is None or item.run in wanted]

    def _wanted(self) -> set[str] | None:
        return None if self.record is None else {run.run_id for run in self.record.runs}

    def _keys(self, prefix: str) -> list[str]:
        return [key for key, _ in self.storage.list(prefix)]


_MEMBERS = {"run_id": pl.String(), **MEMBERSHIP}


def _polars_schema(table: Table) -> pl.Schema:
    return _from_arrow(table.schema.empty_table()).schema


def _from_arrow(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _scan(storage: Storage, keys: list[str], table: Table) -> pl.LazyFrame:
    """Rows of the objects `keys`. The schema is given, not inferred: other releases have fewer or more columns."""
    schema = _polars_schema(table)
    if not keys:
        return pl.LazyFrame(schema=schema)
    return pl.scan_parquet(
        [storage.uri(key) for key in keys],
        schema=schema,
        hive_partitioning=False,  # a run named 001 would come back as the number 1
        glob=False,
        missing_columns="insert",
        extra_columns="ignore",
    )


def _refuse_empty(storage: Storage, sizes: Iterable[tuple[str, int]]) -> None:
    for key, size in sizes:
        if size == 0:  # Polars would read it as no rows
            raise ValueError(f"{storage.uri(key)} is 0 bytes, a damaged object; delete it and run its sweep again")


def _read_json(storage: Storage, key: str) -> dict[str, Any]:
    try:
        value = json.loads(storage.get(key))
    except ValueError as error:
        raise ValueError(f"{storage.uri(key)} is not JSON ({error}); delete it and run its sweep again") from error
    assert isinstance(value, dict)
    return value


def _start_row(storage: Storage, head: layout.Attempt) -> dict[str, Any]:
    """A `runs` row of a run that has not ended."""
    record = _read_json(storage, head.key)
    started_at = record.get("started_at")
    started = datetime.fromisoformat(started_at) if started_at else None
    return record | {"run_id": head.run, "status": "running", "started_at": started}


def _sweep_record(storage: Storage, name: str, key: str) -> SweepRecord:
    record = _read_json(storage, key)
    metrics = {"primary": "val_loss", "goal": "min", "at": "final"} | (record.get("metrics") or {})
    runs = dict.fromkeys(SweepRun(run["run_id"], run["block"], run["role"], run["arm"]) for run in record["runs"])
    return SweepRecord(name, record.get("question") or "", record.get("spec") or {}, metrics, tuple(runs))


def _sweep_runs(records: list[SweepRecord]) -> pl.LazyFrame:
    rows = [(record.name, run.run_id, run.block, run.role) for record in records for run in record.runs]
    return pl.LazyFrame(rows, schema=_polars_schema(SWEEP_RUNS), orient="row")
