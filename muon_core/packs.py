"""Packs: the small finals of many runs copied into one object a table, so that a question over all runs opens one file.

A pack only repeats finals, which stay: without it everything is still there, only slower to read over a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa

from muon_core import layout
from muon_core.layout import Member, Pack
from muon_core.parquet import PACK_ROW_GROUP, digest, encode, sort_for_reading
from muon_core.snapshot import list_keys, read_attempts, read_ends, read_packs, read_rows
from muon_core.storage import Listed, Storage
from muon_core.tables import RUNS, Table

PACK_BELOW = 1 << 20  # bytes: a larger final reads well alone, and copying it would double the store
PACK_BYTES = 128 << 20  # of finals in one pack

Finals = dict[tuple[str, str], tuple[int, int]]  # (run, attempt) -> (first seq not covered, bytes)


def pack_table(storage: Storage, table: Table) -> int:
    """Copy the finals that no full pack holds yet into packs. Returns how many packs are new."""
    finals = _current_finals(storage, table)
    packs = [pack for pack in read_packs(storage, table.name) if _is_current(pack, finals)]
    sizes = dict(storage.list(f"packs/table={table.name}/"))
    for pack in packs:
        if sizes.get(pack.key, 0) > PACK_BYTES // 8:  # of Parquet; merging it again and again would copy much
            for member in pack.members:
                finals.pop((member.run, member.attempt), None)
    known = {frozenset(_identities(pack)) for pack in packs}
    todo = [group for group in _groups(finals) if len(group) > 1 and frozenset(group) not in known]
    for group in todo:
        _write_pack(storage, table, group)
    return len(todo)


def redundant_pack_objects(storage: Storage, table: Table, before: float) -> list[Listed]:
    """Packs that one of higher rank stands for since `before` that time, and pieces without manifest as old."""
    listed = {item.key: item for item in storage.stat(f"packs/table={table.name}/")}
    packs = sorted(read_packs(storage, table.name), key=layout.rank, reverse=True)
    finals = _current_finals(storage, table)
    seen: set[tuple[str, str, int]] = set()
    settled = True
    old: list[Listed] = []
    for pack in packs:
        if pack.key not in listed or pack.manifest not in listed:
            continue
        useful = {
            (run, attempt, hi) for run, attempt, hi in _identities(pack) if finals.get((run, attempt), (-1,))[0] == hi
        }
        if useful - seen:
            seen |= useful
            settled = settled and listed[pack.manifest].modified <= before
        elif settled and listed[pack.manifest].modified <= before:
            old += [listed[pack.manifest], listed[pack.key]]
    whole = {name for pack in packs for name in (pack.key, pack.manifest)}
    return old + [item for key, item in listed.items() if key not in whole and item.modified <= before]


def _current_finals(storage: Storage, table: Table) -> Finals:
    """Finals small enough to pack that alone make up their run's rows."""
    attempts = read_attempts(storage)
    heads = {run: max(tries) for run, tries in attempts.items()}
    if table is RUNS:
        sizes = dict(storage.list(f"final/table={RUNS.name}/"))
        keys = {(run, head): layout.final_key(RUNS.name, run, head) for run, head in heads.items()}
        return {who: (layout.END, sizes[key]) for who, key in keys.items() if key in sizes}
    sizes = dict(storage.list(f"live/table={table.name}/")) | dict(storage.list(f"final/table={table.name}/"))
    objects: dict[str, list[layout.Visible]] = {}
    for item in layout.visible([a.key for tries in attempts.values() for a in tries.values()], sizes, table.name):
        objects.setdefault(item.run, []).append(item)
    return {
        (run, item.attempt): (item.hi, sizes[item.key])
        for run, [item, *rest] in objects.items()
        if not rest and item.final and item.attempt == heads[run] and sizes[item.key] <= PACK_BELOW
    }


def _is_current(pack: Pack, finals: Finals) -> bool:
    return all(finals.get((run, attempt), (-1, 0))[0] == hi for run, attempt, hi in _identities(pack))


def _identities(pack: Pack) -> Iterator[tuple[str, str, int]]:
    return ((member.run, member.attempt, member.hi) for member in pack.members)


def _groups(finals: Finals) -> Iterator[list[tuple[str, str, int]]]:
    """Members of packs of at most `PACK_BYTES` of finals each, in order of their runs."""
    group: list[tuple[str, str, int]] = []
    total = 0
    for (run, attempt), (hi, size) in sorted(finals.items()):
        if group and total + size > PACK_BYTES:
            yield group
            group, total = [], 0
        group.append((run, attempt, hi))
        total += size
    if group:
        yield group


def _write_pack(storage: Storage, table: Table, group: list[tuple[str, str, int]]) -> None:
    rows = sort_for_reading(_rows(storage, table, {run: attempt for run, attempt, _ in group}), table)
    counts = rows["run_id"].value_counts()
    by_run = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    data = encode(rows, table, final=True, row_group=PACK_ROW_GROUP)
    # A final may be empty: the run went back to before its first row of the table.
    members = tuple(Member(run, attempt, hi, by_run.get(run, 0)) for run, attempt, hi in group)
    pack = Pack(layout.pack_key(table.name, digest(data)), members)
    storage.put(pack.key, data)
    storage.put(pack.manifest, json.dumps({"members": members, "rows": rows.num_rows}).encode())


def _rows(storage: Storage, table: Table, attempt_of: dict[str, str]) -> pa.Table:
    """The rows of these runs, from packs where they have them already."""
    attempts = read_attempts(storage)
    if table is RUNS:
        return read_ends(storage, (attempts[run][id_] for run, id_ in attempt_of.items()))
    keys = list_keys(storage, f"final/table={table.name}/")
    records = [attempts[run][id_].key for run, tries in attempts.items() if run in attempt_of for id_ in tries]
    objects = layout.visible(records, keys, table.name, read_packs(storage, table.name))
    return read_rows(storage, objects, table, lossless=True)
