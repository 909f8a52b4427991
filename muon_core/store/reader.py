"""What a store holds at this moment: which objects make up the rows of a table, and how runs ended.

A reader lists, lets the lineage choose (`muon_core.store.lineage`), and reads what was chosen, while writers add
objects and compaction removes them. Two rules make that safe without a lock. Listings come in an order in which nothing
falls between them, see `visible_objects`. And an object that went after it was listed has been replaced by one with the
same rows, so the reader begins anew (`relisting`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from muon_core.statuses import record_told
from muon_core.store.keys import (
    Attempt,
    ObjectSlice,
    Pack,
    PackedRun,
    parse_attempts,
    parse_ends,
    parse_manifests,
    parse_version,
    version_key,
)
from muon_core.store.lineage import Problems, has_gap, precedence, visible_slices
from muon_core.store.parquet import decode_named, digest, newer_schema, texts
from muon_core.store.storage import Storage, StoreError
from muon_core.tables import RUNS, SCHEMA_VERSION, SERIES, Table

log = logging.getLogger(__name__)
T = TypeVar("T")
DAMAGED_PACK = "passed over: %s is damaged; finals hold its rows, and muon compact replaces it"
RELIST_PAUSES_S = (0.0, 0.1, 0.2, 0.4, 0.8)


def relisting(read: Callable[[], T]) -> T:
    """The answer of `read`, which lists and then reads: begun anew if an object went in between, as in compaction."""
    for pause in RELIST_PAUSES_S:
        try:
            return read()
        except FileNotFoundError:
            time.sleep(pause)
    return read()


def list_keys(storage: Storage, prefix: str) -> list[str]:
    """Keys below `prefix`."""
    return storage.keys(prefix)


def list_series_keys(storage: Storage, run: str) -> list[str]:
    """Keys of the live and final rows of a run, of every table written row by row."""
    folders = [f"{kind}/table={table}/run={run}/" for table in SERIES for kind in ("live", "final")]
    return [key for folder in folders for key in list_keys(storage, folder)]


def check_version(storage: Storage) -> bool:
    """Whether the store is marked with this release's schema; raises StoreError if a newer one marked it.

    Objects have a mark of their own, which is seen where they are decoded or checked (`muon_core.store.parquet.check`).
    """
    versions = [parse_version(key) for key in list_keys(storage, "schema/")]
    newest = max((version for version in versions if version is not None), default=0)
    if newest > SCHEMA_VERSION:
        raise newer_schema(storage.url, newest)
    return newest == SCHEMA_VERSION


def mark_version(storage: Storage) -> None:
    """Mark the store with the schema of this release, before it writes there. Raises StoreError as `check_version`."""
    if not check_version(storage):
        storage.put(version_key(SCHEMA_VERSION), b"{}")


def read_attempts(storage: Storage, run: str | None = None) -> dict[str, dict[str, Attempt]]:
    """Start records of one run, or of all, as run -> id -> Attempt."""
    return parse_attempts(list_keys(storage, f"attempts/{run}/" if run else "attempts/"))


def read_packs(storage: Storage, table: str, sizes: Mapping[str, int] | None = None) -> list[Pack]:
    """The packs of `table` that are as long as their manifests say; `sizes` are those below packs/, if known already.

    The others are passed over, for a pack only repeats finals; so is one that is removed meanwhile.
    """
    sizes = dict(storage.list(f"packs/table={table}/")) if sizes is None else sizes
    packs = []
    for key in parse_manifests(sizes):
        pack_key = f"{key.removesuffix('.json')}.parquet"
        try:
            manifest = json.loads(storage.get(key))
            runs, size = tuple(PackedRun(*run) for run in manifest["members"]), manifest["bytes"]
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError) as error:
            log.warning("passed over: %s is damaged (%r); muon compact replaces it", storage.uri(key), error)
            continue
        if sizes.get(pack_key) == size:
            packs.append(Pack(pack_key, runs))
        elif pack_key in sizes:
            log.warning(DAMAGED_PACK, storage.uri(pack_key))
    return packs


def visible_objects(
    storage: Storage,
    table: str,
    run: str | None = None,
    problems: Problems | None = None,
    without: Collection[str] = (),
) -> tuple[list[ObjectSlice], dict[str, int]]:
    """Objects that make up the rows of `table`, of one run or of all with packs, and the size of each.

    Packs named in `without` are passed over. Raises BrokenLineage unless there are `problems` to record it in, and
    FileNotFoundError if one went meanwhile.
    """
    below = f"run={run}/" if run else ""
    # In this order listings miss the newest rows at most. Attempts come first: what an attempt resumes from is stored
    # before its start record, so the later listings show all rows below the resume point of any attempt found here.
    # Live comes before final: compaction writes a final before it removes what that replaces, so rows that had left
    # live/ when it was listed are in final/ by then.
    attempts = list_keys(storage, f"attempts/{run}/" if run else "attempts/")
    live = _sizes(storage, f"live/table={table}/{below}")
    if has_gap(live, table):
        # A listing of several pages may pass the place of a segment before that is written and then meet the one after
        # it. The next listing has both; a gap that stays is that of an object somebody deleted.
        live = _sizes(storage, f"live/table={table}/{below}")
    sizes = live | _sizes(storage, f"final/table={table}/{below}")
    packed = {} if run else dict(storage.list(f"packs/table={table}/"))
    packs = [pack for pack in read_packs(storage, table, packed) if pack.key not in without]
    chosen = visible_slices(attempts, list(sizes), table, packs, problems)
    sizes |= packed
    keys = dict.fromkeys(item.key for item in chosen)
    if storage.is_local:
        return chosen, {key: os.stat(storage.uri(key)).st_size for key in keys}
    return chosen, {key: sizes[key] for key in keys}


def _sizes(storage: Storage, prefix: str) -> dict[str, int]:
    """The size of each object below `prefix`; 0 in a folder, which would have to look at thousands of files for it."""
    return dict.fromkeys(storage.keys(prefix), 0) if storage.is_local else dict(storage.list(prefix))


def read_rows(
    storage: Storage,
    objects: Collection[ObjectSlice],
    table: Table,
    *,
    lossless: bool = False,
    problems: Problems | None = None,
) -> pa.Table:
    """The rows that count of `objects`, in `table`'s schema.

    Args:
        lossless: the rows are to be written again, so also refuse unknown columns and rows of another run.
        problems: where to record objects that cannot be read, which are left out then.
    Raises: StoreError naming an object that is damaged, of a newer schema or refused, unless there are `problems`.
    """
    groups: dict[str, list[ObjectSlice]] = {}
    for item in objects:
        groups.setdefault(item.key, []).append(item)
    parts = [pa.Table.from_batches([], table.schema)]
    for (key, items), data in zip(groups.items(), storage.get_many(groups), strict=True):
        try:
            rows = decode_named(data, storage.uri(key))
            if lossless:
                _check_lossless(rows, items, table, storage.uri(key))
        except StoreError as error:
            if problems is None:
                raise
            problems.update({item.run: str(error) for item in items})
        else:
            parts += _cut(fit(rows, table), items)
    return pa.concat_tables(parts)


def _check_lossless(rows: pa.Table, items: list[ObjectSlice], table: Table, uri: str) -> None:
    if unknown := set(rows.column_names) - set(table.columns):
        names = ", ".join(sorted(unknown))
        raise StoreError(f"{uri} has columns of a newer release ({names}); update before compacting")
    if items[0].num_runs == 1 and set(rows["run_id"].unique().to_pylist()) - {items[0].run}:
        raise StoreError(f"{uri} holds rows of another run than its name says; delete it")


def _cut(rows: pa.Table, items: list[ObjectSlice]) -> list[pa.Table]:
    """The parts of one object's rows that `items` say."""
    # One filter for all runs that count whole: a pack may hold hundreds.
    whole = [item.run for item in items if item.start == 0 and item.bound is None]
    parts = [rows.filter(pc.is_in(rows["run_id"], texts(whole)))] if whole else []
    for item in items:
        if item.run not in whole:
            seq = pc.field("seq")
            parts.append(rows.filter((pc.field("run_id") == item.run) & (seq >= item.start) & (seq < item.end)))
    return parts


