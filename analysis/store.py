"""Opens a results store: typed Polars LazyFrames of its tables, each complete row once, also while runs train.

What there is to read is listed, chosen and checked when a table is asked for; its rows are read when Polars computes
the result, and only the columns and objects that the question needs. What was listed is not remembered, so each table
shows the store as it is then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

# Polars opens as many files at once as it has cores and three: with few cores, a question over many waits for each.
os.environ.setdefault("POLARS_NUM_READERS_PRE_INIT", "64")

import polars as pl
import pyarrow as pa

from analysis.scan import from_arrow, polars_schema, read_ends_at_once, scan_rows
from muon_core.store.cache import cached
from muon_core.store.damage import check_objects
from muon_core.store.keys import ObjectSlice, parse_sweeps
from muon_core.store.ledger import Entry, LedgerReader, is_alive, read_entries
from muon_core.store.lineage import Problems
from muon_core.store.open import open_storage
from muon_core.store.parquet import column, to_arrow
from muon_core.store.reader import (
    check_version,
    list_keys,
    read_attempts,
    read_ends,
    read_starts,
    relisting,
    visible_objects,
)
from muon_core.store.storage import Storage
from muon_core.store.sweeps import SweepRecord, read_record
from muon_core.tables import ATTEMPTS, RUNS, SERIES, SWEEP_RUNS, TABLES, Table

log = logging.getLogger(__name__)
MEMBERSHIP = {"block": pl.String(), "role": pl.String()}
"""What a sweep adds to the rows of its runs."""
AMBIGUOUS_SHOWN = 5


def open_store(place: str | os.PathLike[str] | Storage, *, skip_damaged: bool | None = None) -> Store:
    """The results store at `place`: a folder, `s3://bucket/prefix`, or a storage that is open already.

    Args:
        skip_damaged: check every object in full before it is read, and leave out those that are damaged and runs
            without one of their records, with a warning that names each. Without it ValueError names what
            `store.damage.check_objects` finds: finals and packs on this machine that differ from their digest,
            unless a question scans too many, and objects cut short. Polars reads the rest without comparing anything:
            what it cannot decode is its error, other damage goes unseen. None follows MUON_SKIP_DAMAGED.
    Raises: ValueError if it holds no results, StoreError if it cannot be reached, its scheme is unknown, or a newer
        release wrote it in a way this one would misread; single objects of such a release are refused where they are
        decoded or checked.
    """
    storage = cached(open_storage(place) if isinstance(place, str | os.PathLike) else place)
    check_version(storage)
    if skip_damaged is None:
        skip_damaged = os.environ.get("MUON_SKIP_DAMAGED", "") not in ("", "0")
    if not storage.list("sweeps/") and not storage.list("attempts/"):
        raise ValueError(
            f"{storage.url} is no results store: it has neither sweeps/ nor attempts/; "
            "give the folder that holds them, or run a sweep first"
        )
    return Store(storage, skip_damaged=skip_damaged)


class _Found(NamedTuple):
    """What there is to read of a table, and what is wrong."""

    objects: list[ObjectSlice]
    copies: dict[str, str]
    """Key of an object -> its copy on this machine."""
    damaged: dict[str, int]
    """Key of an object that cannot be read -> its bytes."""
    passed_over: list[str]
    """Damaged packs, whose rows are read from finals."""
    problems: Problems


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
    def attempts(self) -> pl.LazyFrame:
        """One row an attempt at a run: who trained it, how long, at what cost, and how it ended."""
        return self.table(ATTEMPTS.name)

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

    @property
    def spectra(self) -> pl.LazyFrame:
        """All singular values of the hidden matrices by step, layer and projection, where a run records them."""
        return self.table("spectra")

    @property
    def health(self) -> pl.LazyFrame:
        """How updates and momentum agree with gradients, by step, layer and projection."""
        return self.table("health")

    def table(self, name: str) -> pl.LazyFrame:
        """The table `name` in its fixed schema, empty if nothing was written. Raises ValueError for an unknown one."""
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; the tables are {', '.join(sorted(TABLES))}")
        if name == SWEEP_RUNS.name:
            return _sweep_runs([self.record] if self.record else self.records())
        frame = (
            self._series(SERIES[name])
            if name in SERIES
            else self._attempts()
            if name == ATTEMPTS.name
            else self._runs()
        )
        if self.record is None:
            return frame
        rows = dict.fromkeys((run.run_id, run.block, run.role) for run in self.record.runs)
        members = pl.LazyFrame(list(rows), _MEMBERS, orient="row")
        return frame.join(members, on="run_id", how="inner", maintain_order="left")

    def sweep(self, name: str) -> Store:
        """This store narrowed to one sweep. Raises ValueError naming the sweeps there are."""
        keys = self._sweeps()
        if name not in keys:
            raise ValueError(f"no sweep {name!r} in {self.storage.url}; it holds: {', '.join(keys) or 'no sweep yet'}")
        return replace(self, record=read_record(self.storage, keys[name]))

    def run(self, name: str) -> Store:
        """This store narrowed to the run that `name` is or begins, which is quicker than a filter on `run_id`.

        Raises ValueError if it begins none, or several, which are named.
        """
        wants = self._wanted()
        if wants(name) and name in read_attempts(self.storage, name):  # one listing, whatever the store holds
            return replace(self, only=name)
        names = sorted(filter(wants, read_attempts(self.storage)))
        found = [run for run in names if run.startswith(name)]
        if not found:
            raise ValueError(
                f"no run begins with {name!r} in {self.storage.url}; `muon runs ls` lists its {len(names)}"
            )
        if len(found) > 1:
            shown = ", ".join([*found[:AMBIGUOUS_SHOWN], *(["..."] if len(found) > AMBIGUOUS_SHOWN else [])])
            raise ValueError(f"{len(found)} runs begin with {name!r}: {shown}; give more of the name")
        return replace(self, only=found[0])

    def sweep_names(self) -> list[str]:
        """Sweeps recorded in the store, sorted."""
        return list(self._sweeps())

    def records(self) -> list[SweepRecord]:
        """The newest record of every sweep in the store, by name."""
        return [read_record(self.storage, key) for key in self._sweeps().values()]

    def readable_records(self) -> list[SweepRecord]:
        """The same, but for those that are damaged or of a newer release: no other sweep's question hangs on them."""
        found = []
        for key in self._sweeps().values():
            with suppress(ValueError):
                found.append(read_record(self.storage, key))
        return found

    def damaged(self) -> str | None:
        """One line that names an object of this view which cannot be read; None if each, read in full, is whole."""
        for table in SERIES.values():
            found = self._find(table, thorough=True)
            for key, size in found.damaged.items():
                return self._damage_message(key, size)
            for key in found.passed_over:
                return f"{self.storage.uri(key)} is a damaged copy of finals that are whole; delete it, and compact"
        return None

    def _damage_message(self, key: str, size: int) -> str:
        return (
            f"{self.storage.uri(key)} is {size} bytes, a damaged object; "
            "set MUON_SKIP_DAMAGED=1 to read the rest, or delete it and run its sweep again"
        )

    def _series(self, table: Table) -> pl.LazyFrame:
        found = self._find(table, thorough=self.skip_damaged)
        self._refuse(found.problems)
        if found.damaged and not self.skip_damaged:
            raise ValueError(self._damage_message(*next(iter(found.damaged.items()))))
        for key in found.damaged:
            log.warning("left out: %s is damaged", self.storage.uri(key))
        kept = [item for item in found.objects if item.key not in found.damaged]
        return scan_rows(self.storage, kept, found.copies, table)

    def _find(self, table: Table, *, thorough: bool) -> _Found:
        """The objects of `table` in this view; `thorough` reads them all in full."""
        wants = self._wanted()
        passed_over: list[str] = []
        while True:
            objects, sizes, problems = relisting(partial(self._list, table, passed_over))
            objects = [item for item in objects if wants(item.run)]
            sizes = {item.key: sizes[item.key] for item in objects}
            damaged, copies = check_objects(self.storage, sizes, thorough=thorough)
            packs = [key for key in damaged if key.startswith("packs/")]
            if not packs:
                wanted = {run: problem for run, problem in problems.items() if wants(run)}
                return _Found(objects, copies, {key: sizes[key] for key in damaged}, passed_over, wanted)
            # Chosen anew without them: which finals stand in for a pack is the lineage's to say.
            for key in packs:
                log.warning("passed over: %s is damaged, and read from finals instead", self.storage.uri(key))
            passed_over += packs

    def _list(self, table: Table, passed_over: list[str]) -> tuple[list[ObjectSlice], dict[str, int], Problems]:
        problems: Problems = {}
        return *visible_objects(self.storage, table.name, self.only, problems, passed_over), problems

    def _refuse(self, problems: Problems) -> None:
        """Raise the first of `problems`, or warn of all where what is damaged is left out."""
        for run, problem in problems.items():
            if not self.skip_damaged:
                raise ValueError(f"{problem}; or set MUON_SKIP_DAMAGED=1 to read the other runs")
            log.warning("left out: run %s: %s", run, problem.removeprefix(f"run {run}: "))

    def _runs(self) -> pl.LazyFrame:
        rows, problems = relisting(self._run_rows)
        self._refuse(problems)
        return _settled(from_arrow(rows)).lazy()

    def _attempts(self) -> pl.LazyFrame:
        wants = self._wanted()
        entries = [entry for entry in read_entries(self.storage, self.only) if wants(entry.run_id)]
        is_running = any(entry.status == "running" for entry in entries)
        now = LedgerReader(self.storage).now() if is_running else 0.0
        rows = [_attempt_row(entry, now) for entry in entries]
        return from_arrow(to_arrow(rows, ATTEMPTS)).lazy()

    def _run_rows(self) -> tuple[pa.Table, Problems]:
        """End record of each run's newest attempt, its start record where it has not ended; and runs without either."""
        attempts, wants = read_attempts(self.storage, self.only), self._wanted()
        heads = {run: max(tries.values()) for run, tries in attempts.items() if wants(run)}
        problems: Problems = {}
        ends = read_ends(self.storage, heads.values(), problems, read=read_ends_at_once)
        known = {*ends["run_id"].to_pylist(), *problems}
        starts = read_starts(self.storage, [head for run, head in heads.items() if run not in known], problems)
        going = to_arrow([start | {"status": "running"} for start in starts], RUNS)
        rows = pa.concat_tables([ends, going]).sort_by("run_id")
        numbers = column([heads[run].number for run in rows["run_id"].to_pylist()], pa.int32())
        return rows.set_column(
            rows.schema.get_field_index("attempts"), RUNS.schema.field("attempts"), numbers
        ), problems

    def _wanted(self) -> Callable[[str], bool]:
        """Whether a run belongs to the view."""
        if self.record is None:
            return lambda _: True
        return {run.run_id for run in self.record.runs}.__contains__

    def _sweeps(self) -> dict[str, str]:
        return parse_sweeps(list_keys(self.storage, "sweeps/"))


