"""A sweep's plan in words: a line an arm, then what would start, what it takes and what the seeds can resolve."""

from __future__ import annotations

from collections import Counter

from ray_jobs.cli.text import table_lines
from search_spaces.plan import Plan, Power


def render_plan(plan: Plan) -> str:
    """The plan in words: a line an arm, then what would start, what it takes and what it can tell."""
    shared = f", {_count(plan.duplicates, 'duplicate')} between blocks merged" if plan.duplicates else ""
    arms = len(plan.runs) // plan.power.seeds
    return "\n".join(
        [
            f"sweep {plan.spec.name}: {plan.spec.question}".removesuffix(": "),
            f"{_count(len(plan.runs), 'run')}: {_count(arms, 'arm')} x {_count(plan.power.seeds, 'seed')}{shared}",
            "",
            *table_lines(_rows(plan, arms)),
            "",
            f"to run: {_count(len(plan.to_run), 'run')}, {plan.tokens:,} training tokens; local runs cost 0 USD",
            f"power: {_describe_power(plan.power)}",
            *(f"odd: {doubt}" for doubt in plan.doubts),
        ]
    )


def _rows(plan: Plan, arms: int) -> list[tuple[str, ...]]:
    """A header, then one row an arm."""
    rows: list[tuple[str, ...]] = [("blocks", "role", "arm", "seeds", "status")]
    for arm in range(arms):  # the arms of a seed follow each other, so every `arms`-th run is of one arm
        runs, counts = plan.runs[arm::arms], Counter(plan.statuses[arm::arms])
        blocks, roles = (" + ".join(dict.fromkeys(names)) for names in zip(*runs[0].members, strict=True))
        seeds = " ".join(str(run.config.seed) for run in runs)
        status = ", ".join(f"{count} {status}" for status, count in counts.items())
        rows.append((blocks, roles, plan.names[runs[0].arm_id], seeds, status))
    return rows


def _describe_power(power: Power) -> str:
    if power.sd is None:
        return f"unknown: standard deviation between seeds {power.sd_source}"
    if not power.comparisons:
        return "nothing is compared with the baseline; add a block"
    assumed = f"sd of paired differences {power.sd:g}, {power.sd_source}"
    if power.resolvable is None or power.detectable is None:
        return f"one seed gives no interval and resolves nothing; add seeds ({assumed})"
    adjusted = f", adjusted for {power.comparisons} arms (Holm)" if power.comparisons > 1 else ""
    return (
        f"{power.seeds} seeds resolve a measured difference of {power.resolvable:.2g} and find a true one of "
        f"{power.detectable:.2g} 4 times in 5{adjusted} ({assumed})"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