def fit(rows: pa.Table, table: Table) -> pa.Table:
    """Exactly the columns of `table`: those another release lacks are null, those it adds are left out."""
    schema = table.schema
    if rows.schema.equals(schema):
        return rows
    present = set(rows.column_names)
    columns = [rows[field.name] if field.name in present else pa.nulls(rows.num_rows, field.type) for field in schema]
    return pa.table(columns, names=schema.names).cast(schema)


def read_ends(
    storage: Storage,
    heads: Iterable[Attempt],
    problems: Problems | None = None,
    *,
    read: Callable[..., pa.Table] = read_rows,
) -> pa.Table:
    """End records of those of `heads` that have ended, in the `runs` schema; packed ones are read from their pack.

    Args:
        read: reads the others, as `read_rows` does.
    Raises: StoreError naming a damaged one unless there are `problems` to record it in, which leaves the run out.
    """
    present = parse_ends(list_keys(storage, f"final/table={RUNS.name}/"))
    wanted = {(head.run, head.id) for head in heads}
    parts = [pa.Table.from_batches([], RUNS.schema)]
    for pack in sorted(read_packs(storage, RUNS.name), key=precedence, reverse=True):
        packed = wanted & {(run, attempt) for run, attempt, _ in pack.runs}
        if packed and (data := get_pack(storage, pack)) is not None:
            rows = fit(decode_named(data, storage.uri(pack.key)), RUNS)
            parts.append(rows.filter(pc.is_in(rows["run_id"], texts(run for run, _ in packed))))
            wanted -= packed
    # Those no pack holds: they have ended since the last compaction.
    own = [present[who] for who in sorted(wanted & present.keys())]
    return pa.concat_tables([*parts, read(storage, own, RUNS, problems=problems)])


