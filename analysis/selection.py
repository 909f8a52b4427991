"""Which arms were chosen by their results, and whether seeds that had no part in the choice were tried.

The best of many arms is partly the luckiest: the best of ten without effect, at two seeds, looks a standard deviation
better. So the best arm of a block of several is `not confirmed` until it has runs that are done on fresh seeds, in a
sweep whose file says that it confirms this one, as `muon sweep confirm` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from analysis.arms import ArmSummary
from analysis.statistics import Goal
from analysis.store import Store
from muon_core.store.sweeps import SweepRecord


@dataclass(frozen=True, slots=True)
class Selection:
    """The best arm of a block."""

    arm: str
    block: str
    of: int
    """Arms of the block that were compared with the baseline."""
    confirmed_by: str | None
    """The sweep in which it is done on fresh seeds; None where there is none."""
    fresh_seeds: tuple[int, ...] = ()
    """Those it is done with there."""


def selections(view: Store, members: pl.DataFrame, arms: Sequence[ArmSummary], goal: Goal) -> tuple[Selection, ...]:
    """The best arm of each candidate block that has several, where it is better than the baseline.

    Args:
        members: rows of `sweep_members`.
    """
    chosen = list(_best(arms, goal))
    if not chosen or view.record is None:
        return ()
    used = _seeds(view.record) | set(members["seed"].drop_nulls())
    later = [record for record in view.readable_records() if record.spec.get("confirms") == view.record.sweep]
    done = {record.sweep: _done(view, record) for record in later}
    found = []
    for arm, of in chosen:
        ids = set(members.filter(pl.col("arm") == arm.arm)["arm_id"].drop_nulls())
        fresh = {
            sweep: tuple(sorted({seed for arm_id, seed in runs if arm_id in ids and seed not in used}))
            for sweep, runs in done.items()
        }
        sweep = max(fresh, key=lambda name: len(fresh[name]), default=None)
        seeds = fresh[sweep] if sweep else ()
        found.append(Selection(arm.arm, arm.block, of, sweep if seeds else None, seeds))
    return tuple(found)


def confirms_text(view: Store) -> str:
    """What a sweep that confirms another one is; empty for any other."""
    record = view.record
    earlier = record.spec.get("confirms") if record else None
    if not record or not earlier:
        return ""
    first = next((other for other in view.readable_records() if other.sweep == earlier), None)
    if first is None:
        return f"confirms {earlier}, which cannot be read here: whether its seeds are fresh is not known"
    seeds = _seeds(record)
    if again := sorted(seeds & _seeds(first)):
        return f"confirms {earlier} in part: seed {', '.join(map(str, again))} had a part in choosing its arms"
    return f"confirms {earlier}: seed {', '.join(map(str, sorted(seeds)))} had no part in choosing its arms"


def _best(arms: Sequence[ArmSummary], goal: Goal) -> list[tuple[ArmSummary, int]]:
    """The best arm of each block of several, and how many it is the best of."""
    sign = 1 if goal == "min" else -1
    found = []
    for block in dict.fromkeys(arm.block for arm in arms if arm.role == "candidate"):
        known = [arm for arm in arms if arm.block == block and arm.found and not (arm.errors or arm.casualties)]
        best = min(known, key=lambda arm: sign * arm.found.difference if arm.found else 0.0, default=None)
        if best and best.found and len(known) > 1 and sign * best.found.difference < 0:
            found.append((best, len(known)))
    return found


def _done(view: Store, record: SweepRecord) -> set[tuple[str, int]]:
    """arm_id and seed of the runs of another sweep that are done."""
    rows = replace(view, record=record).runs.filter(pl.col("status") == "done").select("arm_id", "seed").collect()
    return {(arm_id, seed) for arm_id, seed in rows.iter_rows() if seed is not None}


def _seeds(record: SweepRecord) -> set[int]:
    return {run.seed for run in record.runs if run.seed is not None}
