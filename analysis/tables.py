"""Opens a results store: typed Polars LazyFrames of its tables, each complete row once, also while runs train."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import pyarrow as pa

from muon_core import layout
from muon_core.cache import cached, local_paths
from muon_core.snapshot import check_version, list_keys, read_attempts, read_ends, read_starts, visible_objects
from muon_core.storage import Storage, open_storage
from muon_core.tables import RUNS, SERIES, SWEEP_RUNS, TABLES, Table

log = logging.getLogger(__name__)
_MAGIC = b"PAR1"
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


def open_store(url: str | os.PathLike[str], *, skip_damaged: bool | None = None) -> Store:
    """The results store at `url`, a folder or `s3://bucket/prefix`.

    Args:
        skip_damaged: leave objects that are no Parquet out, with a warning that names each, instead of raising
            ValueError; None follows the environment variable MUON_SKIP_DAMAGED.
    Raises: ValueError if it holds no results, StoreError if it cannot be reached, its scheme is unknown, or a newer
        release wrote it in a way this one would misread.
    """
    storage = cached(open_storage(url))
    check_version(storage)
    if skip_damaged is None:
        skip_damaged = os.environ.get("MUON_SKIP_DAMAGED", "") not in ("", "0")
    if not storage.list("sweeps/") and not storage.list("attempts/"):
        raise ValueError(
            f"{storage.url} is no results store: it has neither sweeps/ nor attempts/; "
            "give the folder that holds them, or run a sweep first"
        )
    return Store(storage, skip_damaged=skip_damaged)


@dataclass(frozen=True, slots=True)
class Store:
    """Result tables as LazyFrames in no particular order. Each access lists the store anew, so it sees what is new.

    With a `record` the view is narrowed to that sweep's runs and every table has `block` and `role`; a run that two
    blocks share has its rows once in each. With `only` it is narrowed to one run, whose objects alone are listed.
    """

    storage: Storage
    record: SweepRecord | None = None
    only: str | None = None
    skip_damaged: bool = False

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
        keys = self._sweeps()
        if name not in keys:
            raise ValueError(f"no sweep {name!r} in {self.storage.url}; it holds: {', '.join(keys) or 'no sweep yet'}")
        return replace(self, record=_sweep_record(self.storage, name, keys[name]))

    def run(self, run_id: str) -> Store:
        """This store narrowed to one run, which is quicker than a filter on `run_id`; empty if there is no such run."""
        return replace(self, only=run_id)

    def sweep_names(self) -> list[str]:
        """Sweeps recorded in the store, sorted."""
        return list(self._sweeps())

    def _records(self) -> list[SweepRecord]:
        keys = self._sweeps()
        return [_sweep_record(self.storage, name, key) for name, key in keys.items()]

    def _series(self, table: Table) -> pl.LazyFrame:
        objects, sizes = visible_objects(self.storage, table.name, self.only)
        wanted = self._wanted()
        sizes = {item.key: sizes[item.key] for item in objects}
        here = local_paths(self.storage, sizes)
        damaged = _damaged(self.storage, sizes, here)
        if damaged and not self.skip_damaged:
            raise ValueError(
                f"{self.storage.uri(damaged[0])} is {sizes[damaged[0]]} bytes, a damaged object; "
                "set MUON_SKIP_DAMAGED=1 to read the rest, or delete it and run its sweep again"
            )
        for key in damaged:
            log.warning("left out: %s is damaged", self.storage.uri(key))
        kept = [item for item in objects if item.key not in damaged and (wanted is None or item.run in wanted)]
        return _rows(self.storage, kept, here, table)

    def _runs(self) -> pl.LazyFrame:
        """Start record of each run's newest attempt, overlaid by its end record where it has ended."""
        attempts, wanted = read_attempts(self.storage, self.only), self._wanted()
        heads = [max(tries.values()) for run, tries in attempts.items() if wanted is None or run in wanted]
        running = [{"status": "running", "attempts": len(attempts[head.run])} for head in heads]
        starts = read_starts(self.storage, heads)
        rows = [start | state for start, state in zip(starts, running, strict=True)]
        started = _from_arrow(pa.Table.from_pylist(rows, schema=RUNS.schema)).lazy()
        # What only the reader knows, the number of tries, stays; a column the end record leaves empty keeps its start.
        ended = _from_arrow(read_ends(self.storage, heads)).lazy().drop("attempts")
        own = [name for name in RUNS.columns if name not in ("run_id", "attempts")]
        overlaid = [pl.coalesce(f"{name}_end", name).alias(name) for name in own]
        joined = started.join(ended, on="run_id", how="left", suffix="_end", maintain_order="left")
        return joined.with_columns(overlaid).select(list(RUNS.columns))

    def _wanted(self) -> set[str] | None:
        return None if self.record is None else {run.run_id for run in self.record.runs}

    def _sweeps(self) -> dict[str, str]:
        return layout.parse_sweeps(list_keys(self.storage, "sweeps/"))


