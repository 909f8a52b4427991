"""Trains what a plan says is missing, on Ray or in this process, beside others that may train the same runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muon_core.config.run import RunConfig
from muon_core.sources import publish_source
from muon_core.spelling import counted
from muon_core.statuses import record_told, status_told
from muon_core.store.known import read_known
from muon_core.store.storage import Storage
from ray_jobs.breaker import Breaker
from ray_jobs.elsewhere import wait_for_others
from ray_jobs.money import Money
from ray_jobs.searching import Search
from ray_jobs.stop_requests import StopRequest, StopWatch, SweepStopped
from ray_jobs.terms import Comparison, Terms
from ray_jobs.tokens import prepare_tokens
from search_spaces.early_stopping import compared
from search_spaces.expand import PlannedRun
from search_spaces.plan import Plan

if TYPE_CHECKING:
    from analysis.standing import Follower
    from ray_jobs.run_queue import RunState

BEFORE_THE_END = ("held", "left out", "stopped")  # states in which a sweep leaves runs that it was stopped in
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


@dataclass(frozen=True, slots=True)
class Ended:
    """Runs of a call that came to no good end, by id."""

    kept: dict[str, str]
    """Why they did not start, or not go on."""
    failed: dict[str, str | None]
    """What they died of, whether the store could be told of it or not."""


def train_all(
    planned: Plan,
    todo: Sequence[PlannedRun],
    storage: Storage,
    costs: Money,
    breaker: Breaker,
    place: Place,
    say: Callable[[str], None],
    *,
    wait: bool,
    search: Search | None = None,
) -> Ended:
    """Train `todo`, what `search` chooses and, with `wait`, what other processes had begun and left, until all runs
    have an end.

    Others may come while this one trains: their runs are left to them in passing, and looked at here. `say` is given
    a line now and then.

    Raises: SweepStopped if somebody asked for its end before that of all runs; as `run_on_ray` and `run_here` do.
    """
    begin, trained = time.monotonic(), 0
    elsewhere = {run.run_id for run in planned.elsewhere}
    wanted = elsewhere | {run.run_id for run in todo}
    unsettled = [run for run in planned.runs if run.run_id in wanted]
    admission, again, comparison = costs.admission(breaker), planned.finished, _comparison(planned)
    kept: dict[str, str] = {}
    failed: dict[str, str | None] = {}
    told = {run.run_id: status for run, status in zip(planned.runs, planned.statuses, strict=True)}

    def heed(request: StopRequest) -> None:
        when = "at once" if request.now else "after the runs under way"
        admission.close(f"stop: {request} asked for it, {when}", request.now)
        if search:
            search.stop()

    from ray_jobs.cli.waiting import waiting

    with StopWatch(storage, planned.spec.name, heed) as stops:
        coming = (*todo, *(planned.to_choose if search else ()))
        for optimizer in {run.config.optimizer.model_dump_json(): run.config.optimizer for run in coming}.values():
            publish_source(optimizer, storage)
        with waiting("tokenizing what the runs read"):
            tokens = prepare_tokens([run.config for run in coming], storage if place.address else None, say)
        while True:
            if stops.request:
                raise SweepStopped(stops.request)
            terms = Terms(
                sweep=planned.spec.name,
                again=again,
                retries=planned.spec.retries,
                prices=costs.prices,
                admission=admission,
                comparison=comparison,
                tokens=tokens,
                search=search,
            )
            if not todo and search and (first := search.next()):
                todo = [first]  # before Ray starts, for there may be none
            states = _train([run.config for run in todo], storage, planned, terms, place, told) if todo else []
            left = {state.run_id for state in states if state.status == "held"} | elsewhere
            elsewhere = set()
            failed |= {state.run_id: state.error for state in states if state.status == "failed"}
            kept |= {
                state.run_id: state.error
                for state in states
                if state.error and (state.status == "left out" or is_unpaid(state.error))
            }
            trained += sum(state.began_at is not None for state in states)  # not what turned out to be finished
            is_cut = any(record_told(state.status, state.error) in BEFORE_THE_END for state in states)
            if stops.request and (is_cut or (search and search.missing)):
                raise SweepStopped(stops.request)
            if any(map(is_unpaid, kept.values())) or not wait:
                break
            if search:
                newer = {run.run_id: run for run in search.runs if run.run_id not in told}
                unsettled += newer.values()
                told |= dict.fromkeys(newer, "planned")
                left |= newer.keys() - {state.run_id for state in states}  # chosen by another call
            left |= wait_for_others(storage, [run.run_id for run in unsettled], say, lambda: stops.request)
            statuses = read_known(storage).statuses if left else {}
            told = {run: status_told(statuses.get(run), alive=False) for run in told}
            todo = [run for run in unsettled if run.run_id in left and statuses.get(run.run_id) in RESUMABLE]
            again = set()
            if not todo:
                break
    if trained:
        say(f"trained {counted(trained, 'run')} in {time.monotonic() - begin:.0f} s")
    return Ended(kept, failed)


def is_unpaid(reason: str) -> bool:
    """Whether it is the budget that kept a run from starting or going on."""
    return reason.startswith("budget:")


def _comparison(planned: Plan) -> Comparison | None:
    """Which runs of the plan are compared early."""
    spec = planned.spec
    if spec.early_stopping is None:
        return None
    return Comparison(spec.early_stopping, compared(planned.runs), spec.metrics.primary, spec.metrics.goal)


def _train(
    configs: Sequence[RunConfig],
    storage: Storage,
    planned: Plan,
    terms: Terms,
    place: Place,
    told: Mapping[str, str],
) -> list[RunState]:
    """Train them; how each ended is in the store. `told` is where all runs of the sweep stand, by id."""
    resources = planned.spec.resources
    from ray_jobs.cli.progress import Display  # Ray and torch load only when something is trained

    def follow() -> Follower:
        from analysis.standing import Follower
        from analysis.store import open_store

        return Follower(open_store(storage).sweep(planned.spec.name))

    here = {config.run_id for config in configs}
    total = len(configs) + terms.to_choose
    others = Counter(status for run, status in told.items() if run not in here)
    with Display(
        total,
        on_ray=not place.in_process,
        others=others,
        follow=follow,
        stopping=lambda: terms.admission.closed[0] if terms.admission.closed else None,
    ) as display:
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