def _settled(runs: pl.DataFrame) -> pl.DataFrame:
    """`runs` with final values where a run is done and nowhere else; earlier releases recorded those of all."""
    last, is_done = pl.coalesce("last_val_loss", "final_val_loss"), pl.col("status") == "done"
    final = pl.when(is_done).then(pl.col("final_val_loss", "final_val_accuracy"))
    return runs.with_columns(final, last_val_loss=last)


def _attempt_row(entry: Entry, now: float) -> dict[str, Any]:
    """`entry` as a row of the `attempts` table; one whose process is gone at `now` without a word is `lost`."""
    known = asdict(entry) | asdict(entry.rate)
    is_lost = entry.status == "running" and not is_alive(entry, now)
    return {name: known[name] for name in ATTEMPTS.columns if name in known} | {
        "attempt": entry.number,
        "status": "lost" if is_lost else entry.status,
        "failure": "infrastructure" if is_lost else entry.failure,
        "started_at": datetime.fromtimestamp(entry.started_at, UTC),
        "seen_at": datetime.fromtimestamp(entry.seen_at, UTC),
        "gpu_hours": entry.gpu_hours,
        "usd": entry.usd,
        "price_source": entry.rate.source,
        "price_date": entry.rate.date,
    }


_MEMBERS = {"run_id": pl.String(), **MEMBERSHIP}


def _sweep_runs(records: list[SweepRecord]) -> pl.LazyFrame:
    rows = [(record.sweep, run.run_id, run.block, run.role) for record in records for run in record.runs]
    return pl.LazyFrame(rows, schema=polars_schema(SWEEP_RUNS), orient="row")
