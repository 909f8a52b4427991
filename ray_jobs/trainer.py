"""The `TorchTrainer` of a slot: Ray Train's, without the processes that a slot has no use for.

For each trainer Ray Train starts a controller, an actor for datasets, one that speaks to the autoscaler in the name of
Ray Data, and one that frees the controller's places when it dies, which asks the dashboard: a dozen processes more. The
controller imports torch before its workers may begin to. A slot is an actor already, has no datasets, and tells the run
queue which places it holds: so its controller runs in it. Each worker group has an actor more, where workers meet that
report to Ray Train; ours report to the run queue. None of this is public in Ray, whose version is pinned for such
reasons; the workers and what they see are Ray Train's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.train import FailureConfig, Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import PlacementGroup

_LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)


class _Nowhere:
    """Stands for the actor where workers would meet."""

    @classmethod
    def options(cls, **_: Any) -> type[_Nowhere]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> type[_Nowhere]:
        return cls


worker_group.SynchronizationActor = _Nowhere
state._shutdown_sync_actor = lambda nowhere: None


class _FixedSize(FixedScalingPolicy):
    """Has an autoscaler see the workers' placement group alone, which asks for all it needs."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class NoMoreRuns(Exception):
    """There is nothing for workers to do: none are started."""


class _Telling(DefaultFailurePolicy):
    """Says what the workers died of before others are started, unless there is nothing left for them."""

    def __init__(self, config: FailureConfig, lose: Callable[[TrainingFailedError], None]) -> None:
        super().__init__(config)
        self._lose = lose

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        cause = getattr(training_failed_error, "controller_failure", None)
        if isinstance(cause, NoMoreRuns):
            return FailureDecision.RAISE
        if not isinstance(cause, WorkerGroupStartupTimeoutError):  # no node had room for them: they wait on
            self._lose(training_failed_error)
        return super().make_decision(training_failed_error)


class SlotTrainer(TorchTrainer):
    """A `TorchTrainer` whose controller runs in the calling thread, which must be one of an actor.

    Args:
        take: called when workers are to be started, with what each needs and the strategy; it waits until there is
            something for them to do, and returns the placement group that it asked for. Raises NoMoreRuns.
        lose: called with what the workers died of, each time they do.
        hang: asked each time the workers are looked after; an exception ends them, and others are started.
    """

    def __init__(
        self,
        *args: Any,
        take: Callable[[Sequence[Mapping[str, float]], str], PlacementGroup],
        lose: Callable[[TrainingFailedError], None],
        hang: Callable[[], Exception | None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._take, self._lose, self._hang = take, lose, hang

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, _LEFT_OUT)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        take, hang = self._take, self._hang

        class Held(WorkerGroup):
            def _create_placement_group(self, scaling_config: Any, context: Any) -> DefaultPlacementGroupHandle:
                bundles = [context.resources_per_worker] * context.num_workers
                return DefaultPlacementGroupHandle(take(bundles, context.placement_strategy))

            def poll_status(self, timeout: float | None = None) -> WorkerGroupPollStatus:
                if error := hang():
                    return WorkerGroupPollStatus({0: WorkerStatus(running=False, error=error)})
                return super().poll_status(timeout)

        settings["failure_policy"] = _Telling(self.run_config.failure_config, self._lose)
        settings["scaling_policy"] = _FixedSize(self.scaling_config)
        controller = TrainController(**settings)
        controller.worker_group_cls = Held
        asyncio.run(controller.run())
        return controller.get_result()
