"""The run queue: a small actor that hands runs to slots, hears of their progress, and can ask them to stop.

Between the trials, which come and go, and the workers, which stay, somebody has to remember which run a slot is at and
how often it was begun. The queue does, and nothing else: what a run computed and how it ended is in the store, so a
sweep whose queue is lost loses no result.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from muon_core.failures import PREEMPTED, Kind
from muon_core.progress import Progress
from muon_core.store.keys import next_start
from muon_core.store.ledger import LOCAL, Rate
from muon_core.store.storage import StoreError
from ray_jobs.admission import Admission
from ray_jobs.retrying import Preempted, exhausted
from search_spaces.limits import Retries

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


LOOK_AROUND_S = 2.0  # a spot instance has two minutes from its notice


@dataclass(frozen=True, slots=True)
class Task:
    """A run as a slot's workers receive it."""

    turn: int
    config: str
    """The RunConfig, as JSON."""
    starts: int
    """How often the workers were handed this run, from 1: a second time means that it failed."""
    attempt: str | None = None
    """Id of the newest attempt that the workers claimed the run with, in the results store."""
    failure: Kind | None = None
    """What ended the start before this one."""
    over: str | None = None
    """Why it is not to be trained again but to be recorded as failed."""
    again: bool = False
    """Train it from the first step, although it is finished."""
    tokens: str | None = None
    """`data_hash` of what the store has for it to train on; None: its node prepares that itself."""
    log: str = field(default_factory=next_start)
    """Names this start of the run in the keys of its log."""


@dataclass(slots=True)
class RunState:
    """How far one run is, for the display and whoever launched it. Times are seconds since the epoch."""

    run_id: str
    slot: str
    status: str = "waiting"
    """waiting, running, or how it ended: done diverged failed stopped, held: another process trains it, or left out."""
    starts: int = 0
    failures: list[Kind] = field(default_factory=list)
    """What ended each start, but the one under way."""
    submitted_at: float = field(default_factory=time.time)
    began_at: float | None = None
    """When this start reported first, ready to train."""
    first_step_at: float | None = None
    trained_at: float | None = None
    """When it reported its last step; what follows is kept and recorded."""
    ended_at: float | None = None
    progress: Progress | None = None
    error: str | None = None
    reason: str | None = None
    """Why it was asked to save itself and stop, if it was."""
    began_at_step: int | None = None
    """Where this start took it up; None until it reports."""
    stepped_at: float | None = None
    """When this start reported a step last, by a clock that nobody sets; None before its first."""
    attempt: str | None = None
    """Id of the newest attempt that claimed it, in the results store."""
    waits_for: str | None = None
    """What the cluster lacks for it to get workers, if it has been without for a while."""

    @property
    def is_begun(self) -> bool:
        """Whether an attempt got as far as to report."""
        return self.progress is not None

    @property
    def is_waiting(self) -> bool:
        """Whether no workers are at it."""
        return len(self.failures) == self.starts

    def start(self) -> None:
        """Workers were handed the run, maybe not for the first time."""
        self.starts += 1
        self.status = "running"
        self.began_at_step = self.began_at = self.stepped_at = None

    def advance(self, progress: Progress) -> None:
        """The run reported."""
        now = time.time()
        self.began_at = self.began_at or now
        if progress.step > 0 and self.first_step_at is None:
            self.first_step_at = now
        if progress.step == progress.steps:
            self.trained_at = now
        if self.began_at_step is None:
            self.began_at_step = progress.step
        if progress.step > self.began_at_step:
            self.stepped_at = time.monotonic()
        self.progress = progress

    def is_whole(self, status: str) -> bool:
        """Whether one start went from the first step to the last, for a run that ends by `status`."""
        return status == "done" and self.starts == 1 and self.began_at_step == 0

    def fail(self, failure: Kind) -> None:
        """The start under way ended by `failure`; what is told of one that has ended already changes nothing."""
        if len(self.failures) < self.starts:
            self.failures.append(failure)

    def end(self, status: str, error: str | None = None) -> None:
        """The run ended, in one of the ways a result can end."""
        self.status, self.error, self.ended_at = status, error, time.time()


