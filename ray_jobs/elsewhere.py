"""Runs that another process trains: who does, and waiting for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from muon_core.statuses import FINISHED
from muon_core.store.known import read_known
from muon_core.store.ledger import Entry, read_alive
from muon_core.store.storage import Storage

LOOK_S, LOOK_AWAY_S = 2.0, 10.0  # between two looks, in a folder and on a server
SAY_S = 60.0  # between two lines about what is waited for


def unfinished_alive(storage: Storage, statuses: dict[str, str], runs: Collection[str]) -> dict[str, Entry]:
    """Those of `runs` that somebody trains now; `statuses` are those of the store."""
    return read_alive(storage, [run for run in runs if statuses.get(run) not in FINISHED])


def wait_for_others(
    storage: Storage,
    runs: Collection[str],
    say: Callable[[str], None],
    until: Callable[[], object] = lambda: None,
    *,
    again: bool = False,
) -> set[str]:
    """Wait while other processes train any of `runs`; returns which of them had to be waited for.

    `say` is given a line now and then. The wait ends too when `until` is true. Of runs that are finished those that
    somebody trains once more are waited for `again` only.
    """
    waited: set[str] = set()
    said, spoke = "", 0.0
    while alive := _alive(storage, runs, finished_too=again):
        waited |= alive.keys()
        if until():
            break
        who = ", ".join(sorted({entry.who for entry in alive.values()}))
        count = f"{len(alive)} run{'' if len(alive) == 1 else 's'}"
        if who != said or time.monotonic() - spoke > SAY_S:
            said, spoke = who, time.monotonic()
            say(f"waiting for {count} that {who} trains: {describe(next(iter(alive.values())))}")
        time.sleep(look_every(storage))
    return waited


def _alive(storage: Storage, runs: Collection[str], *, finished_too: bool) -> dict[str, Entry]:
    alive = read_alive(storage, runs)
    if not alive or finished_too:
        return alive
    statuses = read_known(storage).statuses  # of a whole store, which is not asked for nothing
    return {run: entry for run, entry in alive.items() if statuses.get(run) not in FINISHED}


def look_every(storage: Storage) -> float:
    """Seconds between two looks at what others do."""
    return LOOK_S if storage.is_local else LOOK_AWAY_S


def describe(entry: Entry) -> str:
    """How far a run is that somebody trains: `muon-s42-… at step 40/200, last sign 3 s ago`."""
    where = f" at step {entry.step}/{entry.steps}" if entry.steps else " starting"
    return f"{entry.run_id}{where}, last sign {max(0.0, time.time() - entry.seen_at):.0f} s ago"
