"""The desk: a small actor that hands runs to slots, hears of their progress, and can ask them to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from muon_core.progress import Progress


@dataclass(frozen=True, slots=True)
class Task:
    """A run as a slot's workers receive it."""

    seq: int
    config: str
    """The RunConfig, as JSON."""
    starts: int
    """How often the workers were handed this run, from 1: a second time means that a worker died in it."""
    attempt: str | None = None
    """Id of the newest attempt the workers told of, in the results store."""


@dataclass(slots=True)
class RunState:
    """One run at the desk, for the display and the ledger. Times are seconds since the epoch."""

    run_id: str
    slot: str
    state: str = "waiting"
    """waiting, running, or how it ended: done diverged failed stopped."""
    starts: int = 0
    submitted_at: float = field(default_factory=time.time)
    first_step_at: float | None = None
    ended_at: float | None = None
    progress: Progress | None = None
    error: str | None = None


@dataclass(slots=True)
class _Slot:
    """What one slot is working on; `changed` wakes its waiters."""

    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    seq: int = 0
    config: str | None = None
    run: RunState | None = None
    closed: bool = False


class Desk:
    """Async actor, one a sweep. Workers call `next`, `report`, `finish`; slots call `submit`, `wait`, `close`."""

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._runs: dict[str, RunState] = {}
        self._stopping = False

    async def submit(self, slot: str, run_id: str, config: str) -> int:
        """Give `slot` its next run; returns the number by which the run is known from now on."""
        place = self._slots.setdefault(slot, _Slot())
        async with place.changed:
            place.seq += 1
            place.config, place.run = config, RunState(run_id, slot)
            self._runs[run_id] = place.run
            place.changed.notify_all()
            return place.seq

    async def close(self, slot: str) -> None:
        """No more runs: the slot's workers leave their loop."""
        place = self._slots.setdefault(slot, _Slot())
        async with place.changed:
            place.closed = True
            place.changed.notify_all()

    async def next(self, slot: str) -> Task | None:
        """The slot's unfinished run, waiting for one; None when the slot closes. Asked again, it is the same run."""
        place = self._slots.setdefault(slot, _Slot())
        async with place.changed:
            await place.changed.wait_for(lambda: place.closed or (place.run is not None and place.run.ended_at is None))
            if place.closed or place.run is None or place.config is None:
                return None
            place.run.starts += 1
            place.run.state = "running"
            told = place.run.progress
            return Task(place.seq, place.config, place.run.starts, told.attempt if told else None)

    async def report(self, slot: str, seq: int, progress: Progress) -> bool:
        """Hear of progress; False tells the run to stop."""
        place = self._slots[slot]
        if seq != place.seq or place.run is None or self._stopping:
            return False
        async with place.changed:
            if progress.step > 0 and place.run.first_step_at is None:
                place.run.first_step_at = time.time()
            place.run.progress = progress
            place.changed.notify_all()
        return True

    async def finish(self, slot: str, seq: int, state: str, error: str | None = None) -> None:
        """A run ended, in one of the ways a result can end."""
        place = self._slots[slot]
        async with place.changed:
            if seq == place.seq and place.run is not None and place.run.ended_at is None:
                place.run.state, place.run.error, place.run.ended_at = state, error, time.time()
            place.changed.notify_all()

    async def wait(self, slot: str, seq: int, val_loss: float | None, timeout_s: float) -> RunState:
        """The run's state, as soon as it ended or has another `val_loss`, at the latest after `timeout_s`."""
        place = self._slots[slot]
        run = place.run
        assert run is not None
        assert seq == place.seq

        def news() -> bool:
            newest = run.progress.val_loss if run.progress else None
            return run.ended_at is not None or newest != val_loss

        async with place.changed:
            with contextlib.suppress(TimeoutError):  # nothing new: the caller looks after its workers and asks again
                await asyncio.wait_for(place.changed.wait_for(news), timeout_s)
        return run

    async def stop(self) -> None:
        """Ask every run to end at its next report."""
        self._stopping = True

    async def runs(self) -> list[RunState]:
        """All runs handed out so far."""
        return list(self._runs.values())
