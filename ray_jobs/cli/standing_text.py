"""How runs stand, in words: what `muon status` and the panel of a sweep say of counts, time, money, best and worst."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muon_core.spelling import counted
from muon_core.statuses import counts_text, last_line
from ray_jobs.cli.text import clock_text, cut, table_lines

if TYPE_CHECKING:
    from analysis.standing import BestArm, RunStanding, Standing

ERROR_WIDTH = 80  # of a row; the run's own status shows all of it
HEADER = ("status", "run", "step", "val loss", "wall s", "attempts", "trained by", "trouble")
TRAINER = HEADER.index("trained by")
EAGER = ("running", "failed", "interrupted")
"""What is shown first where not all runs fit."""


def summary_lines(standing: Standing) -> list[str]:
    """A line on all its runs; for a sweep, if there is one, the best arm; and the last failure."""
    facts = [f"{standing.sweep}: {counts_text(standing.counts)}" if standing.sweep else counts_text(standing.counts)]
    if standing.to_choose:
        facts.append(f"{standing.to_choose} to be chosen")
    if standing.left_s is not None:
        facts.append(f"ETA {clock_text(standing.left_s)}")
    if standing.sweep:
        facts.append(spent_text(standing.usd, standing.committed_usd))
    lines = ["; ".join(facts)]
    if standing.best:
        lines.append(best_text(standing.best))
    if standing.sweep and standing.failure:
        lines.append(f"last failure: {standing.failure}")
    return lines


def spent_text(usd: float | None, committed_usd: float) -> str:
    """`1.2 USD spent, 0.4 committed`."""
    if usd is None:
        return "USD spent are unknown"
    return f"{usd:.3g} USD spent" + (f", {committed_usd:.3g} committed" if committed_usd else "")


def best_text(best: BestArm) -> str:
    """`best so far: muon lr=0.02, val_loss 3.2841 (2 of 3 runs done)`."""
    return (
        f"best so far: {best.arm}, {best.metric} {best.value:.4f} ({best.runs} of {counted(best.planned, 'run')} done)"
    )


def run_lines(standing: Standing, limit: int | None = None) -> list[str]:
    """A header and a line a run. Of more than `limit` those that train or failed come first, and the last counts."""
    runs, more = list(standing.runs), []
    if limit is not None and len(runs) > limit:
        runs.sort(key=lambda run: EAGER.index(run.status) if run.status in EAGER else len(EAGER))
        runs, more = runs[: limit - 1], [f"and {len(runs) - limit + 1} more"]
    rows = [HEADER, *map(_cells, runs)]
    if not any(run.silent_s is not None for run in runs):
        rows = [row[:TRAINER] + row[TRAINER + 1 :] for row in rows]
    return [*table_lines(rows), *more]


def _cells(run: RunStanding) -> tuple[str, ...]:
    return (
        run.status,
        run.run_id,
        f"{run.step or 0}/{run.steps}" if run.steps else "",
        "" if run.val_loss is None else f"{run.val_loss:.4f}",
        "" if run.wall_s is None else f"{run.wall_s:.0f}",
        str(run.attempts or ""),
        "" if run.silent_s is None else f"{run.pid} on {run.host}, seen {run.silent_s:.0f} s ago",
        cut(last_line(run.error or run.health), ERROR_WIDTH),
    )
