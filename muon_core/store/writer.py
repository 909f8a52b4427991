"""Writes a run's rows to the results store while it trains, as immutable objects that readers see whole.

Rows wait in memory until a flush. A flush writes, for each table, all rows of its open segment again under a new name
(`lo` the same, `hi` further on); the version before stays for readers that listed it, and goes after their grace. A
segment above 4 MiB is sealed and the next begins, so that what is rewritten stays small. Commits run in a thread of
their own: training does not wait for the store, unless a checkpoint must not be published before its rows (`barrier`).

A store that is away for minutes costs nothing but memory: requests are repeated, and rows that were not stored are in
the next commit. An attempt that was superseded does no harm either, its rows are hidden; it looks for a newer start
record about once a minute, and before each checkpoint, so that it does not compute for nothing (`_fence`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa

from muon_core.statuses import FINISHED
from muon_core.store.final import finalize
from muon_core.store.keys import ROOT, Attempt, check_name, final_key, live_key, next_id, parse_ends
from muon_core.store.ledger import close_entry, read_entries
from muon_core.store.lineage import visible_slices
from muon_core.store.parquet import Row, digest, encode, to_arrow
from muon_core.store.reader import (
    list_keys,
    list_series_keys,
    mark_version,
    read_attempts,
    read_end,
    read_start,
    relisting,
)
from muon_core.store.storage import READER_GRACE_S, Storage, StoreError, StoreUnavailable, patiently
from muon_core.tables import RUNS, SERIES

log = logging.getLogger(__name__)
T = TypeVar("T")
SEAL_BYTES = 4 << 20  # above it a segment is closed, so rewriting the open segment stays cheap
FENCE_EVERY_S = 60.0  # how long an attempt may go on before it sees that another has taken its run over
PATIENCE_S = 300.0  # how long rows wait in memory for a store that does not answer
MAX_PENDING_VALUES = 1_000_000  # 50 to 100 MB, up to 150 while encoded: beyond it emitting waits for the store


class Superseded(RuntimeError):
    """A newer attempt has taken the run over: nothing this one writes will be seen, it should stop."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where the rows stand that belong to a state: a checkpoint stores it, and the next attempt starts from it."""

    attempt: str
    seq: int


@dataclass(slots=True)
class _Segment:
    """Rows of one table since `lo`; each commit writes all of them again under a new name, until it is sealed."""

    lo: int
    pending: list[Row] = field(default_factory=list)  # emitted, not yet handed to a commit
    parts: list[pa.Table] = field(default_factory=list)  # handed over; from here on the committing thread's own
    written: str | None = None
    hi: int = 0  # of `written`
    dirty: bool = False  # parts hold more than `written`
    sealed: bool = False


