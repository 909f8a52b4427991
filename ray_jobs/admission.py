"""Which runs of a sweep may start, and which under way must save themselves, because the money is for no more.

The breaker (`breaker.py`) is asked first: what it keeps from starting costs nothing.

Before a run starts, what is spent, what the runs under way will still take and what the new one will must fit into the
budget. How long runs take is learned from those that trained; before any did, from an estimate. Should it have been
wrong, the runs under way save themselves when the money is gone: none is lost, and a greater budget continues them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from muon_core.progress import Progress
from muon_core.store.ledger import LOCAL, Rate
from ray_jobs.breaker import Breaker

SAVE_S = 3.0  # that a run which does not get to its end within the budget is left to save itself


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a sweep may cost, in USD."""

    usd: float | None = None
    """All its runs, over all calls."""
    per_run_usd: float | None = None
    """One run, over all its attempts."""
    stop_at_once: bool = False
    """When a run no longer fits, runs under way save themselves at once; else they go on while the money lasts."""


@dataclass(slots=True)
class _UnderWay:
    """A run that trains. Seconds are of this process's clock."""

    rate: Rate
    since: float
    expected_s: float
    first_step: int | None = None
    """Where it took the run up; None until it reports."""

    def seconds(self) -> float:
        return time.monotonic() - self.since

    def usd(self) -> float:
        return (self.rate.usd_per_hour or 0.0) * self.seconds() / 3600

    def left_usd(self) -> float:
        """What it will still cost, if it takes as long as expected."""
        return (self.rate.usd_per_hour or 0.0) * max(0.0, self.expected_s - self.seconds()) / 3600


@dataclass
class Admission:
    """Keeps the count of one call of a sweep.

    Args:
        limits: the budget.
        spent: what each run of the sweep has cost before this call, USD.
        expected_s: what each run is expected to take from its start to its end, seconds.
        usual_s: the same of a run that is chosen only later.
        is_measured: whether that is from runs like them, and not a guess which only tells their proportions.
        breaker: keeps runs from starting by how others ended.
    """

    limits: Limits = Limits()
    spent: Mapping[str, float] = field(default_factory=dict)
    expected_s: Mapping[str, float] = field(default_factory=dict)
    usual_s: float = 0.0
    is_measured: bool = False
    breaker: Breaker = field(default_factory=Breaker)

    def __post_init__(self) -> None:
        self.rate = LOCAL
        self._spent = dict(self.spent)
        self._under_way: dict[str, _UnderWay] = {}
        self._trained_s = self._guessed_s = 0.0
        self._is_draining = False
        self.closed: tuple[str, bool] | None = None

    def close(self, reason: str, at_once: bool) -> None:
        """No further run may start, for `reason`; with `at_once` those under way save themselves."""
        self.closed = reason, at_once

    def learn(self, other: Admission) -> None:
        """Take over the count of `other`, a copy of this one that was kept in another process."""
        closed = self.closed
        self.__dict__.update(other.__dict__)
        self.closed = self.closed or closed

    @property
    def spent_usd(self) -> float:
        """What the sweep has cost so far."""
        return sum(self._spent.values()) + sum(run.usd() for run in self._under_way.values())

    @property
    def committed_usd(self) -> float:
        """What the runs under way will still cost."""
        return sum(run.left_usd() for run in self._under_way.values())

    def refuse(self, run_id: str, rate: Rate) -> str | None:
        """Why `run_id` may not start, at `rate`; None if it may."""
        self.rate = rate
        if self.closed:
            return self.closed[0]
        if reason := self.breaker.refuse(run_id):
            return reason
        limits = self.limits
        if limits != Limits() and self.rate.usd_per_hour is None:
            return f"budget: {self.rate.source}"
        if limits.per_run_usd is not None and self._spent.get(run_id, 0.0) >= limits.per_run_usd:
            return f"budget: {self._spent[run_id]:.2f} USD spent on it, budget.per_run_usd is {limits.per_run_usd:g}"
        if limits.usd is None or not self.rate.usd_per_hour:
            return None
        next_usd = self.rate.usd_per_hour * self._expected(run_id) / 3600
        if self.spent_usd < limits.usd and self.spent_usd + self.committed_usd + next_usd <= limits.usd:
            return None
        self._is_draining = True
        return (
            f"budget: {self.spent_usd:.4g} USD spent, {self.committed_usd:.4g} for runs under way and about "
            f"{next_usd:.4g} for this one are more than budget.usd, {limits.usd:g}"
        )

    def start(self, run_id: str) -> None:
        """`run_id` begins to train."""
        self.settle(run_id)
        self._under_way[run_id] = _UnderWay(self.rate, time.monotonic(), self._expected(run_id))

    def stop(self, progress: Progress) -> str | None:
        """Why the run that reports must save itself now; None if it may go on."""
        if self.closed and self.closed[1]:
            return self.closed[0]
        run = self._under_way.get(progress.run_id)
        if run is None:
            return None
        run.first_step = progress.step if run.first_step is None else run.first_step
        if (done := progress.step - run.first_step) > 0:
            run.expected_s = run.seconds() * (progress.steps - run.first_step) / done
        limits = self.limits
        if limits.per_run_usd is not None:
            cost = self._spent.get(progress.run_id, 0.0) + run.usd()
            if cost >= limits.per_run_usd:
                return f"budget: {cost:.4g} USD spent on it, budget.per_run_usd is {limits.per_run_usd:g}"
        if limits.usd is not None and run.rate.usd_per_hour:
            to_save = sum(other.rate.usd_per_hour or 0.0 for other in self._under_way.values()) * SAVE_S / 3600
            if self.spent_usd + min(self.committed_usd, to_save) >= limits.usd:
                return f"budget: {self.spent_usd:.4g} USD spent, budget.usd is {limits.usd:g}"
            if self._is_draining and limits.stop_at_once:
                return f"budget: the next run does not fit into budget.usd, {limits.usd:g}"
        return None

    def end(self, run_id: str, status: str, error: str | None = None, *, whole: bool = False) -> None:
        """`run_id` ended. By one that was trained `whole`, from its first step to its last, others are judged."""
        self.breaker.note(run_id, status, error)
        if (run := self._under_way.get(run_id)) and whole and (guess := self.expected_s.get(run_id, self.usual_s)):
            self._trained_s += run.seconds()
            self._guessed_s += guess
        self.settle(run_id)

    def settle(self, run_id: str) -> None:
        """Book what the run has cost: it is not under way, and may be tried again."""
        if run := self._under_way.pop(run_id, None):
            self._spent[run_id] = self._spent.get(run_id, 0.0) + run.usd()

    def _expected(self, run_id: str) -> float:
        """Seconds a run will take: the estimate, put right by those that trained; 0 while there is only a guess."""
        factor = self._trained_s / self._guessed_s if self._guessed_s else float(self.is_measured)
        return self.expected_s.get(run_id, self.usual_s) * factor