Watch = Callable[[list[RunState]], None]
"""Called about twice a second with every run handed out so far."""


@dataclass(slots=True)
class _Place:
    """What one slot is working on; `changed` wakes its waiters."""

    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    turn: int = 0
    """How many runs the slot has been given: the newest one's number, by which late news of an older one is known."""
    config: str | None = None
    again: bool = False
    tokens: str | None = None
    run: RunState | None = None
    is_starting: bool = False
    """Whether workers are being started that have not asked for a run yet."""
    closed: bool = False

    @property
    def is_at_work(self) -> bool:
        """Whether it has a run that has not ended."""
        return self.run is not None and self.run.ended_at is None


class RunQueue:
    """Async actor, one a sweep. Workers call `next`, `report`, `finish`; slots call `submit`, `wait`, `close`.

    Args:
        admission: says which runs may start, and go on.
        retries: how often one is tried again.
    """

    def __init__(self, admission: Admission | None = None, retries: Retries | None = None) -> None:
        self._admission = admission or Admission()
        self._retries = retries or Retries()
        self._places: dict[str, _Place] = {}
        self._to_end: dict[str, str] = {}
        self._held: dict[str, tuple[str, PlacementGroup]] = {}
        self._runs: dict[str, RunState] = {}
        self._ended: list[RunState] = []
        self._leaving: dict[str, str] = {}
        self._stopping = self._is_over = False
        self._halted: StoreError | None = None

    async def submit(self, slot: str, run_id: str, config: str, again: bool = False, tokens: str | None = None) -> int:
        """Give `slot` its next run; returns the turn, by which the run is known from now on."""
        place = self._places.setdefault(slot, _Place())
        async with place.changed:
            place.turn += 1
            place.config, place.again, place.tokens = config, again, tokens
            place.run = RunState(run_id, slot)
            self._runs[run_id] = place.run
            if self._admission.closed:
                self._end(place.run, "left out", self._admission.closed[0])
            place.changed.notify_all()
            return place.turn

    async def close(self, slot: str) -> None:
        """No more runs: the slot's workers leave their loop, and no others are started."""
        place = self._places.setdefault(slot, _Place())
        async with place.changed:
            place.closed = True
            place.changed.notify_all()

    async def close_all(self) -> None:
        """The same of every slot: the sweep ends."""
        self._is_over = True
        for slot in self._places:
            await self.close(slot)

    async def wants_workers(self, slot: str) -> bool:
        """Wait until `slot` has a run for workers to train; False when it closes."""
        place = self._places.setdefault(slot, _Place())
        async with place.changed:
            await place.changed.wait_for(lambda: place.closed or place.is_at_work)
            return not place.closed

    async def next(self, slot: str, rate: Rate = LOCAL) -> Task | None:
        """The slot's unfinished run, waiting for one; None when the slot closes. Asked again, it is the same run.

        Whoever asks again without a word of what ended the start before has lost a worker. `rate` is what the slot
        costs. A run that may not start is left out, and the next one waited for.
        """
        place = self._places.setdefault(slot, _Place())
        async with place.changed:
            while True:
                await place.changed.wait_for(lambda: place.closed or place.is_at_work)
                if place.closed or place.run is None or place.config is None:
                    return None
                place.is_starting = False
                if preempted := self._preempted(slot):
                    raise Preempted(preempted)
                run = place.run
                run.fail("infrastructure")
                self._admission.settle(run.run_id)
                over = exhausted(self._retries, run.failures)
                if over or (reason := self._admission.refuse(run.run_id, rate)) is None:
                    break
                self._end(run, "left out", reason)
                place.changed.notify_all()
            self._admission.start(run.run_id)
            run.start()
            # Workers that take over from dead ones go on with the attempt that these began.
            again = place.again and not run.is_begun
            failure = run.failures[-1] if run.failures else None
            return Task(place.turn, place.config, run.starts, run.attempt, failure, over, again, place.tokens)

    async def claim(self, slot: str, turn: int, attempt: str) -> None:
        """Workers hold the run's lease by `attempt`: should they die, that is over, whatever the ledger says of it."""
        place = self._places[slot]
        if turn == place.turn and place.run is not None:
            place.run.attempt = attempt

    async def report(self, slot: str, turn: int, progress: Progress) -> bool | str:
        """Hear of progress; False, or why, asks the run to stop."""
        place = self._places[slot]
        if turn != place.turn or place.run is None or self._stopping:
            return False
        async with place.changed:
            place.run.advance(progress)
            place.run.reason = (
                self._to_end.get(place.run.run_id) or self._admission.stop(progress) or self._preempted(slot)
            )
            place.changed.notify_all()
            return place.run.reason or True

    async def fail(self, slot: str, turn: int, start: int, failure: Kind, error: str) -> None:
        """An exception ended start number `start` of a run, on one rank or on several: it is tried again, or failed."""
        place = self._places[slot]
        run = place.run
        if turn != place.turn or run is None or run.ended_at is not None or start != run.starts:
            return
        run.fail(failure)
        if self._stopping or exhausted(self._retries, run.failures):
            await self.finish(slot, turn, "failed", error)

    async def lose(self, slot: str, failure: Kind, *, node_is_gone: bool = False) -> None:
        """The slot's workers ended, by `failure` if they have not said themselves by what.

        A node that is gone was taken back without notice, unless the run made no step: it may be what nodes die of.

        Those that never came as far as to ask for the run count as a start of it, for others would do no better.
        """
        place = self._places.setdefault(slot, _Place())
        run, never_asked = place.run, place.is_starting
        place.is_starting = False
        if run is None or run.ended_at is not None:
            return
        if never_asked:
            run.start()
            run.status = "waiting"
        if node_is_gone and run.stepped_at is not None:
            failure = "preemption"
        run.fail(failure)
        if never_asked and (over := exhausted(self._retries, run.failures)):
            await self.finish(slot, place.turn, "failed", f"{over}; it did not come as far as to begin")

    async def hang(self, slot: str) -> str | None:
        """Why the slot's run hangs; None if it does not."""
        run, limit = self._places.setdefault(slot, _Place()).run, self._retries.hang_after_s
        if limit is None or run is None or run.ended_at is not None or run.stepped_at is None:
            return None
        idle_s = time.monotonic() - run.stepped_at
        hangs = idle_s > limit and len(run.failures) < run.starts
        return f"no step for {idle_s:.0f} s; `retries.hang_after_s` is {limit:g}" if hangs else None

    async def finish(self, slot: str, turn: int, status: str, error: str | None = None) -> bool:
        """A run ended; what comes twice, or of an older run, changes nothing.

        False if it is to go on elsewhere: it saved itself because its node is taken back.
        """
        place = self._places[slot]
        async with place.changed:
            run = place.run
            if turn == place.turn and run is not None and run.ended_at is None:
                reason = run.reason if status == "stopped" else None
                if reason and reason.startswith(PREEMPTED) and not self._stopping:
                    run.fail("preemption")
                    self._admission.settle(run.run_id)
                    return False
                self._admission.end(run.run_id, status, error, whole=run.is_whole(status))
                self._end(run, status, reason or error)
            place.changed.notify_all()
        return True

    def _preempted(self, slot: str) -> str | None:
        """Why the workers of `slot` must leave, if one of their nodes is taken back."""
        if not self._leaving or slot not in self._held:
            return None
        from ray_jobs.places import nodes  # here: what knows a run's state need not load Ray

        going = nodes(self._held[slot][1]) & self._leaving.keys()
        return f"{PREEMPTED}node {self._leaving[going.pop()]} is taken back" if going else None

    async def look_around(self, sweep: str) -> None:
        """Until the sweep ends, look for nodes that are to be taken back, and show how `sweep` stands.

        It must end: Ray lets an actor nobody refers to go only when it is idle.
        """
        from ray_jobs.gauges import Gauges
        from ray_jobs.places import leaving

        gauges = Gauges(sweep)
        while not self._is_over:
            self._leaving = leaving(self._leaving)
            gauges.show(self._runs.values(), self._admission.spent_usd)
            await asyncio.sleep(LOOK_AROUND_S)

    def _end(self, run: RunState, status: str, error: str | None) -> None:
        run.end(status, error)
        self._ended.append(run)

    async def end_early(self, run_id: str, reason: str) -> None:
        """Have one run save itself and stop at its next report."""
        self._to_end[run_id] = reason

    async def wait(self, slot: str, turn: int, val_loss: float | None, timeout_s: float) -> RunState:
        """The run's state, as soon as it ended or has another `val_loss`, at the latest after `timeout_s`."""
        place = self._places[slot]
        run = place.run
        assert run is not None
        assert turn == place.turn

        def has_news() -> bool:
            newest = run.progress.val_loss if run.progress else None
            return run.ended_at is not None or newest != val_loss

        async with place.changed:
            with contextlib.suppress(TimeoutError):  # nothing new: the caller looks after its workers and asks again
                await asyncio.wait_for(place.changed.wait_for(has_news), timeout_s)
        return run

    async def hold(self, slot: str, actor_id: str, group: PlacementGroup) -> bool:
        """`slot` starts workers; False if it is to give back what it asked for: it was closed meanwhile.

        What a slot keeps for workers Ray gives back when the sweep ends, not when the slot dies.
        """
        place = self._places.setdefault(slot, _Place())
        if place.closed:
            return False
        place.is_starting = True
        self._held[slot] = (actor_id, group)
        return True

    async def free(self, slot: str) -> None:
        """Give back what `slot`, which closes, holds."""
        from ray.util import remove_placement_group

        if held := self._held.pop(slot, None):
            remove_placement_group(held[1])

    async def free_the_dead(self) -> None:
        """Give back what slots that died held: the one that came in their place waits for it."""
        from ray._private.state import actors

        dead = [slot for slot, (actor_id, _) in self._held.items() if actors(actor_id)["State"] == "DEAD"]
        for slot in dead:
            await self.free(slot)

    async def close_admission(self, reason: str, at_once: bool) -> None:
        """Start no further run, for `reason`; with `at_once` those under way save themselves."""
        self._admission.close(reason, at_once)
        await self._end_waiting("left out", reason)

    async def admission(self) -> Admission:
        """What was spent, and how long runs took."""
        return self._admission

    async def stop(self) -> None:
        """Ask every run to end at its next report."""
        self._stopping = True
        await self._end_waiting("stopped", None)

    async def _end_waiting(self, status: str, reason: str | None) -> None:
        """End the runs that wait for workers: on a cluster without room they would wait for ever to be asked."""
        for place in self._places.values():
            async with place.changed:
                run = place.run
                if run is not None and run.ended_at is None and run.is_waiting:
                    self._end(run, status, reason)
                place.changed.notify_all()

    async def halt(self, slot: str, turn: int, error: StoreError) -> None:
        """The store failed under a run, as it would under each that follows: end them all, to be continued."""
        self._stopping, self._halted = True, error
        await self.finish(slot, turn, "stopped", str(error))

    async def runs(self) -> list[RunState]:
        """All runs handed out so far."""
        return list(self._runs.values())

    async def look(self, seen: int = 0) -> tuple[list[RunState], list[RunState], StoreError | None]:
        """The runs that ended after the first `seen`, those that have not, and what halted them.

        What ended does not change: who looks twice a second need not be told of thousands each time.
        """
        return self._ended[seen:], [run for run in self._runs.values() if run.ended_at is None], self._halted
