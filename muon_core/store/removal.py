"""Removes a run from the store: at once for readers that come, and after the grace of those that are there for good.

A run is what its start records say, so without them nothing of it is read (`muon_core.store.lineage`); but a reader
that listed them before may be at its objects. So a mark is written first that names all of them, then the start records
go, the newest first, for no attempt may lose the one it continues. A later compaction removes the objects that the mark
names, once it is older than the grace, and the mark. Names never come back, so a run that is written anew loses
nothing.

What attempts cost stays in the ledger: money that was spent is not spent less.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection

from muon_core.store.keys import parse_attempts, parse_checkpoint
from muon_core.store.reader import list_keys, mark_version
from muon_core.store.storage import Listed, Storage
from muon_core.tables import RUNS, SERIES

_MARK = re.compile(r"removed/([^/]+)/[0-9a-f]+\.json")


def remove_run(storage: Storage, run: str) -> list[Listed]:
    """Hide `run` from every reader; returns the objects that will go once readers have finished with them."""
    mark_version(storage)
    records = list_keys(storage, f"attempts/{run}/")
    folders = [f"{kind}/table={name}/run={run}/" for name in (*SERIES, RUNS.name) for kind in ("live", "final")]
    objects = [item for folder in (*folders, f"logs/{run}/") for item in storage.stat(folder)]
    checkpoints = [item for item in storage.stat(f"checkpoints/{run}/") if parse_checkpoint(item.key)]
    _write_mark(storage, run, records, {item.key: item.size for item in (*objects, *checkpoints)})
    # At once, and first: who trains the run anew would take one up whose rows are gone, and be refused.
    storage.delete([item.key for item in checkpoints])
    _delete_records(storage, records)
    return objects


def clear_removed(storage: Storage, before: float) -> list[Listed]:
    """Remove what runs left behind that were removed before that time, by the store's clock; returns what went."""
    gone = []
    for item in storage.stat("removed/"):
        match = _MARK.fullmatch(item.key)
        if match is None:
            continue
        try:
            mark = json.loads(storage.get(item.key))
        except FileNotFoundError:
            continue  # another compaction was quicker
        left = set(mark["attempts"]) & set(list_keys(storage, f"attempts/{match[1]}/"))
        if left:  # killed before it was hidden: readers have from now on
            _write_mark(storage, match[1], mark["attempts"], mark["objects"])
            _delete_records(storage, left)
            storage.delete([item.key])
        elif item.modified <= before:
            storage.delete(mark["objects"])
            storage.delete([item.key])
            gone += [Listed(key, size, item.modified) for key, size in mark["objects"].items()]
    return gone


def _write_mark(storage: Storage, run: str, attempts: list[str], objects: dict[str, int]) -> None:
    data = json.dumps({"attempts": attempts, "objects": objects}, sort_keys=True).encode()
    storage.put(f"removed/{run}/{secrets.token_hex(6)}.json", data)


def _delete_records(storage: Storage, records: Collection[str]) -> None:
    attempts = [attempt for tries in parse_attempts(records).values() for attempt in tries.values()]
    for attempt in sorted(attempts, reverse=True):
        storage.delete([attempt.key])
