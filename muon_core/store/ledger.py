"""The ledger: an entry for each attempt at a run says who trains it where, since when, at what price, and how it ended.

    ledger/<run>/<attempt id>.json

An entry is written before anything else of its attempt, every few seconds while that lives, and once more at its end.
So it is the sign of life that tells a run somebody trains from one that was interrupted (`muon_core.lease`), where
`muon status` finds how far it is, and the bill: compaction removes start records and rows, never an entry.

Alone of all objects it is written again under its own name, always by the process that began it, or by whoever closes
the books of one that died. Objects are whole or not at all, so a reader meets an older entry at worst.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import socket
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from muon_core.store.storage import Listed, Storage, StoreError, store_time

STALE_S = 60.0  # without a sign of life for so long, another machine's attempt counts as dead
ERROR_CHARS = 4000  # of a traceback, its end
CLOCKS_S = 3600.0  # by which the clocks of two machines may differ
FEW = 8  # runs whose entries are listed one by one, which is quicker than to list those of all
_KEY = re.compile(r"ledger/([^/]+)/(\d{5}\.[0-9a-f]+)\.json")


@dataclass(frozen=True, slots=True)
class Rate:
    """What the machines cost that a run occupies."""

    node: str = "local"
    """Type of machine, as the price table names it."""
    usd_per_hour: float | None = 0.0
    """For all the run takes, its share of each node it is on; None where it is not known."""
    source: str = "local machines cost nothing"
    """Where the price is from."""
    date: str | None = None
    """When it was looked up, ISO."""
    spot: bool = False
    gpus: float = 0.0
    """GPUs that the run takes, over all workers."""
    workers: int = 1


LOCAL = Rate()


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt at a run. Times are seconds since 1970."""

    run_id: str
    attempt: str
    """Its id."""
    machine: str
    """Machine and container: a pid means something there only."""
    host: str
    pid: int
    born: str
    """When that process began, so that a pid which is given out again is no sign of life."""
    rate: Rate
    started_at: float
    """By the clock of the machine that trains it."""
    seen_at: float
    """Last sign of life; as it is read, by the store's clock."""
    seconds: float = 0.0
    """From its start to its last sign of life, by a clock that nobody sets."""
    status: str = "running"
    """running, or how it ended: done diverged failed stopped, or lost, without a word."""
    failure: str | None = None
    """Kind of failure, as `muon_core.failures` names them; None for other ends."""
    error: str | None = None
    first_step: int | None = None
    """Steps done by the attempts before that it goes on from; None before it begins to train."""
    step: int = 0
    steps: int | None = None
    val_loss: float | None = None

    @property
    def number(self) -> int:
        """Counts tries from 1."""
        return int(self.attempt[:5])

    @property
    def who(self) -> str:
        """Who trains it, for people to read."""
        return f"process {self.pid} on {self.host}"

    @property
    def key(self) -> str:
        """Where it lies."""
        return f"ledger/{self.run_id}/{self.attempt}.json"

    @property
    def usd(self) -> float | None:
        """What it cost so far; None where no price is known."""
        return None if self.rate.usd_per_hour is None else self.rate.usd_per_hour * self.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        """GPU hours it took so far."""
        return self.rate.gpus * self.seconds / 3600


def new_entry(run_id: str, attempt: str, rate: Rate) -> Entry:
    """The first entry of an attempt by this process."""
    now = time.time()
    return Entry(run_id, attempt, this_machine(), socket.gethostname(), os.getpid(), born(os.getpid()), rate, now, now)


def write_entry(storage: Storage, entry: Entry) -> None:
    """Write `entry` in place of the one before."""
    storage.put(entry.key, json.dumps(asdict(entry), sort_keys=True).encode())


def read_entries(storage: Storage, run_id: str | None = None) -> list[Entry]:
    """Entries of one run, or of all, in the order of runs and attempts.

    Raises StoreError for a damaged one.
    """
    return _read(storage, _list(storage, run_id))


def read_alive(storage: Storage, runs: Collection[str]) -> dict[str, Entry]:
    """Those of `runs` that somebody trains now, each with the entry that says so. Raises as `read_entries`."""
    newest = {_run(item): item for item in _list_of(storage, runs)}  # sorted, so that the last of a run stays
    since = time.time() - CLOCKS_S
    fresh = [item for item in newest.values() if item.modified > since]
    going = [entry for entry in _read(storage, fresh) if entry.status == "running"]
    now = _now(storage) if going else 0.0
    return {entry.run_id: entry for entry in going if is_alive(entry, now)}


