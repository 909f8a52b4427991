"""The answer to a sweep's question: a row per arm, compared with the baseline seed by seed.

Tables and sentences of the terminal, the page and the JSON are all made from one `Summary`, so they cannot disagree.
What forbids a comparison is an error, and its arms are invalid; what weakens one is a warning, and the reader judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import polars as pl

from analysis import queries
from analysis.additive import spread_ratio
from analysis.arms import ArmSummary, summarize_arms
from analysis.costs import cost_per_seed
from analysis.dropped import read_dropped
from analysis.effects import Effect, main_effects
from analysis.equivalence import Equivalence, equivalences
from analysis.gates import GateResult, judge, parse_gates
from analysis.hair import hair_notes
from analysis.integrity import integrity_errors, integrity_warnings
from analysis.lengths import of_other_length
from analysis.members import ALL_STATUSES, sweep_members
from analysis.selection import Selection, confirms_text, selections
from analysis.statistics import Goal
from analysis.store import Store
from analysis.targets import Target, reach_target
from muon_core.statuses import EARLY, FINISHED
from muon_core.store.dropped import DroppedRun, describe_dropped
from muon_core.store.ledger import read_alive

MAX_SPREAD_RATIO = 3  # at three seeds chance alone exceeds it for one pair of arms in five


@dataclass(frozen=True, slots=True)
class Summary:
    """What a sweep found so far."""

    sweep: str
    question: str
    metric: str
    unit: str
    at: str
    goal: Goal
    baseline: str | None
    arms: tuple[ArmSummary, ...]
    counts: dict[str, int]
    """Runs by status; one that several blocks list counts once."""
    errors: tuple[str, ...]
    """What forbids a comparison; the arms it concerns are `invalid`."""
    warnings: tuple[str, ...]
    gates: tuple[GateResult, ...] = ()
    """What the sweep must show, in the order of its file."""
    effects: tuple[Effect, ...] = ()
    """What the parameters do that blocks vary, in the order of the file."""
    equivalences: tuple[Equivalence, ...] = ()
    """Tests that an arm is like the baseline, where a gate has a margin."""
    selections: tuple[Selection, ...] = ()
    """Arms that are the best of their block, and whether fresh seeds were tried."""
    confirms: str = ""
    """Which sweep this one confirms, and whether its seeds are fresh; empty where it confirms none."""
    target: Target | None = None
    """What the arms took to the baseline's mean."""
    dropped: tuple[DroppedRun, ...] = ()
    """Runs that ended, that earlier versions of the sweep listed, and this one does not; they are in no number."""
    dropped_text: str = ""
    """How many those are, and which; empty where there are none."""

    @property
    def tests(self) -> int:
        """Arms tested against the baseline, those of equal runs once: the family Holm adjusts for."""
        return sum(arm.adjusted_p is not None and arm.copy_of is None for arm in self.arms)


def summarize(view: Store) -> Summary:
    """Summary of a sweep's view, `open_store(path).sweep(name)`. Raises ValueError for a view of no sweep."""
    return summarize_members(view, members_of(view))


def members_of(view: Store) -> pl.DataFrame:
    """`sweep_members` of a sweep's view. Raises ValueError for a store not narrowed to a sweep."""
    if view.record is None:
        raise ValueError(
            f"a summary is of one sweep; use .sweep(name), one of: {', '.join(view.sweep_names()) or 'none yet'}"
        )
    runs = view.runs.collect()
    finished = set(runs.filter(pl.col("status").is_in(FINISHED))["run_id"])
    alive = read_alive(view.storage, {run.run_id for run in view.record.runs} - finished)
    return sweep_members(view.record, runs, alive)


