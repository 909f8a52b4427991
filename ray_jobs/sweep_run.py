"""Trains what a plan says is missing, on Ray or in this process, beside others that may train the same runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muon_core.config.run import RunConfig
from muon_core.store.reader import read_known, stopped_early
from muon_core.store.storage import Storage
from ray_jobs.elsewhere import wait_for_others
from ray_jobs.money import Money
from ray_jobs.terms import Comparison, Terms
from search_spaces.early_stopping import compared
from search_spaces.expand import PlannedRun
from search_spaces.plan import Plan

if TYPE_CHECKING:
    from ray_jobs.run_queue import RunState

RESUMABLE = ("running", "stopped", None)  # what a run is recorded as that another process left before its end


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs are trained."""

    address: str | None = None
    """A cluster; None is this machine."""
    shared_folder: bool = False
    """Whether its nodes share the folder of the results."""
    in_process: bool = False
    """Without Ray."""


def train_all(
    planned: Plan,
    todo: Sequence[PlannedRun],
    storage: Storage,
    costs: Money,
    place: Place,
    say: Callable[[str], None],
    *,
    wait: bool,
) -> str | None:
    """Train `todo` and, with `wait`, what other processes had begun and left, until all runs have an end.

    Others may come while this one trains: their runs are left to them in passing, and looked at here. Returns how the
    budget ended it, if it did. `say` is given a line now and then.

    Raises: as `run_on_ray` and `run_here` do.
    """
    begin, trained = time.monotonic(), 0
    unsettled = [run for run in planned.runs if run in planned.elsewhere or run in todo]
    admission, again, comparison = costs.admission(), planned.finished, _comparison(planned)
    unpaid: list[str] = []
    while True:
        terms = Terms(again, planned.spec.retries.infrastructure, costs.prices, admission, comparison)
        states = _train([run.config for run in todo], storage, planned, terms, place) if todo else []
        left = {state.run_id for state in states if state.status == "held"}
        unpaid = [state.error for state in states if state.error and state.error.startswith("budget:")]
        trained += sum(state.status not in ("held", "left out") for state in states)
        if unpaid or not wait:
            break
        left |= wait_for_others(storage, [run.run_id for run in unsettled], say)
        todo = _resumable(unsettled, left, storage, comparison) if left else []
        again = set()
        if not todo:
            break
    if trained:
        say(f"trained {trained} runs in {time.monotonic() - begin:.0f} s")
    return unpaid[0] if unpaid else None


def _comparison(planned: Plan) -> Comparison | None:
    """Which runs of the plan are compared early."""
    spec = planned.spec
    if spec.early_stopping is None:
        return None
    return Comparison(spec.early_stopping, compared(planned.runs), spec.metrics.primary, spec.metrics.goal)


def _resumable(
    runs: Sequence[PlannedRun], left: Collection[str], storage: Storage, comparison: Comparison | None
) -> list[PlannedRun]:
    """Those of `runs` that another process had and `left` before their end, to be gone on with here."""
    statuses, ends = read_known(storage)
    early = stopped_early(ends) if comparison else set()
    wanted = set(left) - early
    return [run for run in runs if run.run_id in wanted and statuses.get(run.run_id) in RESUMABLE]


def _train(configs: Sequence[RunConfig], storage: Storage, planned: Plan, terms: Terms, place: Place) -> list[RunState]:
    """Train them; how each ended is in the store."""
    resources = planned.spec.resources
    if place.address:
        os.environ["RAY_ADDRESS"] = place.address  # Ray decides at import whether it is private
    from ray_jobs.cli.progress import Display  # Ray and torch load only when something is trained

    with Display(len(configs), on_ray=not place.in_process) as display:
        if place.in_process:
            from ray_jobs.in_process import run_here

            return run_here(configs, storage, resources, terms, watch=display.update)
        from ray_jobs.launch import run_on_ray

        return run_on_ray(
            configs,
            storage,
            resources,
            terms,
            watch=display.update,
            address=place.address,
            shared_folder=place.shared_folder,
        )


def prepare_data(configs: Sequence[RunConfig], say: Callable[[str], None]) -> None:
    """Tokenize what the runs read, once, before workers would each do it; bad data is an error before Ray starts."""
    from muon_core.data.shards import prepare

    for data, vocab_size in dict.fromkeys((config.data, config.model.vocab_size) for config in configs):
        say(f"tokens: corpus {data.corpus}, vocabulary {vocab_size}")
        prepare(data, vocab_size)
