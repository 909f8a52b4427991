"""What a sweep found at runs that it no longer lists, so that an answer can name them and a report has their values."""

from __future__ import annotations

from dataclasses import replace

from analysis import queries
from analysis.members import sweep_members
from analysis.store import Store
from muon_core.store.dropped import DroppedRun, dropped_runs, earlier_runs
from muon_core.store.sweeps import read_records


def read_dropped(view: Store) -> tuple[DroppedRun, ...]:
    """The runs that ended and that earlier records of a sweep's view list, with their value of the primary metric.

    Raises as `read_records` and `view.runs`.
    """
    record = view.record
    assert record is not None
    earlier = earlier_runs(read_records(view.storage, record.sweep), {run.run_id for run in record.runs})
    if not earlier:
        return ()
    metrics, before = record.metrics, record.model_copy(update={"runs": tuple(earlier.values())})
    other = replace(view, record=before)
    known = sweep_members(before, other.runs.collect()).select("run_id", "status", "seed")
    series = other.table(queries.metric_table(metrics.primary))
    per_run = queries.value_per_run(series, metrics.primary, at=metrics.at, goal=metrics.goal).collect()
    values = dict(per_run.select("run_id", "value").iter_rows())
    seeds = dict(known.select("run_id", "seed").iter_rows())
    found = dropped_runs(earlier, dict(known.select("run_id", "status").iter_rows()))
    return tuple(
        replace(run, seed=seeds[run.run_id], value=values.get(run.run_id) if run.status == "done" else None)
        for run in found
    )
