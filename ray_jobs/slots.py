"""Warm slots: a Tune trainable that keeps one TorchTrainer alive and feeds it run after run.

Ray's guide starts a TorchTrainer a trial: processes, imports and a process group, ten seconds and more before the first
step. A slot pays that once. It is a Tune actor, which `reuse_actors` hands the next trial when one ends, with one
worker group whose workers fetch the slot's run from the run queue, train it, say how it ended, and fetch the next. If a
worker dies, Ray Train starts the group again; its workers are given the same unfinished run and go on from its
checkpoint. What a warm process must not do is carry anything from one run into the next: a test compares its bits with
a fresh one's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from muon_core.failures import gravest
from muon_core.progress import Progress
from ray_jobs.places import has_lost_a_node, nodes, take
from ray_jobs.retrying import Hang
from ray_jobs.slot_settings import SlotSettings
from search_spaces.spec import Resources

POLL_S = 2.0  # how often a waiting trial looks after its worker group
LEAVE_S = 3.0  # for workers to leave their loop; what they computed is stored
HANG_LOOK_S = 5.0  # how often a slot asks whether its run hangs
HEALTH_CHECK_S = 0.5  # how often Ray Train looks whether a worker ended or died
STEPS_DONE = "steps_done"  # in a trial's results, beside the metrics of an evaluation
COLLECTIVE_TIMEOUT_S = 1800  # gloo and NCCL: longer than any evaluation or checkpoint of one rank


def _work(config: dict[str, Any]) -> None:
    """What each worker does. Only workers load the training."""
    gc.disable()  # what modules make stays: going through it for garbage is a tenth of loading them
    from ray_jobs.slot_loop import slot_loop

    gc.freeze()
    gc.enable()
    slot_loop(config)


class Slot(tune.Trainable):
    """One Tune actor, one worker group, many runs: Tune's `reuse_actors` hands it the next trial when one ends."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the worker group in the background and hand it the first run."""
        self._settings: SlotSettings = config["settings"]
        self._slot = uuid.uuid4().hex[:8]
        self._queue = self._settings.find_queue()
        ray.get(self._queue.free_the_dead.remote())  # this slot may be here in place of one
        self._error: BaseException | None = None
        self._looked, self._groups = time.monotonic(), 0
        self._held: PlacementGroup | None = None
        self._nodes: set[str] = set()
        self._group = threading.Thread(target=self._run_group, daemon=True)
        self._group.start()
        self._submit(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; the worker group stays as it is."""
        self._submit(new_config)
        return True

    def _submit(self, config: dict[str, Any]) -> None:
        self._val_loss: float | None = None
        self._turn = ray.get(self._queue.submit.remote(self._slot, **config["run"]))

    def _run_group(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig  # here, for whoever starts a sweep needs no torch

        from ray_jobs.trainer import SlotTrainer

        settings = self._settings
        trainer = SlotTrainer(
            _work,
            take=self._take,
            lose=self._lose,
            hang=self._hang,
            train_loop_config={"settings": settings, "slot": self._slot},
            torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=settings.resources.workers,
                use_gpu=settings.resources.gpus_per_worker > 0,
                resources_per_worker=_resources_per_worker(settings.resources),
            ),
            run_config=RunConfig(
                name=f"slot-{self._slot}",
                storage_path=settings.scratch,
                failure_config=FailureConfig(max_failures=-1),  # the queue counts restarts, per run
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            self._error = error

    def _take(self, bundles: Sequence[Mapping[str, float]], strategy: str) -> PlacementGroup:
        """Wait for a run that needs workers, then ask for their places. Raises NoMoreRuns."""
        from ray_jobs.trainer import NoMoreRuns

        group = None
        with contextlib.suppress(RayError):  # the sweep is gone
            if ray.get(self._queue.wants_workers.remote(self._slot)):
                self._groups += 1
                self._nodes = set()
                group = self._held = take(f"{self._settings.queue}/{self._slot}/{self._groups}", bundles, strategy)
            if group and ray.get(self._queue.hold.remote(self._slot, ray.get_runtime_context().get_actor_id(), group)):
                return group
        if group:
            remove_placement_group(group)
        raise NoMoreRuns

    def _lose(self, error: Exception) -> None:
        """Tell the queue what the workers died of. A sweep that is gone needs to hear nothing."""
        workers = getattr(error, "worker_failures", {}).values()
        failure = gravest(workers or [getattr(error, "controller_failure", error)])
        with contextlib.suppress(RayError):
            gone = failure == "infrastructure" and self._held is not None and has_lost_a_node(self._held, self._nodes)
            ray.get(self._queue.lose.remote(self._slot, failure, node_is_gone=gone))

    def _hang(self) -> Hang | None:
        """Why the workers are given up, asked of the queue now and then; it is called while they are at work."""
        if self._held and not self._nodes:
            self._nodes = nodes(self._held)
        if time.monotonic() - self._looked < HANG_LOOK_S:
            return None
        self._looked = time.monotonic()
        with contextlib.suppress(RayError):
            reason: str | None = ray.get(self._queue.hang.remote(self._slot))
            return Hang(reason) if reason else None
        return None

    def step(self) -> dict[str, Any]:
        """Wait for the run's next evaluation or its end."""
        while True:
            state = ray.get(self._queue.wait.remote(self._slot, self._turn, self._val_loss, POLL_S))
            if state.ended_at is not None:
                return {"done": True, "status": state.status} | _evaluation(state.progress)
            if not self._group.is_alive():
                raise RuntimeError(f"the worker group of slot {self._slot} is gone: {self._error}")
            if state.progress and state.progress.val_loss != self._val_loss:
                self._val_loss = state.progress.val_loss
                return _evaluation(state.progress)

    def cleanup(self) -> None:
        """Let the workers leave their loop; those that take too long lose their places, which others may wait for."""
        ray.get(self._queue.close.remote(self._slot))
        self._group.join(timeout=LEAVE_S)
        ray.get(self._queue.free.remote(self._slot))


def _evaluation(progress: Progress | None) -> dict[str, Any]:
    """The newest evaluation, and how many steps the run has made."""
    if progress is None or progress.val_loss is None:
        return {}
    return {"val_loss": progress.val_loss, "val_accuracy": progress.val_accuracy, STEPS_DONE: progress.step}


def _resources_per_worker(resources: Resources) -> dict[str, float]:
    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    return {"CPU": resources.cpus_per_worker} | gpus


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of every Ray process of a sweep; sleeping threads, so that two slots do not starve each other."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with it Ray Train prints each line of a run twice
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each worker group; the run queue looks for all
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(HEALTH_CHECK_S)),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600"),
    }
