"""Runs a list of runs on Ray, and what a search adds: one Tune trial each, on warm slots; returns how each ended.

Tune decides which run comes when and starts what died; the run queue knows where each run stands; the store knows how
it ended. Without a cluster to join, the Ray is this call's own: it listens on loopback and ends with the call.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray_jobs.ray_settings  # noqa: F401  before ray

# isort: split
import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.callback import Callback
from ray.tune.execution import class_cache

from muon_core.config.run import RunConfig
from muon_core.statuses import ENDED
from muon_core.store.known import read_known
from muon_core.store.storage import Storage
from muon_core.store.writer import record_failure
from ray_jobs.address import unshared
from ray_jobs.autoscaler import can_grow, worker_needs
from ray_jobs.connection import RayLost, connected
from ray_jobs.nodes import check_nodes
from ray_jobs.places import SWEEP, give_back, give_back_of_the_dead
from ray_jobs.ray_folder import ray_folder
from ray_jobs.run_queue import RunQueue, RunState, Watch
from ray_jobs.same_store import marked, store_environment
from ray_jobs.slot_settings import SlotSettings
from ray_jobs.slots import Slot
from ray_jobs.stop_signals import deferred
from ray_jobs.terms import Terms
from ray_jobs.watcher import Watcher
from search_spaces.spec import Resources

STOP_WAIT_S = 60.0  # a step and a checkpoint of a large model; a second Ctrl-C ends the wait
ON_HEAD = {"node:__internal_head__": 0.001}  # what a sweep must not lose with a worker
SLOT_MEMORY = 2**30  # bytes on the head: a slot, 0.4 GiB, with room to spare


def run_on_ray(
    runs: Sequence[RunConfig],
    storage: Storage,
    resources: Resources,
    terms: Terms | None = None,
    *,
    watch: Watch = lambda states: None,
    address: str | None = None,
    shared_folder: bool = False,
) -> list[RunState]:
    """Train `runs` and what `terms.search` chooses, as many at a time as fit, and return their states; every one is
    recorded in the store.

    `watch` is called from a thread of its own. `run_here` does the same without Ray, one run at a time.

    Args:
        address: a cluster to join; None is a private Ray that ends with this call.
        shared_folder: whether a folder as `storage` is the same one on all nodes of the cluster.
    Raises: ConnectionError if the cluster cannot be reached, or has a node that cannot train them; ValueError if its
        nodes would not share `storage`; KeyboardInterrupt after all runs were stopped, at Ctrl-C, SIGTERM or the end of
        the terminal; RayLost if the Ray died, and StoreError if the store failed: the runs are there to be continued.
    """
    with connected(address, resources, store_environment(storage)):
        if address:
            give_back_of_the_dead()
        if address and storage.is_local and not shared_folder and not _is_one_machine(resources):
            raise unshared(storage)
        if address:
            check_nodes(storage)
        total = len(runs) + (terms.to_choose if terms else 0)
        slots = _slots(resources, total, private=address is None)
        return run_connected(runs, storage, resources, terms, slots=slots, watch=watch)


def run_connected(
    runs: Sequence[RunConfig],
    storage: Storage,
    resources: Resources,
    terms: Terms | None = None,
    *,
    slots: int,
    watch: Watch = lambda states: None,
) -> list[RunState]:
    """The same on the Ray this process is connected to, which stays up, with `slots` runs at a time."""
    terms = terms or Terms()
    name = f"{SWEEP}{os.getpid()}-{os.urandom(4).hex()}"
    with ray_folder() as scratch, marked(storage, name) as mark:
        actor = ray.remote(num_cpus=0, max_concurrency=1000, resources=ON_HEAD)(RunQueue)
        queue = actor.options(name=name, namespace=name).remote(terms.admission, terms.retries)
        queue.look_around.remote(terms.sweep)
        settings = SlotSettings(name, storage.url, mark, scratch, resources, terms.retries, terms.prices)
        with _left_empty(name, queue), Watcher(queue, watch, terms.admission, name, resources) as watcher:
            try:
                trained, errors = _tune(runs, terms, settings, slots, queue)
            except KeyboardInterrupt:
                if isinstance(watcher.error, RayLost):
                    raise watcher.error from None
                _stop(queue)
                if watcher.error:
                    raise watcher.error from None
                raise
        if watcher.error:  # seen when all had ended already
            raise watcher.error
        states: list[RunState] = ray.get(queue.runs.remote())
        terms.admission.learn(ray.get(queue.admission.remote()))
    return _account_for(trained, states, errors, storage)


def _tune(
    runs: Sequence[RunConfig], terms: Terms, settings: SlotSettings, slots: int, queue: Any
) -> tuple[Sequence[RunConfig], list[str]]:
    """One trial a run, in order, unless some are compared early; returns all runs and the errors of slots that broke.

    Raises what kept a search from choosing, once the runs under way have ended.
    """
    scheduler = searcher = None
    if terms.comparison and (compared := [run for run in runs if run.run_id in terms.comparison.runs]):
        from ray_jobs.early_stopping import EarlyStopping, in_drawn_order  # not every sweep has schedulers to load

        runs = in_drawn_order(runs, terms.comparison)
        scheduler = EarlyStopping(terms.comparison, compared[0].steps, queue.end_early.remote)

    def task(run: RunConfig) -> dict[str, Any]:
        told = {"config": run.model_dump_json(), "again": run.run_id in terms.again, "tokens": terms.tokens_of(run)}
        return {"run_id": run.run_id} | told

    space: dict[str, Any] = {"settings": settings}
    if terms.search:
        from ray_jobs.tune_searcher import CellSearcher

        searcher = CellSearcher(runs, terms.search, task)
    else:
        space["run"] = tune.grid_search([*map(task, runs)])
    tuner = tune.Tuner(
        # Trials only drive: their worker groups hold the CPUs and GPUs.
        tune.with_resources(Slot, ON_HEAD),
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=-1 if searcher else 1,  # the searcher says when there is no other
            max_concurrent_trials=slots,
            search_alg=searcher,
            scheduler=scheduler,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["run"]["run_id"],
            trial_dirname_creator=lambda trial: trial.config["run"]["run_id"],
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=settings.scratch,
            verbose=0,
            # The death of a slot's own process; that of a worker inside it is the queue's to count.
            failure_config=tune.FailureConfig(max_failures=settings.retries.infrastructure),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the store holds what is worth keeping
            callbacks=[_Forget()],
        ),
    )
    errors = [str(error) for error in tuner.fit().errors]
    if searcher and searcher.error:
        raise searcher.error
    return [*runs, *(searcher.chosen if searcher else ())], errors


# Tune would hand the keys of who starts a sweep to every node, for all to read in the records of its processes.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}


class _Forget(Callback):
    """Drops what Tune computed of the results of a trial that ended: 30 kB each, and a sweep may have thousands."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()
        trial.run_metadata.last_result.clear()


