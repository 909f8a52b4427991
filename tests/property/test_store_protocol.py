"""Random schedules of everything that can happen to a run's rows, against a model that keeps them in lists.

Each value follows from the attempt, table, step and number of its row, and rows are compared whole.
MUON_SCHEDULES and MUON_SCHEDULES_S3 set how many are tried in a folder and on each S3 server.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from servers.fixtures import ON_SERVERS, Servers, enter, fresh_url
from servers.rows import made_up

from analysis.store import open_store
from muon_core.store.compaction import compact
from muon_core.store.final import finalize
from muon_core.store.folder import Folder
from muon_core.store.keys import ROOT
from muon_core.store.open import open_storage
from muon_core.store.parquet import Row
from muon_core.store.reader import list_keys, read_attempts, read_packs, read_rows, relisting, visible_objects
from muon_core.store.storage import Storage, StoreError
from muon_core.store.writer import ResumePoint, RunWriter, record_failure
from muon_core.tables import SERIES

LOCAL = int(os.environ.get("MUON_SCHEDULES", "25"))
ON_S3 = int(os.environ.get("MUON_SCHEDULES_S3", "2"))
AT_ONCE = -60.0
RUN = "r"
TABLES = ("train", "spectra")  # which have columns of every type


class Killed(BaseException):
    """Stands for SIGKILL between two requests."""


class Emitted(NamedTuple):
    """A row of one table, with every column."""

    table: str
    row: Row


@dataclass
class Line:
    """A writer and what must be visible if its attempt is the head.

    `lineage` says below which seq its ancestors' rows count, and its own without bound.
    """

    writer: RunWriter
    base: list[Emitted]
    step: int
    lineage: dict[str, float]
    failed: bool = False  # so its end record says, the first that was written
    fenced: bool = False  # for so long that it publishes no checkpoint any more
    own: list[Emitted] = field(default_factory=list)
    stored: Counter[str] = field(default_factory=Counter)  # rows of each table that reached the store

    def visible(self, table: str) -> list[Row]:
        own = [item.row for item in self.own if item.table == table]
        return [item.row for item in self.base if item.table == table] + own[: self.stored[table]]

    def store_all(self) -> None:
        self.stored = Counter(item.table for item in self.own)


@dataclass
class Checkpoint:
    point: ResumePoint
    rows: list[Emitted]
    step: int
    lineage: dict[str, float]


class Schedule:
    """The store under test beside the model; every operation ends with a comparison of what both show.

    With `branches`, something that may continue any branch lies in checkpoints/, so compaction must keep all; without,
    the branches of a run that is done are dropped, and their checkpoints refused.
    """

    def __init__(self, storage: Storage, *, branches: bool) -> None:
        self.storage, self.branches = storage, branches
        self.checkpoints = [Checkpoint(ResumePoint(ROOT, 0), [], 0, {ROOT: 0})]
        self.dead: list[Line] = []
        self.dropped: set[str] = set()
        if branches:
            storage.put(f"checkpoints/{RUN}/some", b"")
        self.head = self._start(self.checkpoints[0])

    def _start(self, checkpoint: Checkpoint) -> Line:
        point = checkpoint.point
        writer = RunWriter(self.storage, RUN, {}, parent=point.attempt, resume_seq=point.seq)
        lineage = {id_: min(bound, point.seq) for id_, bound in checkpoint.lineage.items()}
        return Line(writer, list(checkpoint.rows), checkpoint.step, lineage | {writer.attempt.id: float("inf")})

    def emit(self, line: Line, steps: int) -> None:
        for _ in range(steps):
            line.step += 1
            for table in TABLES if line.step % 3 == 0 else TABLES[:1]:
                line.own.append(Emitted(table, emit(line.writer, table, line.step)))

    def flush(self, n: int) -> None:
        self.emit(self.head, n)
        self.head.writer.flush()
        self.head.store_all()

    def emit_only(self, n: int) -> None:
        self.emit(self.head, n)

    def barrier(self, n: int) -> None:
        self.emit(self.head, n)
        self._publish(self.head, self.head.writer.barrier())

    def _publish(self, line: Line, point: ResumePoint) -> None:
        line.store_all()
        self.checkpoints.append(Checkpoint(point, line.base + line.own, line.step, line.lineage))

    def resume(self, n: int) -> None:
        self.dead.append(self.head)
        while (checkpoint := self.checkpoints[-1 - n % len(self.checkpoints)]).point.attempt in self.dropped:
            with pytest.raises(StoreError, match="does not know; point it to the store that checkpoint was written"):
                self._start(checkpoint)
            self.checkpoints.remove(checkpoint)
        self.head = self._start(checkpoint)

    def killed_in_a_flush(self, n: int) -> None:
        self.emit(self.head, 1 + n)
        pending = {item.table for item in self.head.own[sum(self.head.stored.values()) :]}
        put, done = self.storage.put, []

        def one_then_die(key: str, data: bytes) -> None:
            if done:
                raise Killed
            put(key, data)
            done.append(key)

        with patch.object(self.storage, "put", one_then_die):
            if len(pending) > 1:
                with pytest.raises(Killed):
                    self.head.writer.flush()
            else:
                self.head.writer.flush()
        table = layout_table(done[0])
        self.head.stored[table] = sum(item.table == table for item in self.head.own)
        self.check()
        self.resume(n)

    def zombie(self, n: int) -> None:
        if self.dead:
            line = self.dead[n % len(self.dead)]
            self.emit(line, 1 + n)
            line.writer.flush()
            if n % 2 and not line.fenced:  # it passed the fence a moment before it was superseded
                self._publish(line, ResumePoint(line.writer.attempt.id, line.writer.seq))

    def finalize(self, n: int) -> None:
        relisting(lambda: finalize(self.storage, RUN))

    def compact(self, n: int) -> None:
        if n % 2:
            self._declare_dead()
        expected = {table: self.head.visible(table) for table in TABLES}
        listed = {table: visible_objects(self.storage, table) for table in TABLES}
        self._compact()
        for table in TABLES:  # a reader that listed before: what it needs is there unchanged, or gone
            try:
                rows = read_rows(self.storage, listed[table][0], SERIES[table]).to_pylist()
            except FileNotFoundError:
                continue
            assert of_run(rows) == expected[table]
        if n % 2:
            self._check_finals()

    def compact_amid(self, n: int) -> None:
        """A compaction runs between two requests of a reader, a finalizer, or the writer."""
        self._declare_dead()
        work = (self.check, lambda: self.finalize(n), lambda: self.flush(n))[n % 3]
        with interrupted(self.storage, 1 + 2 * n, self._compact):
            work()

    def _declare_dead(self) -> None:
        record_failure(self.storage, RUN, {}, "declared dead, though it may go on", self.head.writer.attempt.id)
        self.head.failed = True

    def _compact(self) -> None:
        assert compact(self.storage, grace_s=AT_ONCE).problems == {}

    def done(self, n: int) -> None:
        self.emit(self.head, n)
        self.head.writer.end(status="done")
        self._publish(self.head, ResumePoint(self.head.writer.attempt.id, self.head.writer.seq))
        self.check()
        self.compact(0)
        self.check()
        self._check_finals()
        self._check_packs()
        if not self.branches and not self.head.failed:
            self._drop_branches()
        self.resume(n)
        self.dead.pop()  # an ended writer writes no more

    def _drop_branches(self) -> None:
        alive = self.head.lineage
        assert read_attempts(self.storage)[RUN].keys() == alive.keys() - {ROOT}
        assert not [key for key, _ in self.storage.list("live/") if f"/run={RUN}/" in key]
        for line in self.dead:
            line.fenced = True
        self.dropped = {item.point.attempt for item in self.checkpoints} - alive.keys()
        self.checkpoints = [
            item
            for item in self.checkpoints
            if item.point.attempt in self.dropped or item.point.seq <= alive[item.point.attempt]
        ]

    def _check_finals(self) -> None:
        """Plain Polars, which takes all there is in final/, finds each row of a run that has ended once."""
        for table in TABLES:
            files = list_keys(self.storage, f"final/table={table}/run={RUN}/")
            assert of_run(self._read_files(files)) == self.head.visible(table)

    def _check_packs(self) -> None:
        """Both runs have ended, so there is a pack of what the head shows, and it repeats each row."""
        for table in TABLES:
            head, rows = self.head.writer.attempt.id, self.head.visible(table)
            packs = read_packs(self.storage, table)
            ends = {pack.key: item.hi for pack in packs for item in pack.runs if item.attempt == head}
            newest = [
                key for key, hi in ends.items() if hi == max(ends.values())
            ]  # one from before it went on may stay
            assert newest or not rows
            assert all(of_run(self._read_files([key])) == rows for key in newest)

    def _read_files(self, keys: list[str]) -> list[Row]:
        frames = [pl.read_parquet(self.storage.get(key)) for key in keys]
        return pl.concat(frames).to_dicts() if frames else []

    def check(self) -> None:
        for table in TABLES:
            rows = relisting(
                lambda table=table: read_rows(self.storage, visible_objects(self.storage, table)[0], SERIES[table])
            )
            assert of_run(rows.to_pylist()) == self.head.visible(table)

    def check_through_polars(self) -> None:
        for table in TABLES:
            rows = open_store(self.storage.url).table(table).collect().to_dicts()
            assert of_run(rows) == self.head.visible(table)


OPERATIONS: dict[str, Callable[[Schedule, int], None]] = {
    name: getattr(Schedule, name)
    for name in (
        "emit_only",
        "flush",
        "barrier",
        "resume",
        "killed_in_a_flush",
        "zombie",
        "finalize",
        "compact",
        "compact_amid",
        "done",
    )
}
SCHEDULES = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 5)), min_size=4, max_size=14)


def layout_table(key: str) -> str:
    return key.split("table=")[1].split("/")[0]


def emit(writer: RunWriter, table: str, step: int) -> Row:
    """Emit a row; returns it whole, as every reader must show it."""
    values = made_up(table, writer.attempt.id, step, writer.seq)
    common = {"run_id": writer.attempt.run, "attempt": writer.attempt.number, "seq": writer.seq}
    writer.emit(table, step=step, tokens=64 * step, **values)
    return {**common, "step": step, "tokens": 64 * step, **values}


def of_run(rows: list[Row]) -> list[Row]:
    """The run's rows in the order of their emission."""
    return sorted((row for row in rows if row["run_id"] == RUN), key=lambda row: row["seq"])


