"""A sweep beside what the results store knows of it: its plan, and the record that is kept of it.

A plan loads neither torch nor, where the store is empty, what reads Parquet.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from muon_core.store.known import read_known
from muon_core.store.storage import Storage
from ray_jobs.elsewhere import unfinished_alive
from search_spaces.estimate import speeds
from search_spaces.parameters import corpus_path
from search_spaces.plan import Plan
from search_spaces.plan import plan as make_plan
from search_spaces.spec import SweepSpec

if TYPE_CHECKING:
    from muon_core.store.sweeps import SweepRecord


def plan_sweep(
    sweep: SweepSpec,
    storage: Storage,
    *,
    only: str | None = None,
    retry: Collection[str] = (),
    sd: float | None = None,
) -> Plan:
    """What running `sweep` would do now.

    Args:
        only: a condition in SQL; runs for which it does not hold are not started.
        retry, sd: as `search_spaces.plan.plan` has them.
    Raises: ValueError for an invalid sweep or condition, StoreError for a store that cannot be read.
    """
    known = read_known(storage)
    past = speeds(known.newest)
    before = _listed_before(storage, sweep.name)
    compare = functools.partial(make_plan, sweep, known.statuses, past=past, listed_before=before, retry=retry, sd=sd)
    planned = compare()
    if alive := unfinished_alive(storage, known.statuses, [run.run_id for run in planned.runs]):
        planned = compare(alive=alive)
    if only is None:
        return planned
    from ray_jobs.only import narrow  # which loads polars

    return narrow(planned, only)


def _listed_before(storage: Storage, name: str) -> set[str]:
    """The runs that the newest record of the sweep `name` lists."""
    if not storage.list(f"sweeps/{name}/"):
        return set()
    from muon_core.store.sweeps import read_sweep  # loads Parquet

    record = read_sweep(storage, name)
    return {run.run_id for run in record.runs} if record else set()


def sweep_record(planned: Plan) -> SweepRecord:
    """What the store keeps of a sweep: the question, the file as read, and its runs with the names of their arms."""
    from muon_core.store.sweeps import Metric, SweepRecord, SweepRun

    spec = planned.spec
    return SweepRecord(
        sweep=spec.name,
        question=spec.question,
        spec=_portable(spec),
        metrics=Metric.model_validate(spec.metrics.model_dump()),
        runs=tuple(
            SweepRun(
                run_id=run.run_id,
                block=block,
                role=role,
                arm=planned.names[run.arm_id],
                seed=run.config.seed,
            )
            for run in planned.runs
            for block, role in run.members
        ),
    )


def _portable(spec: SweepSpec) -> dict[str, Any]:
    """The fields of a sweep file, valid in any folder: the paths of its corpora are absolute."""

    def absolute(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: absolute(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [absolute(item, name) for item in value]
        return corpus_path(value, spec.source.folder) if name == "data.corpus" else value

    fields: dict[str, Any] = absolute(spec.model_dump(mode="json"))
    return fields