class RunWriter:
    """Rows of one attempt at a run. Used by rank 0 only, from one thread; commits happen in a thread of its own.

    Args:
        start: what is known of the run at its start, columns of the `runs` table; kept in the start record.
        parent, resume_seq: the `ResumePoint` of the state this attempt continues from, as its checkpoint says; the
            default starts the run from nothing.
        attempt: id to write under, which the process holds a lease for; None is the next one.
        patience_s: for how long a store that does not answer is asked again before StoreUnavailable ends the attempt.
    Raises: StoreError if the store cannot be written, or does not hold the rows before the resume point.
    """

    def __init__(
        self,
        storage: Storage,
        run_id: str,
        start: Row,
        *,
        parent: str = ROOT,
        resume_seq: int = 0,
        attempt: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        check_name(run_id)
        self._storage, self._patience_s = storage, patience_s
        self._gave_up: str | None = None
        self._ask(lambda: mark_version(storage))
        earlier = self._ask(lambda: read_attempts(storage, run_id)).get(run_id, {})
        if parent != ROOT:
            self._ask(lambda: _check_resume(storage, run_id, earlier, ResumePoint(parent, resume_seq)))
        self.attempt = Attempt(attempt or next_id([*earlier, parent]), parent, resume_seq, run_id)
        self.seq = resume_seq
        self._segments: dict[str, _Segment] = {}
        self._pending_values = 0
        self._replaced: list[tuple[float, str]] = []
        self._fenced_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._commit: Future[None] | None = None
        self._start = start | {"run_id": run_id, "started_at": datetime.now(UTC).isoformat()}
        # Nothing else is written before this record: from here on readers see this attempt's lineage, and what the
        # attempts before it write beyond its resume point is hidden.
        record = json.dumps(self._start, sort_keys=True).encode()
        self._ask(lambda: storage.put(self.attempt.key, record))

    def emit(self, table: str, *, step: int, tokens: int, **values: Any) -> None:
        """Add one row; it becomes readable with the next flush. Raises ValueError for a column the table has not."""
        if unknown := values.keys() - SERIES[table].columns.keys():
            raise ValueError(f"table {table} has no column {', '.join(sorted(unknown))}")
        segment = self._segments.setdefault(table, _Segment(self.attempt.resume_seq))
        common = {
            "run_id": self.attempt.run,
            "attempt": self.attempt.number,
            "seq": self.seq,
            "step": step,
            "tokens": tokens,
        }
        row = common | values
        segment.pending.append(row)
        self.seq += 1
        self._pending_values += len(row) + sum(len(value) for value in values.values() if isinstance(value, list))
        if self._pending_values >= MAX_PENDING_VALUES:
            self.flush()

    def flush(self, *, wait: bool = True) -> None:
        """Make every emitted row readable; with `wait` False begin to, off the caller's path.

        Raises StoreUnavailable if the store stayed away too long, now or in a commit begun earlier; the rows stay in
        memory and the next flush tries again. Raises Superseded if another attempt has taken the run over.
        """
        # One commit at a time: while it runs, what was handed over to it belongs to the committing thread.
        if self._commit and (wait or self._commit.done()):
            self._await_commit()
        if self._commit is None and any(item.pending or item.dirty for item in self._segments.values()):
            self._commit = self._thread.submit(self._commit_rows, self._hand_over(), self.seq)
        if wait and self._commit:
            self._await_commit()

    def barrier(self) -> ResumePoint:
        """Wait until the store has every row, and return what a checkpoint of this moment must hold.

        Raises as `flush` does; a checkpoint must not be published then.
        """
        self.flush()
        self._fence()
        return ResumePoint(self.attempt.id, self.seq)

    def superseded(self) -> bool:
        """Whether a newer attempt has taken the run over."""
        tries = self._ask(lambda: read_attempts(self._storage, self.attempt.run))
        return max(tries.get(self.attempt.run, ""), default="") > self.attempt.id

    def end(self, *, settle: Callable[[], None] = lambda: None, **end: Any) -> None:
        """Flush, write the run's final tables, then its end record: `end` holds `status` and the outcome's columns.

        Args:
            settle: called before the end record: waits for what else must be stored by then.
        Raises as `flush` and `settle` do; it may be called again then, to record another end.
        """
        self.barrier()
        run, head = self.attempt.run, self.attempt.id
        # Finals before the end record: who sees that a run is done finds them.
        if end["status"] in FINISHED:
            self._ask(lambda: relisting(lambda: finalize(self._storage, run, num_rows=self.seq, head=head)))
            self._fence()  # finalize passes over a run that was taken over meanwhile
        settle()
        started_at = datetime.fromisoformat(self._start["started_at"])
        row = self._start | {"ended_at": datetime.now(UTC), "started_at": started_at} | end
        self._ask(lambda: write_end_record(self._storage, self.attempt, row, self.seq))
        self._thread.shutdown()

    def _ask(self, request: Callable[[], T]) -> T:
        """The store's answer; once patience with it is spent, what follows is asked once and fails with that error."""
        try:
            return patiently(request, self._patience_s)
        except StoreUnavailable as error:
            self._patience_s, self._gave_up = 0.0, self._gave_up or str(error)
            raise StoreUnavailable(self._gave_up) from error

    def _await_commit(self) -> None:
        """Wait for the commit under way and raise what it raised."""
        commit, self._commit = self._commit, None
        if commit:
            commit.result()

    def _hand_over(self) -> list[tuple[str, _Segment, list[Row]]]:
        """The rows emitted so far, for a commit; no commit is under way."""
        batch = []
        self._pending_values = 0
        for table, segment in self._segments.items():
            if segment.sealed and segment.pending:  # the next segment begins where the sealed one ends, without a gap
                segment = self._segments[table] = _Segment(segment.hi, segment.pending)
            batch.append((table, segment, segment.pending))
            segment.pending = []
        return batch

    def _commit_rows(self, batch: list[tuple[str, _Segment, list[Row]]], hi: int) -> None:
        """Write every segment with new rows; runs in the writer's thread."""
        for table, segment, rows in batch:
            if rows:
                segment.parts.append(to_arrow(rows, SERIES[table]))
                segment.dirty = True
        if time.monotonic() - self._fenced_at > FENCE_EVERY_S:
            self._fence()
        self._write({table: segment for table, segment, _ in batch if segment.dirty}, hi)
        self._remove_replaced()

    def _remove_replaced(self) -> None:
        """Remove versions of segments that no reader is on any more; what cannot go now is left to a later call."""
        expired = [key for at, key in self._replaced if time.monotonic() - at > READER_GRACE_S]
        try:
            self._storage.delete(expired)
        except StoreError as error:
            log.info("%d replaced objects stay for now: %s", len(expired), error)
        else:
            self._replaced = [(at, key) for at, key in self._replaced if key not in expired]

    def _write(self, segments: dict[str, _Segment], hi: int) -> None:
        """Write each table's segment, up to row `hi`."""
        run, id_ = self.attempt.run, self.attempt.id
        keys = {table: live_key(table, run, id_, segment.lo, hi) for table, segment in segments.items()}
        objects = {}
        for table, segment in segments.items():
            segment.parts = [pa.concat_tables(segment.parts).combine_chunks()]
            objects[keys[table]] = encode(segment.parts[0], SERIES[table])
        # Repeated after an answer that got lost, it changes nothing: this name is this attempt's, and so are its bytes.
        self._ask(lambda: self._storage.put_many(objects))
        # Only now: if a put failed, the segments are still dirty, and the next commit writes these rows with its own.
        for table, segment in segments.items():
            if segment.written:
                self._replaced.append((time.monotonic(), segment.written))
            segment.dirty, segment.written, segment.hi = False, keys[table], hi
            segment.sealed = len(objects[keys[table]]) > SEAL_BYTES
            if segment.sealed:
                segment.parts = []

    def _fence(self) -> None:
        if self.superseded():
            run, id_ = self.attempt.run, self.attempt.id
            raise Superseded(f"run {run}: a newer attempt than {id_} has taken over, so this one stops")
        self._fenced_at = time.monotonic()


def head_point(storage: Storage, run: str) -> ResumePoint:
    """Where the rows of the run's newest attempt end: an attempt from here on keeps all of them."""
    attempts = read_attempts(storage, run).get(run, {})
    if not attempts:
        return ResumePoint(ROOT, 0)
    return ResumePoint(max(attempts), _rows_held(storage, run, attempts.values()))


def _check_resume(storage: Storage, run: str, attempts: dict[str, Attempt], point: ResumePoint) -> None:
    """Refuse a checkpoint whose rows the store does not hold: going on would leave a hole in the run's tables."""
    where = f"run {run}: its checkpoint continues attempt {point.attempt} at row {point.seq}"
    remedy = "point it to the store that checkpoint was written with, or remove the checkpoint to begin again"
    if point.attempt not in attempts:
        raise StoreError(f"{where}, which {storage.url} does not know; {remedy}")
    # How far would the rows of an attempt reach that began there and wrote nothing? The lineage answers that, too.
    child = Attempt(next_id(attempts), point.attempt, point.seq, run)
    held = _rows_held(storage, run, [*attempts.values(), child])
    if held < point.seq:
        raise StoreError(f"{where}, but {storage.url} holds its rows up to {held} only; {remedy}")


def _rows_held(storage: Storage, run: str, attempts: Iterable[Attempt]) -> int:
    """The first seq of the newest of `attempts` of which the store has no row."""
    keys, data = [attempt.key for attempt in attempts], list_series_keys(storage, run)
    return max((item.end for table in SERIES for item in visible_slices(keys, data, table)), default=0)


def write_end_record(storage: Storage, attempt: Attempt, row: Row, num_rows: int) -> None:
    """Publish how an attempt ended: one row of the `runs` table. The first to say so is believed.

    A launcher that lost sight of a process, and the process itself, may both record an end. What was read once, and
    acted upon, must not change, so the later of them writes nothing.

    Args:
        num_rows: rows of all tables in the attempt's lineage: later it shows whether any of them was lost.
    """
    keys = list_keys(storage, f"final/table={RUNS.name}/run={attempt.run}/")
    if (attempt.run, attempt.id) not in parse_ends(keys):
        data = encode([row | {"attempts": attempt.number}], RUNS, final=True)
        storage.put(final_key(RUNS.name, attempt.run, attempt.id, num_rows, digest(data)), data)


def record_failure(
    storage: Storage, run_id: str, start: Row, error: str, attempt: str | None = None, failure: str | None = None
) -> None:
    """Record that a run failed, for a process without its writer; an attempt that has ended stays as it is.

    Args:
        failure: its kind, for the ledger.
        attempt: id of the attempt that failed, whether it had begun to write or only claimed the run; None if it got
            no further than to be started. Any other may be at work somewhere else, and is left alone.
    """
    mark_version(storage)
    attempts = read_attempts(storage, run_id).get(run_id, {})
    newest = max(attempts, default="")
    if attempt and attempt == newest:
        row = read_start(storage, attempts[attempt]) | {"ended_at": datetime.now(UTC), "status": "failed"}
        held = _rows_held(storage, run_id, attempts.values())
        write_end_record(storage, attempts[attempt], row | {"error": error}, held)
    elif not attempts or _may_follow(storage, run_id, attempt, newest):
        point = head_point(storage, run_id)
        writer = RunWriter(storage, run_id, start, parent=point.attempt, resume_seq=point.seq, attempt=attempt)
        writer.end(status="failed", error=error)
    else:
        return
    with suppress(StoreError):  # a damaged entry may be what the run failed by
        for entry in read_entries(storage, run_id):
            if entry.attempt == attempt:
                close_entry(storage, entry, "failed", failure=failure, error=error)


def _may_follow(storage: Storage, run_id: str, attempt: str | None, newest: str) -> bool:
    """Whether `attempt`, which wrote nothing, may be recorded after `newest`: that has ended, but has no result.

    Of an attempt that holds the run's lease it is known that the one before is over, too.
    """
    end = read_end(storage, run_id)
    status = end["status"] if end else "running"
    return status not in FINISHED and (status != "running" if attempt is None else attempt > newest)