@contextmanager
def interrupted(storage: Storage, at: int, action: Callable[[], None]) -> Iterator[None]:
    """Do `action` before the request number `at` to `storage`."""
    asked = 0

    def counting(request: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == at:
                action()
            return request(*arguments)

        return ask

    names = ("put", "get", "get_many", "list", "keys", "stat")
    with patch.multiple(storage, **{name: counting(getattr(storage, name)) for name in names}):
        yield


@contextmanager
def hurried(seal_bytes: int) -> Iterator[None]:
    """Small segments, and no grace for a writer's own replaced objects."""
    with patch("muon_core.store.writer.SEAL_BYTES", seal_bytes), patch("muon_core.store.writer.READER_GRACE_S", 0.0):
        yield


def play(storage: Storage, operations: list[tuple[str, int]], seal_bytes: int, branches: bool) -> None:
    def one_by_one(objects: Mapping[str, bytes]) -> None:  # so that the same schedule does the same each time
        for key, data in objects.items():
            storage.put(key, data)

    with hurried(seal_bytes), patch.object(storage, "put_many", one_by_one):
        other = RunWriter(storage, "another", {})  # so that packs hold two runs
        for table in TABLES:
            emit(other, table, 1)
        other.end(status="done")
        schedule = Schedule(storage, branches=branches)
        for name, n in operations:
            OPERATIONS[name](schedule, n)
            schedule.check()
        schedule.check_through_polars()


@pytest.mark.slow
@settings(max_examples=LOCAL, deadline=None)
@given(operations=SCHEDULES, seal_bytes=st.sampled_from([1, 4 << 20]), branches=st.booleans())
def test_a_folder_shows_each_row_once_under_any_schedule(
    operations: list[tuple[str, int]], seal_bytes: int, branches: bool
) -> None:
    with tempfile.TemporaryDirectory() as root, patch("os.fsync"):  # no power is cut here
        play(Folder(Path(root)), operations, seal_bytes, branches)


@pytest.mark.parametrize("name", ON_SERVERS)
def test_s3_servers_show_each_row_once_under_any_schedule(
    name: str, s3_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(s3_servers.get(name), monkeypatch)

    # Not shrunk: it would take hours over HTTP, and the folder shows the same schedule.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)

    @settings(max_examples=ON_S3, deadline=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(operations=SCHEDULES, seal_bytes=st.sampled_from([1, 4 << 20]), branches=st.booleans())
    def try_all(operations: list[tuple[str, int]], seal_bytes: int, branches: bool) -> None:
        play(open_storage(fresh_url()), operations, seal_bytes, branches)

    try_all()
