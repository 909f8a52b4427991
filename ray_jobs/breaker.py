"""The breaker: an arm whose runs die alike starts no more, and a run may end its whole sweep by how it diverged.

Whoever continues a sweep with another call finds it as it was left: runs that failed in an earlier one count, until
they are asked for again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from muon_core.failures import divergence, headline, signature
from muon_core.store.storage import Storage
from search_spaces.chosen import chosen_runs
from search_spaces.plan import Plan

SEARCHED = "search"  # the arm of all cells of a search


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: `failed` or `diverged`, and what its record says of it."""

    status: str
    error: str | None


@dataclass
class Breaker:
    """Hears how runs end and says which may not start; the default lets all start.

    Args:
        arms: run_id to arm_id; what it does not list was chosen by a search, whose cells are one arm.
        same_error: how many runs of an arm may die alike; None: any number.
        drain_on: ways to diverge, each of which ends the sweep.
        before: how runs ended in earlier calls.
    """

    arms: Mapping[str, str] = field(default_factory=dict)
    same_error: int | None = None
    drain_on: Collection[str] = ()
    before: Mapping[str, Ended] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._deaths: dict[str, Counter[str]] = defaultdict(Counter)
        self._refused: dict[str, str] = {}  # arms, with the reason
        self._drained: str | None = None
        for run_id, end in self.before.items():
            self.note(run_id, end.status, end.error)

    def note(self, run_id: str, status: str, error: str | None) -> None:
        """`run_id` ended so."""
        if status == "diverged" and divergence(error) in self.drain_on:
            self._drained = f"stop: {run_id} diverged ({error}), and `stop` drains the sweep then"
        arm = self.arms.get(run_id, SEARCHED)
        if status != "failed" or self.same_error is None:
            return
        deaths = self._deaths[arm]
        deaths[signature(error)] += 1
        if (count := deaths[signature(error)]) >= self.same_error:
            runs = "run of this arm" if count == 1 else "runs of this arm"
            self._refused[arm] = f"breaker: {count} {runs} died alike: {headline(error)}"

    def refuse(self, run_id: str) -> str | None:
        """Why `run_id` may not start; None if it may."""
        return self._drained or self._refused.get(self.arms.get(run_id, SEARCHED))


def sweep_breaker(planned: Plan, storage: Storage) -> Breaker:
    """The breaker of a call of a sweep; runs that it trains again count anew."""
    spec, again = planned.spec, {run.run_id for run in planned.to_run}
    counted = {
        run.run_id
        for run, status in zip(planned.runs, planned.statuses, strict=True)
        if status in ("failed", "diverged") and run.run_id not in again
    }
    arms = {run.run_id: run.arm_id for run in planned.runs} | dict.fromkeys(
        (run.run_id for run in chosen_runs(spec, planned.runs)), SEARCHED
    )
    drain_on = {rule.when for rule in spec.stop if rule.action == "drain"}
    return Breaker(arms, spec.breaker.same_error, drain_on, _read_ends(storage, counted) if counted else {})


def _read_ends(storage: Storage, runs: Collection[str]) -> dict[str, Ended]:
    from muon_core.store.reader import read_attempts, read_ends, relisting  # loads Parquet, which a new sweep need not

    heads = [max(tries.values()) for run, tries in read_attempts(storage).items() if run in runs]
    problems: dict[str, str] = {}  # of a record that cannot be read nobody knows what it told: it does not count
    rows = relisting(lambda: read_ends(storage, heads, problems)).select(["run_id", "status", "error"])
    return {row["run_id"]: Ended(row["status"], row["error"]) for row in rows.to_pylist()}