def summarize_members(view: Store, members: pl.DataFrame) -> Summary:
    """`summarize` for members already collected, so that a report reads `runs` once."""
    record = view.record
    assert record is not None
    metric, at, goal = record.metrics.primary, record.metrics.at, record.metrics.goal
    series = view.table(queries.metric_table(metric))
    per_run = queries.value_per_run(series, metric, at=at, goal=goal)
    runs = members.lazy().join(per_run.select("run_id", "value"), on="run_id", how="left", maintain_order="left")
    errors = integrity_errors(members)
    apart = of_other_length(members) if record.is_imported else {}
    arms, baseline = summarize_arms(runs.collect(), goal, errors, apart)
    once = members.unique("run_id")["status"].to_list()
    unit, gates = queries.metric_unit(metric), parse_gates(record.spec)
    costs = cost_per_seed(view, members) if gates else {}
    judged = tuple(
        judge(gate, arms, baseline, goal=goal, unit=unit, costs=costs, to_choose=record.to_choose) for gate in gates
    )
    dropped = read_dropped(view)
    seeds = {*members["seed"], *(run.seed for run in record.runs)}
    dropped_text = describe_dropped(dropped, seeds, {run.arm for run in record.runs})
    return Summary(
        sweep=record.sweep,
        question=record.question,
        metric=metric,
        unit=unit,
        at=at,
        goal=goal,
        baseline=baseline,
        arms=arms,
        counts={status: once.count(status) for status in ALL_STATUSES},
        errors=tuple(text for texts in errors.values() for text in texts),
        warnings=(
            *([dropped_text] if dropped_text else []),
            *_search_notes(record.to_choose),
            *_early_notes(once.count(EARLY)),
            *_notes(arms, "`muon import` with --baseline names one" if record.is_imported else ""),
            *hair_notes(arms, baseline, goal, judged),
            *integrity_warnings(members, view.val, apart),
        ),
        gates=judged,
        effects=main_effects(members, arms),
        equivalences=equivalences(arms, baseline, gates, goal),
        selections=selections(view, members, arms, goal),
        confirms=confirms_text(view),
        target=reach_target(view, members, [arm for arm in arms if not arm.apart], baseline, metric, goal),
        dropped=dropped,
        dropped_text=dropped_text,
    )


def _search_notes(to_choose: int) -> list[str]:
    return [f"the search goes on: {to_choose} of its cells are to be chosen yet"] if to_choose else []


def _early_notes(runs: int) -> list[str]:
    verb, still = ("run was", "is") if runs == 1 else ("runs were", "are")
    return [f"{runs} {verb} stopped early and {still} in no mean"] if runs else []


def _notes(arms: Sequence[ArmSummary], remedy: str) -> list[str]:
    distinct = [arm for arm in arms if arm.copy_of is None]
    return [
        *_baseline_notes(distinct, remedy or "give one block `role: baseline`"),
        *_value_notes(distinct),
        *_equal_notes(distinct),
        *_spread_notes(distinct),
    ]


def _baseline_notes(arms: list[ArmSummary], remedy: str) -> list[str]:
    baselines = [arm.arm for arm in arms if arm.role == "baseline"]
    if not baselines:
        return [f"no arm has the role baseline, so nothing is compared; {remedy}"]
    if len(baselines) > 1:
        return [f"{len(baselines)} arms have the role baseline ({', '.join(baselines)}); compared with the first"]
    return []


def _value_notes(arms: list[ArmSummary]) -> list[str]:
    return [
        f"{arm.arm}: done, but without a positive, finite value of the metric {_where(arm.unusable)}"
        for arm in arms
        if arm.unusable
    ]


def _where(seeds: Sequence[int | None]) -> str:
    """`at seed 1, 2 and in 1 run without a seed`."""
    known, unknown = [seed for seed in seeds if seed is not None], seeds.count(None)
    parts = [f"at seed {', '.join(map(str, known))}"] if known else []
    parts += [f"in {unknown} run{'' if unknown == 1 else 's'} without a seed"] if unknown else []
    return " and ".join(parts)


def _equal_notes(arms: list[ArmSummary]) -> list[str]:
    return [
        f"the runs of {arm.arm} equal the baseline's to the last digit; its perturbation never acted"
        for arm in arms
        if arm.comparison and arm.comparison.is_identical
    ]


def _spread_notes(arms: list[ArmSummary]) -> list[str]:
    ratio = spread_ratio({arm.arm: arm.values for arm in arms})
    if ratio is None or ratio <= MAX_SPREAD_RATIO:
        return []
    fold = f"{ratio:.3g}-fold" if isfinite(ratio) else "one of them not at all"
    return [
        f"arms scatter unequally between seeds ({fold}): the intervals shown allow for it, each comes from its own "
        "pairs; the `pooled` contrasts in report.json do not"
    ]