def read_end(storage: Storage, run: str) -> dict[str, Any] | None:
    """How the newest attempt of `run` ended, as a row of the `runs` table; None if it has not, or there is none.

    An end record that cannot be read is named in a warning and counts as none.
    """
    head = max(read_attempts(storage, run).get(run, {}).values(), default=None)
    keys = list_keys(storage, f"final/table={RUNS.name}/run={run}/")
    end = parse_ends(keys).get((run, head.id)) if head else None
    problems: Problems = {}
    rows = read_rows(storage, [end], RUNS, problems=problems).to_pylist() if end else []
    for problem in problems.values():
        log.warning("run %s counts as not ended: %s", run, problem)
    return rows[0] if rows else None


def get_pack(storage: Storage, pack: Pack) -> bytes | None:
    """Content of a pack; None if it is damaged or gone, which is no loss: finals hold its rows too."""
    try:
        data = storage.get(pack.key)
    except FileNotFoundError:
        return None
    if digest(data) in pack.key:
        return data
    log.warning(DAMAGED_PACK, storage.uri(pack.key))
    return None


def read_statuses(storage: Storage) -> dict[str, str]:
    """Status of every run in the store: how its newest attempt ended, `running` while it has not, or `stopped early`.

    An end record that cannot be read is named in a warning and counts as none.
    """
    heads = [max(tries.values()) for tries in read_attempts(storage).values()]
    ends = relisting(lambda: read_ends_of(storage, heads))
    columns = zip(*(ends[name].to_pylist() for name in ("run_id", "status", "error")), strict=True)
    statuses = {run: record_told(status, error) or status for run, status, error in columns}
    return {head.run: statuses.get(head.run, "running") for head in heads}


def read_ends_of(storage: Storage, heads: Iterable[Attempt]) -> pa.Table:
    """`read_ends`; one that cannot be read is named in a warning and left out."""
    problems: Problems = {}
    ends = read_ends(storage, heads, problems)
    for run, problem in problems.items():
        log.warning("run %s counts as not ended: %s", run, problem)
    return ends


def read_start(storage: Storage, attempt: Attempt) -> dict[str, Any]:
    """Start record of `attempt` as a row of the `runs` table. Raises StoreError if it is damaged."""
    return read_starts(storage, [attempt])[0]


def read_starts(storage: Storage, attempts: list[Attempt], problems: Problems | None = None) -> list[dict[str, Any]]:
    """`read_start` of several attempts; with `problems`, damaged ones are recorded there and left out."""
    rows = []
    for attempt, data in zip(attempts, storage.get_many(attempt.key for attempt in attempts), strict=True):
        try:
            rows.append(_start_row(storage, attempt, data))
        except StoreError as error:
            if problems is None:
                raise
            problems[attempt.run] = str(error)
    return rows


def _start_row(storage: Storage, attempt: Attempt, data: bytes) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(data)
        started_at = record.get("started_at")
        started_at = datetime.fromisoformat(started_at) if started_at else None
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{storage.uri(attempt.key)} is not JSON ({error}); restore it from a backup") from error
    return record | {"run_id": attempt.run, "started_at": started_at}
