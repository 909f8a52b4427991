"""What running a sweep file would do now: which runs are new, what is done, what the seeds can resolve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from search_spaces.expand import PlannedRun, expand
from search_spaces.spec import SweepSpec

Status = Literal["new", "done", "diverged", "failed", "interrupted"]
STATUS: dict[str, Status] = {
    "done": "done",
    "diverged": "diverged",
    "failed": "failed",
    "stopped": "interrupted",
    "running": "interrupted",
}
"""A run's status in the results store, as a plan tells it."""
FINISHED = ("done", "diverged")  # a run that diverged gave its result

# Between-seed sd of a paired difference in final val_loss, nats per token, where none is given. Measured, Muon - AdamW.
_TINY_SD = (0.029, "measured: muon against adamw, tiny preset on English prose, 200 steps, 8 seeds")
_LARGE_SD = (0.0131, "measured: muon against adamw, 88 M parameters, 1.7 B tokens, 3 seeds")


@dataclass(frozen=True, slots=True)
class Power:
    """Which paired difference to the baseline the seeds can resolve, in units of the primary metric.

    `resolvable` is t(0.975, n-1) sd / sqrt(n), the half-width of the mean difference's 95 % interval: the smallest
    measured difference whose interval leaves zero out. `detectable` is the true difference for which that happens
    4 times in 5. Both are None for one seed, and where no sd is known.
    """

    seeds: int
    sd: float | None
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
                    "arm": run.config.arm_label,
                    "arm_id": run.config.arm_id,
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
            "cost_usd": 0.0,
        }


def plan(spec: SweepSpec, done: Mapping[str, str], *, retry_failed: bool = False, sd: float | None = None) -> Plan:
    """What running `spec` would do.

    Args:
        done: run_id to status, of the runs in the results store; it may hold runs of other sweeps.
        retry_failed: run failed runs again too.
        sd: between-seed standard deviation of a paired difference in the primary metric; None takes a measured one.
    Raises: SpecError if the spec cannot be expanded; ValueError for an `sd` that is not positive.
    """
    runs = tuple(expand(spec))
    statuses = tuple(STATUS[done[run.run_id]] if run.run_id in done else "new" for run in runs)
    settled = FINISHED if retry_failed else (*FINISHED, "failed")
    to_run = tuple(run for run, status in zip(runs, statuses, strict=True) if status not in settled)
    return Plan(spec, runs, statuses, to_run, power(spec, sd))


def power(spec: SweepSpec, sd: float | None = None) -> Power:
    """What the seeds of `spec` can resolve. Raises ValueError for an `sd` that is not positive."""
    seeds, source = len(spec.seeds), "given"
    if sd is not None and not sd > 0:
        raise ValueError(f"the standard deviation between seeds must be positive, got {sd}")
    if sd is None and spec.metrics.primary != "val_loss":
        return Power(seeds, None, f"none known for {spec.metrics.primary}; give one", None, None)
    if sd is None:
        sd, source = _TINY_SD if spec.preset == "tiny" else _LARGE_SD
    if seeds == 1:
        return Power(seeds, sd, source, None, None)
    from scipy.special import nctdtrinc, stdtrit  # half a second, which loading a sweep file need not pay

    critical, scale = float(stdtrit(seeds - 1, 0.975)), sd / seeds**0.5
    return Power(seeds, sd, source, critical * scale, float(nctdtrinc(seeds - 1, 0.2, critical)) * scale)


def render(plan: Plan) -> str:
    """The plan in words: a line an arm, then what would start, what it takes, what it can tell, and what to do next."""
    shared = f", {_count(plan.duplicates, 'duplicate')} between blocks merged" if plan.duplicates else ""
    arms = len(plan.runs) // plan.power.seeds
    return "\n".join(
        [
            f"sweep {plan.spec.name}: {plan.spec.question}".removesuffix(": "),
            f"{_count(len(plan.runs), 'run')}: {_count(arms, 'arm')} x {_count(plan.power.seeds, 'seed')}{shared}",
            "",
            *_table(plan, arms),
            "",
            f"to run: {_count(len(plan.to_run), 'run')}, {plan.tokens:,} training tokens; local runs cost 0 USD",
            f"power: {_power_told(plan.power)}",
            f"next: {_next(plan)}",
        ]
    )


def _table(plan: Plan, arms: int) -> list[str]:
    rows = [("blocks", "role", "arm", "seeds", "status")]
    for arm in range(arms):  # the arms of a seed follow each other, so every `arms`-th run is of one arm
        runs, counts = plan.runs[arm::arms], Counter(plan.statuses[arm::arms])
        blocks, roles = (" + ".join(dict.fromkeys(names)) for names in zip(*runs[0].members, strict=True))
        seeds = " ".join(str(run.config.seed) for run in runs)
        status = ", ".join(f"{count} {status}" for status, count in counts.items())
        rows.append((blocks, roles, runs[0].config.arm_id, seeds, status))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _power_told(power: Power) -> str:
    if power.sd is None:
        return f"unknown: standard deviation between seeds {power.sd_source}"
    assumed = f"sd of paired differences {power.sd:g}, {power.sd_source}"
    if power.resolvable is None or power.detectable is None:
        return f"one seed gives no interval and resolves nothing; add seeds ({assumed})"
    return (
        f"{power.seeds} seeds give intervals of +-{power.resolvable:.2g} and find a true difference of "
        f"{power.detectable:.2g} 4 times in 5 ({assumed})"
    )


def _next(plan: Plan) -> str:
    if plan.to_run:
        return f"muon sweep run {plan.spec.source.name}"
    failed = plan.counts.get("failed", 0)
    retry = f", or run {_count(failed, 'failed run')} again: muon sweep run {plan.spec.source.name} --retry failed"
    return f"muon report {plan.spec.name}{retry if failed else ''}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
