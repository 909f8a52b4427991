"""What a store holds at this moment: which objects make up the rows of a table, and how runs ended."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from muon_core import layout
from muon_core.parquet import decode_named
from muon_core.storage import Storage, StoreError
from muon_core.tables import RUNS, Table


def list_keys(storage: Storage, prefix: str) -> list[str]:
    """Keys below `prefix`."""
    return [key for key, _ in storage.list(prefix)]


def read_attempts(storage: Storage, run: str | None = None) -> dict[str, dict[str, layout.Attempt]]:
    """Start records of one run, or of all, as run -> id -> Attempt."""
    return layout.parse_attempts(list_keys(storage, f"attempts/{run}/" if run else "attempts/"))


def read_packs(storage: Storage, table: str) -> list[layout.Pack]:
    """The packs of `table`; one that is taken away meanwhile is left out, for a pack only repeats finals."""
    packs = []
    for key in layout.parse_manifests(list_keys(storage, f"packs/table={table}/")):
        try:
            manifest = json.loads(storage.get(key))
        except FileNotFoundError:
            continue
        members = tuple(layout.Member(*member) for member in manifest["members"])
        packs.append(layout.Pack(f"{key.removesuffix('.json')}.parquet", members))
    return packs


def visible_objects(storage: Storage, table: str, run: str | None = None) -> tuple[list[layout.Visible], dict[str, int]]:
    """Objects that make up the rows of `table`, of one run or of all with packs, and the size of every object listed."""
    below = f"run={run}/" if run else ""
    # Attempts first, live before final: a listing then misses at most the newest rows, never some in the middle.
    attempts = list_keys(storage, f"attempts/{run}/" if run else "attempts/")
    sizes = dict(storage.list(f"live/table={table}/{below}")) | dict(storage.list(f"final/table={table}/{below}"))
    packs = [] if run else read_packs(storage, table)
    return layout.visible(attempts, list(sizes), table, packs), sizes


def read_rows(storage: Storage, objects: Collection[layout.Visible], table: Table) -> pa.Table:
    """The rows that count of `objects`, in `table`'s schema. Raises StoreError naming a damaged object."""
    keys = sorted({item.key for item in objects})
    files = {
        key: decode_named(data, storage.uri(key)) for key, data in zip(keys, storage.get_many(keys), strict=True)
    }
    return pa.concat_tables([table.schema.empty_table(), *(cut(files[item.key], item, table) for item in objects)])


def cut(rows: pa.Table, item: layout.Visible, table: Table) -> pa.Table:
    """The part of an object's rows that `item` says, with exactly the columns of `table`."""
    keep = pc.field("run_id") == item.run
    if "seq" in rows.column_names:
        keep = keep & (pc.field("seq") >= item.start) & (pc.field("seq") < item.end)
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in table.schema
    ]
    return pa.table(columns, names=table.schema.names).cast(table.schema).filter(keep)


def read_ends(storage: Storage, heads: Iterable[layout.Attempt]) -> pa.Table:
    """End records of those of `heads` that have ended, in the `runs` schema; packed ones are read from their pack."""
    wanted = {(head.run, head.id): head for head in heads}
    present = set(list_keys(storage, f"final/table={RUNS.name}/"))
    objects: dict[tuple[str, str], layout.Visible] = {}
    for pack in sorted(read_packs(storage, RUNS.name), key=lambda pack: (len(pack.members), pack.key)):
        for run, attempt, hi, _ in pack.members:
            objects[run, attempt] = layout.Visible(pack.key, run, attempt, None, final=True, hi=hi)
    for run, attempt in wanted:
        key = layout.final_key(RUNS.name, run, attempt)
        if key in present:
            objects.setdefault((run, attempt), layout.Visible(key, run, attempt, None, final=True))
    return _one_each(storage, [item for who, item in objects.items() if who in wanted])


def _one_each(storage: Storage, objects: list[layout.Visible]) -> pa.Table:
    """Rows of `objects`; each file is read once, and filtered once however many runs it holds."""
    runs: dict[str, set[str]] = {}
    for item in objects:
        runs.setdefault(item.key, set()).add(item.run)
    parts = [RUNS.schema.empty_table()]
    for (key, names), data in zip(runs.items(), storage.get_many(runs), strict=True):
        rows = decode_named(data, storage.uri(key))
        whole = layout.Visible(key, next(iter(names)), "", None, final=True)
        parts.append(cut(rows, whole, RUNS) if len(names) == 1 else rows.filter(pc.field("run_id").isin(list(names))))
    return pa.concat_tables(parts, promote_options="default").select(RUNS.schema.names).cast(RUNS.schema)


def read_statuses(storage: Storage) -> dict[str, str]:
    """Status of every run in the store: how its newest attempt ended, `running` while it has not."""
    heads = [max(tries.values()) for tries in read_attempts(storage).values()]
    ends = read_ends(storage, heads)
    statuses = dict(zip(ends["run_id"].to_pylist(), ends["status"].to_pylist(), strict=True))
    return {head.run: statuses.get(head.run, "running") for head in heads}


def read_start(storage: Storage, attempt: layout.Attempt) -> dict[str, Any]:
    """Start record of `attempt` as a row of the `runs` table. Raises StoreError if it is damaged."""
    try:
        record = json.loads(storage.get(attempt.key))
    except ValueError as error:
        raise StoreError(f"{storage.uri(attempt.key)} is not JSON ({error}); restore it from a backup") from error
    started_at = record.get("started_at")
    return record | {"run_id": attempt.run, "started_at": datetime.fromisoformat(started_at) if started_at else None}
