"""The answer to a sweep's question: a row per arm, compared with the baseline seed by seed."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, cast

import polars as pl

from analysis import queries
from analysis.integrity import integrity_warnings
from analysis.members import ALL_STATUSES, sweep_members
from analysis.statistics import (
    Contrast,
    Goal,
    PairedComparison,
    block_model,
    compare_paired,
    holm,
    seeds_to_resolve,
    spread_ratio,
)
from analysis.tables import Store, SweepRecord

ALPHA = 0.05  # of the Holm-adjusted p, to match the 95 % intervals
Verdict = Literal["baseline", "lower", "higher", "not resolved", "no data"]


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm of one block. Means are over runs that are done; the others are counted in `counts`."""

    arm: str
    block: str
    role: str
    optimizer: str | None
    counts: dict[str, int]
    """Runs by status, `missing` for those nobody has started."""
    values: dict[int, float]
    """Seed -> primary metric of its done run."""
    mean: float | None
    sd: float | None
    wall_s: float | None
    """Mean seconds a done run took."""
    comparison: PairedComparison | None
    """With the baseline; None for the baseline and where no seed pairs."""
    adjusted_p: float | None
    """Holm over the arms that were tested."""
    seeds_to_resolve: int | None
    """Seeds whose interval would exclude 0 for a difference this size; None for a resolved one and above 1000."""
    pooled: Contrast | None
    """The same contrast under the additive block model, which pools the error of all arms."""
    verdict: Verdict

    @property
    def planned(self) -> int:
        """Runs the sweep asks for."""
        return sum(self.counts.values())


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
    warnings: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Runs by status over all arms."""
        return {status: sum(arm.counts[status] for arm in self.arms) for status in ALL_STATUSES}

    @property
    def tests(self) -> int:
        """Arms tested against the baseline: the family Holm adjusts for."""
        return sum(arm.adjusted_p is not None for arm in self.arms)


def summarize(view: Store) -> Summary:
    """Summary of a sweep's view, `open_store(path).sweep(name)`. Raises ValueError for a view of no sweep."""
    return summarize_members(view, members_of(view))


def members_of(view: Store) -> pl.DataFrame:
    """`sweep_members` of a sweep's view. Raises ValueError for a store not narrowed to a sweep."""
    if view.record is None:
        raise ValueError(
            f"a summary is of one sweep; use .sweep(name), one of: {', '.join(view.sweep_names()) or 'none yet'}"
        )
    return sweep_members(view.record, view.runs.collect())


def summarize_members(view: Store, members: pl.DataFrame) -> Summary:
    """`summarize` for members already collected, so that a report reads `runs` once."""
    record = view.record
    assert record is not None
    metric, at, goal = _question(record)
    series = view.table(queries.metric_table(metric))
    per_run = queries.value_per_run(series, metric, at=at, goal=goal)
    runs = members.lazy().join(per_run.select("run_id", "value"), on="run_id", how="left", maintain_order="left")
    arms, notes = _arms(runs.collect(), goal)
    baseline = next((arm.arm for arm in arms if arm.verdict == "baseline"), None)
    return Summary(
        sweep=record.name,
        question=record.question,
        metric=metric,
        unit=queries.metric_unit(metric),
        at=at,
        goal=goal,
        baseline=baseline,
        arms=arms,
        warnings=(*notes, *integrity_warnings(members)),
    )


def _question(record: SweepRecord) -> tuple[str, queries.At, Goal]:
    at, goal = record.metrics["at"], record.metrics["goal"]
    if at not in ("final", "best") or goal not in ("min", "max"):
        raise ValueError(f"sweep {record.name}: metrics at {at!r}, goal {goal!r}; use final or best, min or max")
    return record.metrics["primary"], cast(queries.At, at), cast(Goal, goal)


