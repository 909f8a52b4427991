"""Packs: the small finals of many runs copied into one object a table, so that a question over all runs opens one file.

A pack only repeats finals, which stay: without it everything is still there, only slower to read over a network. So
whatever is wrong with a pack, it is passed over, and a new one is written. Its manifest says which runs it holds, each
by the attempt and the `hi` of the final that was copied. A run that went on since has another, and its rows in the pack
count as far as the lineage of that final is still the run's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from muon_core.store.keys import ObjectSlice, Pack, PackedRun, pack_key, parse_ends
from muon_core.store.lineage import Problems, precedence, visible_slices
from muon_core.store.parquet import PACK_ROW_GROUP, digest, encode, sort_for_reading
from muon_core.store.reader import get_pack, list_keys, read_attempts, read_ends, read_packs, read_rows
from muon_core.store.storage import Listed, Storage
from muon_core.tables import RUNS, Table

PACK_BELOW = 1 << 20  # bytes: a larger final reads well alone, and copying it would double the store
PACK_BYTES = 128 << 20  # of finals in one pack

Finals = dict[PackedRun, int]
"""Finals, by what a pack says of them -> their bytes."""


def repack(storage: Storage, table: Table, before: float, problems: Problems) -> tuple[int, list[Listed]]:
    """Copy the finals that no full pack holds yet into packs.

    Returns how many packs are new, and the objects of packs that nobody needs since `before`: another holds their rows,
    or they are damaged. A run with a damaged final is left out and recorded in `problems`.
    """
    finals = _current_finals(storage, table, problems)
    sizes = dict(storage.list(f"packs/table={table.name}/"))
    # Read in full each time: a damaged pack is found here, and replaced, at the latest.
    sound = [pack for pack in read_packs(storage, table.name, sizes) if get_pack(storage, pack) is not None]
    current = [pack for pack in sound if finals.keys() >= set(pack.runs)]
    unpacked = dict(finals)
    for pack in current:
        # A small pack is merged into the next one; a large one is full, for copying it each time would cost too much.
        if sizes[pack.key] > PACK_BYTES // 8:
            for packed in pack.runs:
                unpacked.pop(packed, None)
    known = {frozenset(pack.runs) for pack in current}
    todo = [group for group in _groups(unpacked) if len(group) > 1 and frozenset(group) not in known]
    written = [_write(storage, table, group, sound, problems) for group in todo]
    new = [pack for pack in written if pack is not None]
    listed = {item.key: item for item in storage.stat(f"packs/table={table.name}/")}
    return len(new), _redundant({pack.key: pack for pack in [*sound, *new]}, listed, finals, before)


def _redundant(packs: dict[str, Pack], listed: dict[str, Listed], finals: Finals, before: float) -> list[Listed]:
    """Packs that others stand for since `before`, in whole, and pieces of what is no pack, as old.

    Readers take a run from the pack of highest precedence, so going down that order, a pack is needed if it has a final
    that none above it has; the others go once all that are needed above them are older than the grace.
    """
    whole = {key: pack for key, pack in packs.items() if key in listed and pack.manifest in listed}
    held: set[PackedRun] = set()  # by the packs that are needed so far
    settled = True
    old: list[Listed] = []
    for pack in sorted(whole.values(), key=precedence, reverse=True):
        useful = finals.keys() & set(pack.runs)
        if useful - held:
            held |= useful
            settled = settled and listed[pack.manifest].modified <= before
        elif settled and listed[pack.manifest].modified <= before:
            old += [listed[pack.manifest], listed[pack.key]]
    needed = {name for pack in whole.values() for name in (pack.key, pack.manifest)}
    return old + [item for key, item in listed.items() if key not in needed and item.modified <= before]


def _current_finals(storage: Storage, table: Table, problems: Problems) -> Finals:
    """Finals small enough to pack that alone make up their run's rows."""
    attempts = read_attempts(storage)
    heads = {run: max(tries) for run, tries in attempts.items()}
    if table is RUNS:
        sizes = dict(storage.list(f"final/table={RUNS.name}/"))
        ends = [end for end in parse_ends(sizes).values() if end.attempt == heads.get(end.run)]
        return {PackedRun(end.run, end.attempt, end.hi): sizes[end.key] for end in ends}
    sizes = dict(storage.list(f"live/table={table.name}/")) | dict(storage.list(f"final/table={table.name}/"))
    records = [attempt.key for tries in attempts.values() for attempt in tries.values()]
    objects: dict[str, list[ObjectSlice]] = {}
    for item in visible_slices(records, sizes, table.name, problems=problems):
        objects.setdefault(item.run, []).append(item)
    return {
        PackedRun(run, item.attempt, item.hi): sizes[item.key]
        for run, [item, *rest] in objects.items()
        if not rest and item.final and item.attempt == heads[run] and sizes[item.key] <= PACK_BELOW
    }


def _groups(finals: Finals) -> Iterator[list[PackedRun]]:
    """Contents of packs of at most `PACK_BYTES` of finals each, in order of their runs."""
    group: list[PackedRun] = []
    total = 0
    for packed, size in sorted(finals.items()):
        if group and total + size > PACK_BYTES:
            yield group
            group, total = [], 0
        group.append(packed)
        total += size
    if group:
        yield group


def _write(
    storage: Storage, table: Table, group: list[PackedRun], packs: list[Pack], problems: Problems
) -> Pack | None:
    """A new pack of `group` without the runs that have a problem; None if it is one of `packs` already."""
    found: Problems = {}
    rows = _rows(storage, table, group, packs, found)
    for run, reason in found.items():
        problems.setdefault(run, reason)
    # A final may be empty: the run went back to before its first row of the table.
    runs = tuple(packed for packed in group if packed.run not in found)
    rows = sort_for_reading(rows.filter(pc.field("run_id").isin([packed.run for packed in runs])), table)
    data = encode(rows, table, final=True, row_group=PACK_ROW_GROUP)
    pack = Pack(pack_key(table.name, digest(data)), runs)
    if len(runs) < 2 or pack in packs:
        return None
    storage.put(pack.key, data)
    # Last, for readers go by the manifest: killed before it, this leaves an object that nobody reads.
    storage.put(pack.manifest, json.dumps({"members": runs, "bytes": len(data)}).encode())
    return pack


def _rows(storage: Storage, table: Table, group: list[PackedRun], packs: list[Pack], problems: Problems) -> pa.Table:
    """The rows of these runs, from packs where they have them already."""
    attempts = read_attempts(storage)
    if table is RUNS:
        return read_ends(storage, (attempts[run][id_] for run, id_, _ in group), problems)
    keys = list_keys(storage, f"final/table={table.name}/")
    records = [attempt.key for run, *_ in group for attempt in attempts[run].values()]
    return read_rows(storage, visible_slices(records, keys, table.name, packs), table, lossless=True, problems=problems)
