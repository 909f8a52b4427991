"""A sweep's money: what it has cost, what it will, and what it may."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from muon_core.gpus import GPUS
from muon_core.store.ledger import Rate, read_entries
from muon_core.store.storage import Storage
from ray_jobs.admission import Admission, Limits
from ray_jobs.breaker import Breaker
from ray_jobs.machine import assumed_gpu, lacks_gpus
from ray_jobs.prices import LOCAL, Prices, load_prices
from search_spaces.plan import Plan
from search_spaces.spec import Resources


@dataclass(frozen=True, slots=True)
class Money:
    """What a plan costs on machines like this one. USD."""

    plan: Plan
    prices: Prices
    rate: Rate
    """Of one run."""
    limits: Limits
    spent: dict[str, float]
    """By run, over all its attempts; empty where there is no budget, for nobody asks."""

    @property
    def spent_usd(self) -> float:
        """What the sweep has cost so far."""
        return sum(self.spent.values())

    @property
    def expected_usd(self) -> float | None:
        """What the runs that are to be trained will cost; None where no price is known."""
        rate = self.rate.usd_per_hour
        return None if rate is None else rate * self.plan.seconds / 3600

    @property
    def is_over(self) -> bool:
        """Whether the budget is too small for all runs that are to be trained."""
        limit, expected = self.limits.usd, self.expected_usd
        return limit is not None and bool(expected) and self.spent_usd + (expected or 0.0) > limit

    def admission(self, breaker: Breaker | None = None) -> Admission:
        """Keeps a call of the sweep within the budget, and what `breaker` refuses from starting."""
        estimate = self.plan.estimate
        expected_s = {run.run_id: estimate.seconds[run.arm_id] for run in (*self.plan.coming, *self.plan.elsewhere)}
        unchosen = [estimate.seconds[run.arm_id] for run in self.plan.to_choose]
        usual_s = fmean(unchosen) if unchosen else 0.0
        return Admission(self.limits, self.spent, expected_s, usual_s, estimate.is_measured, breaker or Breaker())

    def refusal(self) -> str | None:
        """Why not a single run may start; None if one may."""
        admission = self.admission()
        reasons = [admission.refuse(run.run_id, self.rate) for run in self.plan.coming]
        return reasons[0] if reasons and all(reasons) else None

    def describe(self) -> list[str]:
        """In a line each: what the runs will cost, and how that fits the budget."""
        expected = self.expected_usd
        where = "" if self.rate.node == LOCAL else f" on {self.rate.node}"
        dated = f", {self.rate.date}" if self.rate.usd_per_hour and self.rate.date else ""
        cost = self.rate.source
        if expected is not None:
            usd = "under 0.01" if 0 < expected < 0.01 else f"{expected:.4g}"
            cost = f"{usd} USD{where} ({self.rate.source}{dated})"
        lines = [f"cost: {cost}"]
        if self.limits.usd is not None:
            over = "; over budget: `run` starts what fits, and ends with exit code 6" if self.is_over else ""
            lines.append(f"budget: {self.limits.usd:g} USD, {self.spent_usd:.4g} spent{over}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "cost_usd": self.expected_usd,
            "price": {"node": self.rate.node, "usd_per_hour": self.rate.usd_per_hour, "source": self.rate.source},
            "budget_usd": self.limits.usd,
            "spent_usd": self.spent_usd if self.limits != Limits() else None,
            "over_budget": self.is_over,
        }


def money(plan: Plan, storage: Storage, max_usd: float | None = None) -> Money:
    """The money of `plan`, with what `storage` says was spent; `max_usd` goes over its `budget.usd`.

    Raises SpecError for a bad price table.
    """
    budget, prices = plan.spec.budget, load_prices()
    limits = Limits(
        usd=max_usd if max_usd is not None else budget.usd if budget else None,
        per_run_usd=budget.per_run_usd if budget else None,
        stop_at_once=budget is not None and budget.on_exceed == "stop",
    )
    spent: dict[str, float] = {}
    if limits != Limits():
        listed = {run.run_id for run in plan.runs}
        for entry in read_entries(storage):
            if entry.run_id in listed:
                spent[entry.run_id] = spent.get(entry.run_id, 0.0) + (entry.usd or 0.0)
    return Money(plan, prices, _rate(plan.spec.resources, prices), limits, spent)


def _rate(resources: Resources, prices: Prices) -> Rate:
    """What a run costs here; or, where this machine costs nothing and lacks the GPUs, on one that has them."""
    rate, node = prices.rate_here(resources), GPUS[assumed_gpu(resources)].node
    is_elsewhere = rate.node == LOCAL and rate.usd_per_hour == 0 and lacks_gpus(resources)
    return prices.rate(resources, node) if is_elsewhere and node else rate