def _slots(resources: Resources, runs: int, *, private: bool) -> int:
    """Worker groups at a time: what was asked for, else what the cluster holds; never more than runs.

    A cluster that holds none yet, or starts nodes on demand, may get more of them: there it is as many as the memory of
    its head drives, and the autoscaler decides how many come.

    Raises: ValueError if one does not fit on a private Ray, which cannot grow.
    """
    total, needs, fits = ray.cluster_resources(), _needs(resources), _fitting(resources)
    if not private and (fits < 1 or can_grow()):
        fits = max(1, fits, int(total.get("memory", 0) // SLOT_MEMORY))
    if private and fits < 1:
        needed = " and ".join(f"{need:g} {name}s" for name, need in needs.items())
        held = " and ".join(f"{total.get(name, 0):g} {name}s" for name in needs)
        raise ValueError(f"a run needs {needed}, this machine has {held}; ask for fewer workers or join a cluster")
    asked = None if resources.max_concurrent == "auto" else resources.max_concurrent
    return min(runs, asked or fits)


def _needs(resources: Resources) -> dict[str, float]:
    """What one worker group takes."""
    return {name: resources.workers * need for name, need in worker_needs(resources).items()}


def _fitting(resources: Resources) -> int:
    """How many worker groups the nodes that are up hold."""
    total = ray.cluster_resources()
    # Ray counts in ten-thousandths; 1 // 0.1 would be 9.
    return min(int(total.get(name, 0) / need + 1e-4) for name, need in _needs(resources).items())


def _is_one_machine(resources: Resources) -> bool:
    """Whether all runs will train on the node that is up: there is no other, and it holds them."""
    return sum(node["Alive"] for node in ray.nodes()) == 1 and _fitting(resources) > 0


def _account_for(
    runs: Sequence[RunConfig], states: list[RunState], errors: list[str], storage: Storage
) -> list[RunState]:
    """Every run has an end in the store: those whose slot broke are failed, and those are recorded that are not yet."""
    known = {state.run_id: state for state in states}
    recorded = read_known(storage).statuses
    reason = errors[0].strip().splitlines()[-1] if errors else "its slot ended without a result"
    for run in runs:
        state = known.setdefault(run.run_id, RunState(run.run_id, slot=""))
        if (state.ended_at is None or state.status == "failed") and recorded.get(run.run_id) not in ENDED:
            from muon_core.recorder import start_record  # loads torch, which a sweep that ends well needs not here

            state.status, state.error = "failed", state.error or reason
            failure = state.failures[-1] if state.failures else "infrastructure"
            record_failure(storage, run.run_id, start_record(run), state.error, state.attempt, failure)
    return [known[run.run_id] for run in runs]


def _stop(queue: Any) -> None:
    """Ask all runs to end and give them a moment to record it."""
    ray.get(queue.stop.remote())
    deadline = time.monotonic() + STOP_WAIT_S
    while time.monotonic() < deadline:
        states: list[RunState] = ray.get(queue.runs.remote())
        if all(state.ended_at is not None for state in states):
            return
        time.sleep(0.1)


@contextlib.contextmanager
def _left_empty(name: str, queue: Any) -> Iterator[None]:
    """However the block ends, the sweep `name` starts no more workers then, and holds nothing on a cluster."""
    try:
        yield
    except RayLost:
        raise  # there is nobody to ask
    except BaseException:
        _leave(name, queue)
        raise
    _leave(name, queue)


def _leave(name: str, queue: Any) -> None:
    with deferred(), contextlib.suppress(RayError):
        ray.get(queue.close_all.remote())
        give_back(name)
