"""A sweep's plan in words: a line an arm, then what would start, what it takes and what the seeds can resolve."""

from __future__ import annotations

from collections import Counter

from muon_core.spelling import counted
from muon_core.statuses import counts_text
from ray_jobs.cli.text import lasting, table_lines
from ray_jobs.money import Money
from search_spaces.plan import Plan
from search_spaces.power import Power


def render_plan(plan: Plan, money: Money) -> str:
    """The plan in words: a line an arm, then what would start, what it takes and costs, and what it can tell."""
    shared = f", {counted(plan.duplicates, 'duplicate')} between blocks merged" if plan.duplicates else ""
    seeds = len(plan.spec.seeds)
    arms, remedy = len(plan.runs) // seeds, "confirm the best" if plan.search else "add seeds"
    return "\n".join(
        [
            f"sweep {plan.spec.name}: {plan.spec.question}".removesuffix(": "),
            f"{counted(len(plan.runs), 'run')}: {counted(arms, 'arm')} x {counted(seeds, 'seed')}{shared}",
            "",
            *table_lines(_rows(plan, arms)),
            "",
            *_search(plan),
            f"to run: {counted(len(plan.coming), 'run')}{_unchosen(plan)}{_work(plan)}",
            *([_time(plan), *money.describe()] if plan.coming else []),
            *_elsewhere(plan),
            *([f"dropped: {plan.dropped_text}"] if plan.dropped else []),
            *(f"changed: {sentence}" for sentence in plan.changed),
            *(f"power: {_describe_power(power, remedy)}" for power in plan.powers),
            *(f"odd: {doubt}" for doubt in plan.doubts),
            *([f"missing: {plan.missing}"] if plan.missing else []),
        ]
    )


def _search(plan: Plan) -> list[str]:
    if not (search := plan.search):
        return []
    so_far = f"{search.chosen} chosen so far" + (f": {counts_text(search.counts)}" if search.chosen else "")
    return [f"search: {counted(search.cells, 'cell')} of block {search.block}, chosen as results come; {so_far}"]


def _unchosen(plan: Plan) -> str:
    return f", {len(plan.to_choose)} of them to be chosen" if plan.to_choose else ""


def _work(plan: Plan) -> str:
    """What the runs that are to be trained take."""
    if not plan.coming:
        return ""
    return f", {plan.tokens:,} training tokens, {plan.flops:.1e} FLOPs"


def _time(plan: Plan) -> str:
    less = "; less, for candidates may end early" if plan.spec.early_stopping else ""
    return f"time: {lasting(plan.seconds)}, one run after the other ({plan.estimate.source}){less}"


def _elsewhere(plan: Plan) -> list[str]:
    if not plan.elsewhere:
        return []
    return [
        f"elsewhere: {counted(len(plan.elsewhere), 'run')} that another process trains now; `run` waits for its end"
    ]


def _rows(plan: Plan, arms: int) -> list[tuple[str, ...]]:
    """A header, then one row an arm."""
    rows: list[tuple[str, ...]] = [("blocks", "role", "arm", "seeds", "status")]
    for arm in range(arms):  # the arms of a seed follow each other, so every `arms`-th run is of one arm
        runs = plan.runs[arm::arms]
        blocks, roles = (" + ".join(dict.fromkeys(names)) for names in zip(*runs[0].members, strict=True))
        seeds = " ".join(str(run.config.seed) for run in runs)
        status = counts_text(Counter(plan.statuses[arm::arms]))
        rows.append((blocks, roles, plan.names[runs[0].arm_id], seeds, status))
    return rows


def _describe_power(power: Power, remedy: str = "add seeds") -> str:
    """What the seeds can tell of arms of a kind; `remedy` is what helps where there is one."""
    if not power.comparisons:
        return "nothing is compared with the baseline; add a block"
    kind = f"{power.kind}: " if power.kind else ""
    if power.sd is None:
        return f"{kind}unknown: standard deviation between seeds {power.sd_source}"
    assumed = f"sd of paired differences {power.sd:.3g}, {power.sd_source}"
    if power.resolvable is None or power.detectable is None:
        return f"{kind}one seed gives no interval and resolves nothing; {remedy} ({assumed})"
    adjusted = f", adjusted for {power.comparisons} arms (Holm)" if power.comparisons > 1 else ""
    return (
        f"{kind}{power.seeds} seeds resolve a measured difference of {power.resolvable:.2g} and find a true one of "
        f"{power.detectable:.2g} 4 times in 5{adjusted} ({assumed})"
    )
