"""What running a sweep file would do now: which runs are new, what is done, what the seeds can resolve."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from search_spaces.arm_names import arm_names
from search_spaces.doubts import doubts, gate_doubts
from search_spaces.expand import PlannedRun, expand
from search_spaces.spec import SweepSpec
from search_spaces.student_t import detectable_shift, t_quantile

Status = Literal["new", "done", "diverged", "failed", "interrupted"]
STATUS: dict[str, Status] = {
    "done": "done",
    "diverged": "diverged",
    "failed": "failed",
    "stopped": "interrupted",
    "running": "interrupted",
}
"""A run's status in the results store, as a plan tells it."""

# Between-seed sd of a paired difference in final val_loss, nats per token, where none is given. Measured, Muon - AdamW.
_TINY_SD = (0.029, "measured: muon against adamw, tiny preset on English prose, 200 steps, 8 seeds")
_LARGE_SD = (0.0131, "measured: muon against adamw, 88 M parameters, 1.7 B tokens, 3 seeds")


@dataclass(frozen=True, slots=True)
class Power:
    """Which paired difference to the baseline the seeds can resolve, in units of the primary metric.

    Verdicts are adjusted for the number of arms compared, m (Holm), which asks an arm for p < 0.05 / m at worst.
    `resolvable` is t(1 - 0.025 / m, n - 1) sd / sqrt(n): the smallest measured difference that is then resolved
    whatever the other arms show. `detectable` is the true difference for which that happens 4 times in 5. Both are
    None for one seed, where nothing is compared, and where no sd is known.
    """

    seeds: int
    comparisons: int
    """Arms compared with the baseline; one that two blocks contain is one."""
    sd: float | None
    """Standard deviation, between seeds, of an arm's difference to the baseline at the same seed."""
    sd_source: str
    resolvable: float | None
    detectable: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep's runs with what the results store knows of them."""

    spec: SweepSpec
    runs: tuple[PlannedRun, ...]
    statuses: tuple[Status, ...]
    """One for each run."""
    to_run: tuple[PlannedRun, ...]
    """What `muon sweep run` would start, in order."""
    power: Power
    names: dict[str, str]
    """arm_id to what the arm is called."""
    doubts: tuple[str, ...]
    """What is odd about it, a sentence each."""

    @property
    def duplicates(self) -> int:
        """Runs that several blocks contain and that are paid for once."""
        return sum(len(run.members) - 1 for run in self.runs)

    @property
    def counts(self) -> dict[Status, int]:
        """Runs by status, those that occur."""
        return dict(Counter(self.statuses))

    @property
    def tokens(self) -> int:
        """Training tokens of `to_run`."""
        return sum(run.config.steps * run.config.tokens_per_step for run in self.to_run)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        starting = {run.run_id for run in self.to_run}
        return {
            "sweep": self.spec.name,
            "question": self.spec.question,
            "runs": [
                {
                    "run_id": run.run_id,
                    "block": run.block,
                    "role": run.role,
                    "members": [{"block": block, "role": role} for block, role in run.members],
                    "optimizer": run.config.optimizer.name,
                    "arm": self.names[run.arm_id],
                    "arm_id": run.arm_id,
                    "seed": run.config.seed,
                    "status": status,
                    "to_run": run.run_id in starting,
                    "config": run.config.model_dump(mode="json"),
                }
                for run, status in zip(self.runs, self.statuses, strict=True)
            ],
            "counts": self.counts,
            "duplicates": self.duplicates,
            "to_run": [run.run_id for run in self.to_run],
            "training_tokens": self.tokens,
            "power": asdict(self.power),
            "doubts": list(self.doubts),
            "cost_usd": 0.0,
        }


def plan(spec: SweepSpec, done: Mapping[str, str], *, retry_failed: bool = False, sd: float | None = None) -> Plan:
    """What running `spec` would do.

    Args:
        done: run_id to status, of the runs in the results store; it may hold runs of other sweeps.
        retry_failed: run failed runs again too.
        sd: standard deviation, between seeds, of a paired difference in the primary metric; None takes a measured one.
    Raises: SpecError if the spec cannot be expanded; ValueError for an `sd` that is not positive and finite.
    """
    runs = tuple(expand(spec))
    statuses = tuple(STATUS[done[run.run_id]] if run.run_id in done else "new" for run in runs)
    waiting = {"new", "interrupted"} | ({"failed"} if retry_failed else set())
    to_run = tuple(run for run, status in zip(runs, statuses, strict=True) if status in waiting)
    arms = len(runs) // len(spec.seeds)  # the baseline is one of them
    odd = (*doubts([run.config for run in runs[:arms]]), *gate_doubts(spec))  # seeds change nothing about them
    return Plan(spec, runs, statuses, to_run, power(spec, arms - 1, sd), arm_names(runs), odd)


def power(spec: SweepSpec, comparisons: int, sd: float | None = None) -> Power:
    """What the seeds of `spec` can resolve when so many arms are compared with the baseline.

    Raises ValueError for an `sd` that is not positive and finite.
    """
    seeds, source = len(spec.seeds), "given"
    if sd is not None and not 0 < sd < math.inf:
        raise ValueError(f"the standard deviation between seeds must be positive and finite, got {sd}")
    if sd is None and spec.metrics.primary != "val_loss":
        return Power(seeds, comparisons, None, f"none known for {spec.metrics.primary}; give one with --sd", None, None)
    if sd is None:
        sd, source = _TINY_SD if spec.preset == "tiny" else _LARGE_SD
    if seeds == 1 or not comparisons:
        return Power(seeds, comparisons, sd, source, None, None)
    critical, scale = t_quantile(0.025 / comparisons, seeds - 1), sd / seeds**0.5
    detectable = detectable_shift(critical, seeds - 1, 0.8) * scale
    return Power(seeds, comparisons, sd, source, critical * scale, detectable)