_MEMBERS = {"run_id": pl.String(), **MEMBERSHIP}


def _polars_schema(table: Table) -> pl.Schema:
    return _from_arrow(table.schema.empty_table()).schema


def _from_arrow(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _damaged(storage: Storage, sizes: dict[str, int], here: dict[str, str]) -> list[str]:
    """Objects that cannot be Parquet: empty, or, where they are on this machine, without its marks at both ends."""
    paths = {key: here.get(key, storage.uri(key)) for key in sizes}
    return [key for key, path in paths.items() if sizes[key] == 0 or ("://" not in path and not _is_parquet(path))]


def _is_parquet(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            begins = file.read(len(_MAGIC)) == _MAGIC
            file.seek(-len(_MAGIC), os.SEEK_END)
            return begins and file.read() == _MAGIC
    except FileNotFoundError:
        return True  # removed since it was listed, which is no damage
    except OSError:
        return False  # shorter than the marks


def _rows(storage: Storage, objects: list[layout.Visible], here: dict[str, str], table: Table) -> pl.LazyFrame:
    """The rows that count of `objects`; each is scanned once, and filtered only where not all of it counts.

    `here` maps the keys of objects with a copy on this machine to its file.
    """
    uncut = [item for item in objects if item.start == 0 and item.bound is None]
    packs: dict[str, list[str]] = {}
    for item in uncut:
        if item.members > 1:
            packs.setdefault(item.key, []).append(item.run)
    whole = dict.fromkeys(item.key for item in uncut if len(packs.get(item.key, [item.run])) == item.members)
    of_run, seq = pl.col("run_id"), pl.col("seq")
    frames = [_scan(storage, here, list(whole), table)]
    frames += [
        _scan(storage, here, [key], table).filter(of_run.is_in(runs)) for key, runs in packs.items() if key not in whole
    ]
    frames += [
        _scan(storage, here, [item.key], table).filter(of_run == item.run, seq >= item.start, seq < item.end)
        for item in objects
        if item.start > 0 or item.bound is not None
    ]
    return pl.concat(frames)


def _scan(storage: Storage, here: dict[str, str], keys: list[str], table: Table) -> pl.LazyFrame:
    """Rows of the objects `keys`; `here` maps those with a copy on this machine to its file."""
    copies = [here[key] for key in keys if key in here]
    remote = [storage.uri(key) for key in keys if key not in here]
    return pl.concat([_scan_files(copies, table, {}), _scan_files(remote, table, storage.polars_options())])


def _scan_files(files: list[str], table: Table, options: dict[str, Any]) -> pl.LazyFrame:
    """Rows of `files`. The schema is given, not inferred: other releases have fewer or more columns."""
    schema = _polars_schema(table)
    if not files:
        return pl.LazyFrame(schema=schema)
    return pl.scan_parquet(
        files,
        schema=schema,
        hive_partitioning=False,  # a run named 001 would come back as the number 1
        glob=False,
        missing_columns="insert",
        extra_columns="ignore",
        **options,
    )


def _sweep_record(storage: Storage, name: str, key: str) -> SweepRecord:
    try:
        record = json.loads(storage.get(key))
    except ValueError as error:
        raise ValueError(f"{storage.uri(key)} is not JSON ({error}); delete it and run the sweep again") from error
    metrics = {"primary": "val_loss", "goal": "min", "at": "final"} | (record.get("metrics") or {})
    runs = dict.fromkeys(SweepRun(run["run_id"], run["block"], run["role"], run["arm"]) for run in record["runs"])
    return SweepRecord(name, record.get("question") or "", record.get("spec") or {}, metrics, tuple(runs))


def _sweep_runs(records: list[SweepRecord]) -> pl.LazyFrame:
    rows = [(record.name, run.run_id, run.block, run.role) for record in records for run in record.runs]
    return pl.LazyFrame(rows, schema=_polars_schema(SWEEP_RUNS), orient="row")
