"""The lease: one process at a time trains a run, whoever else asks for it waits or leaves it.

Two sweeps that list the same run, or one that is started twice, would train it twice. Rows would not suffer, for the
lineage shows one attempt's only; the time and the money would. The store offers no lock and no conditional write, so
who comes writes an entry of the ledger and looks whether another one is there:

- a smaller one alive: this process leaves;
- a greater one alive: its owner looked after this entry was written, and leaves, or before, and does not know of it.
  After a moment the first has gone; the second is still there, and this process leaves.

Of two that go on, each would have looked after the other had written; so at most one does, where listings show what was
written before them. On servers that do not promise that the fence of the writer ends the older one within a minute.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from muon_core.failures import Kind
from muon_core.progress import Progress
from muon_core.store.keys import next_id
from muon_core.store.ledger import (
    Entry,
    Rate,
    close_entry,
    is_alive,
    new_entry,
    read_entries,
    shorten,
    write_entry,
)
from muon_core.store.reader import read_attempts
from muon_core.store.storage import Storage, StoreError, store_time

log = logging.getLogger(__name__)
BEAT_S, BEAT_AWAY_S = 3.0, 15.0  # between two signs of life, in a folder and on a server, where each costs a request
# attempts of this process whose entries could not be written or removed
_given_up: set[str] = set()
SETTLE_S = 2.0  # for one that came at the same moment to see this one's entry


class HeldElsewhere(Exception):
    """Another process trains the run. `holder` is its entry."""

    def __init__(self, holder: Entry) -> None:
        self.holder = holder
        super().__init__(f"{holder.who} trains it")


class Lease:
    """The right to train a run, from `claim` to `end`; while it is held a thread gives signs of life."""

    def __init__(self, storage: Storage, entry: Entry) -> None:
        self._storage, self._entry = storage, entry
        self._began = time.monotonic()
        self._progress: Callable[[], Progress] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def attempt(self) -> str:
        """Id of the attempt it is for."""
        return self._entry.attempt

    def follow(self, progress: Callable[[], Progress]) -> None:
        """From now on signs of life tell what `progress` says; what it says now is where the attempt begins."""
        self._entry = replace(self._entry, first_step=progress().step)
        self._progress = progress

    def end(self, status: str, *, failure: str | None = None, error: str | None = None) -> None:
        """Give the run back and say how the attempt ended, once; a store that is away leaves that to who comes next."""
        if self._ended.is_set():
            return
        self._stop()
        ended = replace(self._now(), status=status, failure=failure, error=shorten(error))
        try:
            write_entry(self._storage, ended)
        except StoreError:
            _given_up.add(self.attempt)

    def withdraw(self) -> None:
        """Give the run back as if it had never been asked for: there was nothing to train."""
        self._stop()
        self._storage.delete([self._entry.key])

    def _stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _now(self) -> Entry:
        entry = replace(self._entry, seen_at=time.time(), seconds=time.monotonic() - self._began)
        if self._progress is None:
            return entry
        progress = self._progress()
        return replace(entry, step=progress.step, steps=progress.steps, val_loss=progress.val_loss)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S if self._storage.is_local else BEAT_AWAY_S):
            try:
                write_entry(self._storage, self._now())
            except StoreError as error:
                log.info("no sign of life of %s for now: %s", self._entry.run_id, error)


def claim(
    storage: Storage, run_id: str, rate: Rate, *, after: str | None = None, failure: Kind = "infrastructure"
) -> Lease:
    """Take the run `run_id` over, unless another process trains it.

    Args:
        after: id of an attempt that is known to be over, whatever its entry says.
        failure: what ended that one. Of any other that ended without a word nobody knows more than that it was lost.
    Raises: HeldElsewhere if another does; StoreError if the store fails.
    """
    tries = read_attempts(storage, run_id).get(run_id, {})
    before = read_entries(storage, run_id)
    if holder := _alive(storage, before, after):
        raise HeldElsewhere(holder[-1])
    mine = new_entry(run_id, next_id([*tries, *(entry.attempt for entry in before)]), rate)
    try:
        write_entry(storage, mine)
        if rival := _rival(storage, mine, after):
            raise HeldElsewhere(rival)
    except BaseException:
        _given_up.add(mine.attempt)
        with contextlib.suppress(StoreError):
            storage.delete([mine.key])
        raise
    with contextlib.suppress(StoreError):  # who is dead is seen without it, too
        for entry in before:
            close_entry(storage, entry, "lost", failure=failure if entry.attempt == after else "infrastructure")
    return Lease(storage, mine)


def _rival(storage: Storage, mine: Entry, after: str | None) -> Entry | None:
    """Who else wrote an entry at the same moment, and is to train the run."""
    others = _others(storage, mine, after)
    if others and min(others, key=lambda entry: entry.attempt).attempt > mine.attempt:
        time.sleep(SETTLE_S)
        others = _others(storage, mine, after)
    return others[0] if others else None


def _others(storage: Storage, mine: Entry, after: str | None) -> list[Entry]:
    entries = [entry for entry in read_entries(storage, mine.run_id) if entry.attempt != mine.attempt]
    return _alive(storage, entries, after)


def _alive(storage: Storage, entries: list[Entry], after: str | None) -> list[Entry]:
    going = [entry for entry in entries if entry.status == "running" and entry.attempt not in {after, *_given_up}]
    if not going:
        return []
    now = store_time(storage)
    return [entry for entry in going if is_alive(entry, now)]
