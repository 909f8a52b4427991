"""A sweep beside what the results store knows of it: its plan, and the record that is kept of it.

A plan loads neither torch nor, where the store is empty, what reads Parquet.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from muon_core.by_reference import file_of, with_file
from muon_core.store.known import read_known
from muon_core.store.storage import Storage
from ray_jobs.elsewhere import unfinished_alive
from ray_jobs.machine import assumed_gpu
from ray_jobs.sent_job import original_path
from search_spaces.chosen import continued
from search_spaces.errors import Problems
from search_spaces.estimate import speeds
from search_spaces.expand import PlannedRun
from search_spaces.parameters import corpus_path
from search_spaces.plan import Plan
from search_spaces.plan import plan as make_plan
from search_spaces.power import results
from search_spaces.searching import search_block, to_choose
from search_spaces.spec import SweepSpec
from search_spaces.strict_yaml import KeyPath

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
    past, measured = speeds(known.newest), results(known.newest)
    records = _records(storage, sweep.name)
    sweep = with_what_was_chosen(sweep, storage)
    _check_installed(sweep)
    trained = [end.config_json for end in known.newest]
    compare = functools.partial(
        make_plan,
        sweep,
        known.statuses,
        past=past,
        measured=measured,
        records=records,
        trained=trained,
        retry=retry,
        sd=sd,
        gpu=assumed_gpu(sweep.resources),
    )
    planned = compare()
    if alive := unfinished_alive(storage, known.statuses, [run.run_id for run in planned.runs]):
        planned = compare(alive=alive)
    if only is None:
        return planned
    from ray_jobs.only import narrow  # which loads polars

    return narrow(planned, only)


def _records(storage: Storage, name: str) -> list[SweepRecord]:
    """All records of the sweep `name`, the newest last."""
    if not storage.list(f"sweeps/{name}/"):
        return []
    from muon_core.store.cache import cached  # loads Parquet
    from muon_core.store.sweeps import read_records

    return read_records(cached(storage), name)


def with_what_was_chosen(sweep: SweepSpec, storage: Storage) -> SweepSpec:
    """`sweep`, whose search goes on from what any call of it has chosen; a sweep without a search is as it was.

    Two calls may choose at the same moment, and neither record has then what the other chose, so all are read.
    """
    if search_block(sweep) is None or not (records := _records(storage, sweep.name)):
        return sweep
    return continued(sweep, [(record.spec, {run.run_id for run in record.runs}) for record in records])


def _check_installed(sweep: SweepSpec) -> None:
    """Raises SpecError where there are cells to choose, and nothing to choose them with."""
    found = search_block(sweep)
    if found and to_choose(sweep) and not find_spec("optuna"):
        problems = Problems(sweep.source)
        at = ("blocks", sweep.blocks.index(found[0]), "sample", "searcher")
        problems.add(at, 'sample.searcher needs Optuna, which is not installed; pip install "muon-jobs[search]"')
        raise problems.error()


def sweep_record(planned: Plan) -> SweepRecord:
    """What the store keeps of a sweep: the question, the file as read, and its runs with the names of their arms."""
    return record_of(planned.spec, planned.runs, planned.names)


def record_of(spec: SweepSpec, runs: Sequence[PlannedRun], names: Mapping[str, str]) -> SweepRecord:
    """The same of a sweep that is not planned anew; `names` has what each arm is called, by arm_id."""
    from muon_core.store.sweeps import Metric, SweepRecord, SweepRun

    return SweepRecord(
        sweep=spec.name,
        question=spec.question,
        spec=portable(spec, original_path),
        metrics=Metric.model_validate(spec.metrics.model_dump()),
        runs=tuple(
            SweepRun(run_id=run.run_id, block=block, role=role, arm=names[run.arm_id], seed=run.config.seed)
            for run in runs
            for block, role in run.members
        ),
        to_choose=to_choose(spec),
    )


def portable(spec: SweepSpec, move: Callable[[str], str]) -> dict[str, Any]:
    """The fields of a sweep file, in which `move` replaces the path, made absolute, of each corpus and optimizer."""

    def moved(value: Any, at: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: moved(item, (*at, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [moved(item, (*at, index)) for index, item in enumerate(value)]
        if at[:1] == ("blocks",) and at[2:] == ("optimizer",):
            path = file_of(value)
            return with_file(value, move(path)) if path else value
        if "data.corpus" not in at:
            return value
        path = corpus_path(value, spec.source.folder_of(at))
        return move(path) if os.path.isabs(path) else value

    fields: dict[str, Any] = moved(spec.model_dump(mode="json"), ())
    return fields