class LedgerReader:
    """Reads the entries of some runs again and again: only those are fetched that were written since the last time."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: dict[Listed, Entry] = {}
        self._ahead_s: float | None = None

    def read(self, runs: Collection[str]) -> list[Entry]:
        """Entries of `runs`, in the order of runs and attempts. Raises as `read_entries`."""
        listed = _list_of(self._storage, runs)
        unknown = [item for item in listed if item not in self._known]
        entries = self._known | _fetch(self._storage, unknown)
        self._known = {item: entries[item] for item in listed if item in entries}
        return list(self._known.values())

    def now(self) -> float:
        """The store's time, seconds since 1970: asked for once, for that takes a probe where one may be written."""
        if self._ahead_s is None:
            self._ahead_s = _now(self._storage) - time.time()
        return time.time() + self._ahead_s


def _now(storage: Storage) -> float:
    """The store's time; this machine's, where nothing may be written to learn it."""
    try:
        return store_time(storage)
    except StoreError:
        return time.time()


def _run(item: Listed) -> str:
    return item.key.split("/")[1]


def _list_of(storage: Storage, runs: Collection[str]) -> list[Listed]:
    if len(runs) <= FEW:
        return [item for run in runs for item in _list(storage, run)]
    wanted = set(runs)
    return [item for item in _list(storage) if _run(item) in wanted]


def _list(storage: Storage, run_id: str | None = None) -> list[Listed]:
    found = storage.stat(f"ledger/{run_id}/" if run_id else "ledger/")
    return [item for item in found if _KEY.fullmatch(item.key)]


def _read(storage: Storage, listed: list[Listed]) -> list[Entry]:
    return list(_fetch(storage, listed).values())


def _fetch(storage: Storage, listed: list[Listed]) -> dict[Listed, Entry]:
    """Entries that are still there: one is taken back if there was nothing to train, or another process came first."""
    try:
        found = dict(zip(listed, storage.get_many(item.key for item in listed), strict=True))
    except FileNotFoundError:
        found = {}
        for item in listed:
            with contextlib.suppress(FileNotFoundError):
                found[item] = storage.get(item.key)
    return {item: _decode(data, item.modified, storage.uri(item.key)) for item, data in found.items()}


def _decode(data: bytes, seen_at: float, uri: str) -> Entry:
    try:
        values: dict[str, Any] = json.loads(data)
        rate = Rate(**_known(Rate, values.pop("rate")))
        seen = {"seen_at": seen_at} if values["status"] == "running" else {}  # an entry may be closed days later
        return Entry(**_known(Entry, values) | {"rate": rate} | seen)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{uri} is no entry of the ledger ({error!r}); restore it from a backup, or delete it"
        ) from error


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Without what a later release added."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def is_alive(entry: Entry, now: float) -> bool:
    """Whether somebody trains this attempt at `now`, seconds since 1970.

    A process of this machine can be looked for; another machine's counts as alive until it was silent for STALE_S.
    """
    if entry.status != "running":
        return False
    if entry.machine == this_machine() and not _runs_here(entry):
        return False
    return now - entry.seen_at < STALE_S


def close_entry(
    storage: Storage, entry: Entry, status: str, *, failure: str | None = None, error: str | None = None
) -> None:
    """Write how an attempt ended, for one whose process cannot; an entry that tells an end stays as it is.

    That it was lost, nobody knows how, tells none: it is what a worker writes that was left alone by another.
    """
    is_open = entry.status == "running" or (entry.status, entry.failure) == ("lost", "infrastructure")
    closed = replace(entry, status=status, failure=failure, error=shorten(error))
    if is_open and closed != entry:
        write_entry(storage, closed)


def shorten(error: str | None) -> str | None:
    """What an entry keeps of a traceback."""
    return error if error is None or len(error) <= ERROR_CHARS else f"...{error[-ERROR_CHARS:]}"


@cache
def this_machine() -> str:
    """Names this machine since its last boot, and the container in it: where a pid means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def born(pid: int) -> str:
    """When a process of this machine began, in ticks since boot; empty where that is not known, or it is gone."""
    try:
        # The name, in brackets, may hold spaces; the state comes after it.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]


def _runs_here(entry: Entry) -> bool:
    if entry.born:
        return born(entry.pid) == entry.born
    try:
        os.kill(entry.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        pass
    return True
