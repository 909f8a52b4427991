"""Early stopping on Ray: a scheduler of Tune says which runs to end, and the run queue ends them.

Left to itself, Tune would hand a stopped trial's actor the next trial while the workers of that slot still train the
old run. Here the trial goes on until its run has saved itself and recorded why it ended: the slot sees that as it sees
any end, its workers stay warm, and the store knows the decision, which holds for every later call of the sweep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from muon_core.config.run import RunConfig
from muon_core.statuses import STOPPED_EARLY
from ray_jobs.slots import STEPS_DONE
from ray_jobs.terms import Comparison

EndEarly = Callable[[str, str], None]
"""Told the id of a run and why it is to end."""


class EarlyStopping(FIFOScheduler):
    """Starts trials in their order, and compares those of `comparison` by a scheduler of Tune.

    Args:
        steps: how long the compared runs are.
        end_early: is to end a run; it may take its time.
    """

    def __init__(self, comparison: Comparison, steps: int, end_early: EndEarly) -> None:
        super().__init__()
        self._comparison, self._steps, self._end_early = comparison, steps, end_early
        self._rule = _rule(comparison, steps)
        self._ended: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if _run_id(trial) in self._comparison.runs:
            self._rule.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ask the rule about an evaluation before the last; the trial itself goes on to the end of its run."""
        if self._is_compared(trial, result) and result[STEPS_DONE] < self._steps:
            decision = self._rule.on_trial_result(tune_controller, trial, result)
            if (
                decision == TrialScheduler.STOP
            ):  # PAUSE, which the median asks for while it knows too little, is not for us
                self._ended.add(_run_id(trial))
                self._end_early(_run_id(trial), self._reason(result))
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self._is_compared(trial, result):
            self._rule.on_trial_complete(tune_controller, trial, result)

    def _is_compared(self, trial: Any, result: dict[str, Any]) -> bool:
        run_id = _run_id(trial)
        is_evaluated = result.get(self._comparison.metric) is not None
        return run_id in self._comparison.runs and run_id not in self._ended and is_evaluated

    def _reason(self, result: dict[str, Any]) -> str:
        rule, metric = self._comparison.rule, self._comparison.metric
        short = {
            "asha": f"not among the best 1/{rule.reduction_factor:g} of the runs that came as far (asha)",
            "median": "worse than the median of the other runs (median)",
        }
        return (
            f"{STOPPED_EARLY} {metric} {result[metric]:.4g} after {result[STEPS_DONE]} of {self._steps} steps is "
            f"{short[rule.scheduler]}"
        )


def _rule(comparison: Comparison, steps: int) -> TrialScheduler:
    rule = comparison.rule
    common = {"time_attr": STEPS_DONE, "metric": comparison.metric, "mode": comparison.goal}
    if rule.scheduler == "median":
        return MedianStoppingRule(grace_period=rule.grace_steps, **common)
    return ASHAScheduler(
        max_t=steps,
        grace_period=rule.grace_steps,
        reduction_factor=rule.reduction_factor,
        stop_last_trials=False,
        **common,
    )


def _run_id(trial: Any) -> str:
    return str(trial.config["run"]["run_id"])


def in_drawn_order(runs: Sequence[RunConfig], comparison: Comparison) -> list[RunConfig]:
    """`runs`, those that are compared last and in an order that has nothing to do with their parameters.

    In the order of a grid each run would often do better than all before it, and none would end early.
    """
    return sorted(
        runs,
        key=lambda run: (run.run_id in comparison.runs, hashlib.sha256(run.run_id.encode()).digest()),
    )
