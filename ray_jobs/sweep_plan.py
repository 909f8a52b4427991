"""A sweep beside what the results store knows of it: its plan, and the record that is kept of it.

A plan loads neither torch nor, where the store is empty, what reads Parquet.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from muon_core.store.storage import Storage
from ray_jobs.elsewhere import unfinished_alive
from search_spaces.estimate import Speed, speeds
from search_spaces.parameters import corpus_path
from search_spaces.plan import Plan
from search_spaces.plan import plan as make_plan
from search_spaces.spec import SweepSpec

if TYPE_CHECKING:
    from muon_core.store.sweeps import SweepRecord

JUDGED_RUNS = 300  # the newest runs of the store, by which the speed of the next is judged


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
    statuses, early, past, before = _look_up(storage, sweep.name)
    compare = functools.partial(
        make_plan, sweep, statuses, stopped_early=early, past=past, listed_before=before, retry=retry, sd=sd
    )
    planned = compare()
    if alive := unfinished_alive(storage, statuses, [run.run_id for run in planned.runs]):
        planned = compare(alive=alive)
    if only is None:
        return planned
    from ray_jobs.cli.only import narrow  # which loads polars

    return narrow(planned, only)


def _look_up(storage: Storage, name: str) -> tuple[dict[str, str], set[str], list[Speed], set[str]]:
    """What `storage` knows: statuses of its runs, which of them were stopped early, how fast the newest were, and the
    runs that the sweep `name` listed before."""
    if not storage.list("attempts/"):
        return {}, set(), [], set()  # without loading what reads Parquet
    from muon_core.store.reader import read_known, stopped_early
    from muon_core.store.sweeps import read_sweep

    statuses, ends = read_known(storage)
    columns = ["status", "wall_s", "steps", "config_json", "ended_at"]
    newest = ends.select(columns).sort_by([("ended_at", "descending")])[:JUDGED_RUNS]
    record = read_sweep(storage, name)
    return (
        statuses,
        stopped_early(ends),
        speeds(newest.to_pylist()),
        {run.run_id for run in record.runs} if record else set(),
    )


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

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        if isinstance(value, dict):
            return {name: found(item) if name == "data.corpus" else absolute(item) for name, item in value.items()}
        return value

    def found(corpus: Any) -> Any:
        paths = [corpus_path(item, spec.source.folder) for item in (corpus if isinstance(corpus, list) else [corpus])]
        return paths if isinstance(corpus, list) else paths[0]

    fields: dict[str, Any] = absolute(spec.model_dump(mode="json"))
    return fields
