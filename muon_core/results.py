"""Writes a run's rows to the results store as immutable Parquet objects; the names follow `muon_core.layout`."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from muon_core import layout
from muon_core.storage import Storage
from muon_core.tables import RUNS, SERIES, Table

SEAL_BYTES = 4 << 20  # above it a segment is closed, so rewriting the open segment stays cheap
GRACE_S = 600.0  # readers may still open an object they listed this long ago
SERIES_ROW_GROUP = 5_280  # rows: one layer and projection of a long run reads 4x faster than from one group

Row = dict[str, Any]


def encode(rows: list[Row] | pa.Table, table: Table, *, final: bool = False) -> bytes:
    """Parquet bytes in `table`'s schema: zstd, byte-stream-split floats, dictionaries for text only."""
    data = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=table.schema)
    floats = [name for name, (dtype, _) in table.columns.items() if pa.types.is_floating(dtype)]
    texts = [name for name, (dtype, _) in table.columns.items() if pa.types.is_string(dtype)]
    sink = io.BytesIO()  # whole in memory first: a stream cut by an exception would publish a truncated table
    pq.write_table(
        data,
        sink,
        compression="zstd",
        compression_level=3 if final else 1,
        use_dictionary=texts,
        use_byte_stream_split=floats,
        row_group_size=SERIES_ROW_GROUP,
    )
    return sink.getvalue()


def decode(data: bytes) -> pa.Table:
    """Inverse of `encode`."""
    return pq.ParquetFile(io.BytesIO(data)).read()  # pq.read_table can abort the interpreter at exit


@dataclass(slots=True)
class _Segment:
    """Rows of one table since `lo`; each flush writes all of them again under a new name, until it is sealed."""

    lo: int
    rows: list[Row] = field(default_factory=list)
    dirty: bool = False
    written: str | None = None


class RunWriter:
    """Rows of one attempt at a run. Used by rank 0 only.

    Args:
        start: what is known of the run at its start, columns of the `runs` table; kept in the start record.
        parent, resume_seq: the attempt and emission counter of the state this attempt continues from, as its
            checkpoint says; the default starts the run from nothing.
    """

    def __init__(
        self, storage: Storage, run_id: str, start: Row, *, parent: str = layout.ROOT, resume_seq: int = 0
    ) -> None:
        layout.check_name(run_id)
        earlier = layout.parse_attempts(key for key, _ in storage.list(f"attempts/{run_id}/")).get(run_id, {})
        self._storage = storage
        self.attempt = layout.Attempt(layout.next_id([*earlier, parent]), parent, resume_seq, run_id)
        self.seq = resume_seq
        self._segments: dict[str, _Segment] = {}
        self._superseded: list[tuple[float, str]] = []
        self._start = start | {"run_id": run_id, "started_at": datetime.now(UTC).isoformat()}
        # Nothing else is written before this record: from here on readers see this attempt's lineage.
        storage.put(self.attempt.key, json.dumps(self._start, sort_keys=True).encode())

    def emit(self, table: str, *, step: int, tokens: int, **values: Any) -> None:
        """Add one row; it becomes readable with the next flush."""
        segment = self._segments.setdefault(table, _Segment(self.attempt.resume_seq))
        common = {
            "run_id": self.attempt.run,
            "attempt": self.attempt.number,
            "seq": self.seq,
            "step": step,
            "tokens": tokens,
        }
        segment.rows.append(common | values)
        segment.dirty = True
        self.seq += 1

    def flush(self) -> None:
        """Make every emitted row readable."""
        for table, segment in self._segments.items():
            if segment.dirty:
                self._write(table, segment)
        expired = [key for at, key in self._superseded if time.monotonic() - at > GRACE_S]
        self._storage.delete(expired)
        self._superseded = [(at, key) for at, key in self._superseded if key not in expired]

    def _write(self, table: str, segment: _Segment) -> None:
        data = encode(segment.rows, SERIES[table])
        key = layout.live_key(table, self.attempt.run, self.attempt.id, segment.lo, self.seq)
        self._storage.put(key, data)
        if segment.written:
            self._superseded.append((time.monotonic(), segment.written))
        segment.dirty, segment.written = False, key
        if len(data) > SEAL_BYTES:
            self._segments[table] = _Segment(self.seq)

    def end(self, **end: Any) -> None:
        """Flush, write the run's final tables, then its end record: `end` holds `status` and the outcome's columns."""
        self.flush()
        if end["status"] in ("done", "diverged"):
            finalize(self._storage, self.attempt.run)
        started_at = datetime.fromisoformat(self._start["started_at"])
        row = self._start | {"ended_at": datetime.now(UTC), "started_at": started_at} | end
        write_end_record(self._storage, self.attempt, row)


