"""Runs that ended and that their sweep no longer lists: a seed or an arm was taken out of the file after its result.

Whoever drops the seed that did not fit keeps a better answer, so plans, answers and reports name what was dropped. The
store knows: records of a sweep are never changed, and the earlier ones still list those runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muon_core.statuses import EARLY, ENDED, counts_text

if TYPE_CHECKING:
    from muon_core.store.sweeps import SweepRecord, SweepRun

SHOWN = 3  # arms and runs that are named; the others are counted


@dataclass(frozen=True, slots=True)
class DroppedRun:
    """One such run."""

    run_id: str
    arm: str
    """As the last record that lists the run calls it."""
    seed: int | None
    status: str
    value: float | None = None
    """The primary metric of one that is done, where an answer has read it."""


def earlier_runs(records: Iterable[SweepRecord], listed: Collection[str]) -> dict[str, SweepRun]:
    """Runs of `records`, the newest last, that are not among `listed`, by id; each as the last record has it."""
    return {run.run_id: run for record in records for run in record.runs if run.run_id not in listed}


def dropped_runs(earlier: Mapping[str, SweepRun], statuses: Mapping[str, str]) -> tuple[DroppedRun, ...]:
    """Those of `earlier_runs` that ended, sorted by their id.

    Args:
        statuses: run_id -> status, of runs in the store.
    """
    return tuple(
        DroppedRun(run_id, run.arm, run.seed, status)
        for run_id, run in sorted(earlier.items())
        if (status := statuses.get(run_id)) in (*ENDED, EARLY)
    )


def describe_dropped(runs: Collection[DroppedRun], seeds: Collection[int | None], arms: Collection[str]) -> str:
    """How many they are and which, as in `3 finished runs of this sweep are no longer listed: seed 7`; empty for none.

    Args:
        seeds, arms: those that the sweep still lists. A run of neither a seed nor an arm that went is named itself.
    """
    if not runs:
        return ""
    statuses = Counter(run.status for run in runs)
    how, which = ("finished", "") if statuses.keys() == {"done"} else ("ended", f" ({counts_text(statuses)})")
    noun, verb = ("run", "is") if len(runs) == 1 else ("runs", "are")
    gone = {run.seed for run in runs if run.seed is not None} - {*seeds}
    rest = [run for run in runs if run.seed not in gone]
    parts = [f"seed {', '.join(map(str, sorted(gone)))}"] if gone else []
    parts += _some("arm", dict.fromkeys(run.arm for run in rest if run.arm not in arms))
    parts += _some("run", [run.run_id for run in rest if run.arm in arms])
    return f"{len(runs):,} {how} {noun} of this sweep {verb} no longer listed{which}: {'; '.join(parts)}"


def _some(noun: str, names: Collection[str]) -> list[str]:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return [f"{noun} {', '.join([*names][:SHOWN])}{more}"] if names else []
