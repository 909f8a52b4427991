"""A run's rows once more, sorted for reading: one `final` object a table, written when the run has ended.

While a run trains its rows come in many small objects, in the order they were emitted. A final holds those that count,
ancestors' included, sorted so that the series of one layer lies in one place: a question opens one object and reads a
few pages of it. Nothing is lost on the way: the end record of a finished run says how many rows it wrote, and `seq`
numbers them over all tables, so its finals are written only if each number is there once.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from muon_core.store.keys import ObjectSlice, final_key, parse_attempts
from muon_core.store.lineage import visible_slices
from muon_core.store.parquet import digest, encode, sort_for_reading
from muon_core.store.reader import list_keys, list_series_keys, read_rows
from muon_core.store.storage import Storage, StoreError
from muon_core.tables import SERIES, Table


def finalize(storage: Storage, run_id: str, *, num_rows: int | None = None, head: str | None = None) -> int:
    """Write the run's rows once more, sorted for reading: one `final` object a table. Returns how many are new.

    Args:
        num_rows: how many rows the run wrote to all tables; StoreError is raised unless each is there once.
        head: the attempt that `num_rows` is known of; nothing is written if it is no longer the newest.
    """
    attempt_keys = list_keys(storage, f"attempts/{run_id}/")
    newest = max(parse_attempts(attempt_keys)[run_id])
    if head not in (None, newest):
        return 0
    data_keys = list_series_keys(storage, run_id)
    objects = {table.name: visible_slices(attempt_keys, data_keys, table.name) for table in SERIES.values()}
    todo = [name for name, items in objects.items() if items and not is_final(items, newest)]
    if not todo and (any(objects.values()) or not num_rows):
        return 0
    names = todo if num_rows is None else objects  # the count is over all tables, also those that have their final
    rows = {name: read_rows(storage, objects[name], SERIES[name], lossless=True) for name in names}
    if num_rows is not None:
        _check_complete(run_id, storage.url, rows, num_rows)
    ends = {name: max(item.end for item in objects[name]) for name in todo}
    storage.put_many(dict(_final(SERIES[name], run_id, newest, ends[name], rows[name]) for name in todo))
    return len(todo)


def _check_complete(run: str, url: str, rows: dict[str, pa.Table], num_rows: int) -> None:
    """Raise StoreError unless each number below `num_rows` came up once: `seq` counts over all tables together."""
    seqs = pa.chunked_array([chunk for table in rows.values() for chunk in table["seq"].chunks], pa.int64())
    distinct = pc.count_distinct(seqs).as_py()
    if not len(seqs) == distinct == num_rows:
        raise StoreError(
            f"run {run}: {num_rows - distinct} of its {num_rows} rows are missing from {url} and "
            f"{len(seqs) - distinct} are double; restore live/ from a backup, or run it again"
        )


def _final(table: Table, run: str, head: str, hi: int, rows: pa.Table) -> tuple[str, bytes]:
    """(key, content)."""
    # Two processes may write it at once, perhaps with different encoders: every reader chooses the same of such twins.
    data = encode(sort_for_reading(rows, table), table, final=True)
    return final_key(table.name, run, head, hi, digest(data)), data


def is_final(items: list[ObjectSlice], head: str) -> bool:
    """Whether a final of attempt `head` alone makes up these rows."""
    return len(items) == 1 and items[0].final and items[0].attempt == head