def write_end_record(storage: Storage, attempt: layout.Attempt, row: Row) -> None:
    """Publish how an attempt ended: one row of the `runs` table."""
    key = layout.final_key(RUNS.name, attempt.run, attempt.id)
    storage.put(key, encode([row | {"attempts": attempt.number}], RUNS, final=True))


def record_failure(storage: Storage, run_id: str, start: Row, error: str) -> None:
    """Record that a run failed for a process that does not hold its writer; an attempt that has ended stays as it is."""
    attempts = layout.parse_attempts(_keys(storage, f"attempts/{run_id}/")).get(run_id)
    if not attempts:
        RunWriter(storage, run_id, start).end(status="failed", error=error)
        return
    head = attempts[max(attempts)]
    if layout.final_key(RUNS.name, run_id, head.id) not in _keys(storage, f"final/table={RUNS.name}/run={run_id}/"):
        start = json.loads(storage.get(head.key))
        start["started_at"] = datetime.fromisoformat(start["started_at"])
        write_end_record(storage, head, start | {"ended_at": datetime.now(UTC), "status": "failed", "error": error})


def finalize(storage: Storage, run_id: str) -> None:
    """Write the run's rows once more, sorted for reading: one `final` object a table, for its newest attempt."""
    attempt_keys = _keys(storage, f"attempts/{run_id}/")
    head = max(layout.parse_attempts(attempt_keys)[run_id])
    for table in SERIES.values():
        data_keys = [
            *_keys(storage, f"live/table={table.name}/run={run_id}/"),
            *_keys(storage, f"final/table={table.name}/run={run_id}/"),
        ]
        key = layout.final_key(table.name, run_id, head)
        objects = layout.visible(attempt_keys, data_keys, table.name)
        if not objects or key in data_keys:
            continue
        rows = pa.concat_tables(_rows(storage, item) for item in objects).cast(table.schema)
        # Long series last: a heatmap of one layer and projection then lies in neighbouring rows.
        order = [*(name for name in table.key if name != "step"), "step"]
        storage.put(key, encode(rows.sort_by([(name, "ascending") for name in order]), table, final=True))


def _rows(storage: Storage, item: layout.Visible) -> pa.Table:
    rows = decode(storage.get(item.key))
    return rows if item.bound is None else rows.filter(pa.compute.field("seq") < item.bound)


def _keys(storage: Storage, prefix: str) -> list[str]:
    return [key for key, _ in storage.list(prefix)]


def read_statuses(storage: Storage) -> dict[str, str]:
    """Status of every run in the store: how its newest attempt ended, `running` while it has not."""
    ends = set(_keys(storage, f"final/table={RUNS.name}/"))
    statuses: dict[str, str] = {}
    for run, attempts in layout.parse_attempts(_keys(storage, "attempts/")).items():
        key = layout.final_key(RUNS.name, run, max(attempts))
        statuses[run] = decode(storage.get(key))["status"][0].as_py() if key in ends else "running"
    return statuses


def write_sweep(storage: Storage, name: str, record: Row) -> None:
    """Record what a sweep asks and which runs answer it; a new record only where it differs from the newest."""
    layout.check_name(name)
    keys = _keys(storage, f"sweeps/{name}/")
    data = json.dumps(record | {"sweep": name}, sort_keys=True).encode()
    if newest := layout.parse_sweeps(keys).get(name):
        if storage.get(newest) == data:
            return
    ids = _sweep_ids(keys)
    storage.put(layout.sweep_key(name, layout.next_id(ids)), data)


def _sweep_ids(keys: Iterable[str]) -> list[str]:
    return [key.rsplit("/", 1)[1].removesuffix(".json") for key in keys]