def _arms(runs: pl.DataFrame, goal: Goal) -> tuple[tuple[ArmSummary, ...], list[str]]:
    groups = {str(name): frame for (name,), frame in runs.group_by("arm", maintain_order=True)}
    values = {name: _values(frame) for name, frame in groups.items()}
    baselines = [name for name, frame in groups.items() if frame["role"][0] == "baseline"]
    baseline = baselines[0] if baselines else None
    base = values[baseline] if baseline else {}
    comparisons = {name: None if name == baseline else compare_paired(own, base, goal) for name, own in values.items()}
    tested = holm([found.p_value if found else None for found in comparisons.values()])
    adjusted = dict(zip(comparisons, tested, strict=True))
    pooled = block_model(values, baseline) if baseline else {}
    arms = tuple(
        _arm(frame, values[name], comparisons[name], adjusted[name], pooled.get(name), is_baseline=name == baseline)
        for name, frame in groups.items()
    )
    return arms, [*_baseline_notes(baselines), *_value_notes(groups, values), *_spread_notes(values)]


def _arm(
    frame: pl.DataFrame,
    values: dict[int, float],
    comparison: PairedComparison | None,
    adjusted_p: float | None,
    pooled: Contrast | None,
    *,
    is_baseline: bool,
) -> ArmSummary:
    done = frame.filter(pl.col("status") == "done")
    wall = done["wall_s"].drop_nulls().to_list()
    own = list(values.values())
    verdict = _verdict(comparison, adjusted_p, bool(values), is_baseline)
    seeds = None
    if verdict == "not resolved" and comparison and comparison.sd_log is not None:
        seeds = seeds_to_resolve(comparison.sd_log, comparison.log_ratio)
    return ArmSummary(
        arm=frame["arm"][0],
        block=frame["block"][0],
        role=frame["role"][0],
        optimizer=next(iter(frame["optimizer"].drop_nulls()), None),
        counts={status: frame.filter(pl.col("status") == status).height for status in ALL_STATUSES},
        values=values,
        mean=fmean(own) if own else None,
        sd=stdev(own) if len(own) > 1 else None,
        wall_s=fmean(wall) if wall else None,
        comparison=comparison,
        adjusted_p=adjusted_p,
        seeds_to_resolve=seeds,
        pooled=pooled,
        verdict=verdict,
    )


def _values(frame: pl.DataFrame) -> dict[int, float]:
    """Seed -> value of the done runs that have a finite one; the mean where two runs share a seed."""
    done = frame.filter((pl.col("status") == "done") & pl.col("value").is_finite())
    means = done.group_by("seed").agg(pl.col("value").mean()).sort("seed")
    return dict(zip(means["seed"], means["value"], strict=True))


def _verdict(
    comparison: PairedComparison | None, adjusted_p: float | None, has_values: bool, baseline: bool
) -> Verdict:
    if baseline:
        return "baseline"
    if not has_values:
        return "no data"
    if comparison is None or adjusted_p is None or adjusted_p >= ALPHA:
        return "not resolved"
    return "lower" if comparison.log_ratio < 0 else "higher"


def _baseline_notes(baselines: list[str]) -> list[str]:
    if not baselines:
        return ["no arm has the role baseline, so nothing is compared; give one block `role: baseline`"]
    if len(baselines) > 1:
        return [f"{len(baselines)} arms have the role baseline ({', '.join(baselines)}); compared with the first"]
    return []


def _value_notes(groups: dict[str, pl.DataFrame], values: dict[str, dict[int, float]]) -> list[str]:
    notes = []
    for name, frame in groups.items():
        seeds = frame.filter(pl.col("status") == "done")["seed"].unique()
        lost = sorted(set(seeds) - values[name].keys())
        if lost:
            notes.append(f"{name}: done, but without a finite value of the metric at seed {', '.join(map(str, lost))}")
    return notes


def _spread_notes(values: dict[str, dict[int, float]]) -> list[str]:
    ratio = spread_ratio(values)
    if ratio is None or ratio <= 3:
        return []
    return [
        f"the spread between seeds differs {ratio:.3g}-fold between arms: trust the paired intervals, not pooled errors"
    ]
