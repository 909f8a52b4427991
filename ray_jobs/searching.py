"""The search of a sweep while it runs: chooses a cell when there is a place for a run, by what the store knows then.

A cell is recorded before it is trained. So a search that was interrupted goes on with the cells it has, and of two
calls that run the same sweep each learns what the other chose; from the same results they choose the same cell, which
one of them trains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from muon_core.statuses import FINISHED
from muon_core.store.storage import Storage
from ray_jobs.suggestions import Told, suggestions, worst
from ray_jobs.sweep_plan import record_of, with_what_was_chosen
from search_spaces.arm_names import arm_names
from search_spaces.chosen import run_of
from search_spaces.expand import PlannedRun, expand
from search_spaces.sampling import Row
from search_spaces.searching import search_block, to_choose, with_chosen
from search_spaces.spec import SweepSpec
from search_spaces.values import hashable

if TYPE_CHECKING:
    from muon_core.store.sweeps import SweepRecord


class Search:
    """Hands out runs that are chosen only when they can begin.

    Args:
        spec: the sweep, with what its search has chosen so far; the store has a record of it.
        at_most: how many runs to hand out.
    """

    def __init__(self, spec: SweepSpec, storage: Storage, at_most: int) -> None:
        self._spec, self._storage = spec, storage
        self._runs: dict[object, PlannedRun | None] = {}
        self.left = at_most
        """How many runs it hands out at most."""

    @property
    def missing(self) -> int:
        """How many cells are to be chosen until the search is complete, in this call or another."""
        return to_choose(self._spec)

    def stop(self) -> None:
        """Choose no more."""
        self.left = 0

    def note(self, status: str) -> None:
        """A run of this call ended so: one that could not begin or go on shows that no other could."""
        if status in ("left out", "stopped"):
            self.stop()

    def next(self) -> PlannedRun | None:
        """A run that was chosen just now and is to be trained; None where there is no further.

        Raises StoreError if the store cannot be read or written.
        """
        from muon_core.store.sweeps import write_sweep

        while self.left > 0:
            chosen = self._look()
            run = self._choose(chosen) if to_choose(self._spec) else None
            if run is None:
                break
            write_sweep(self._storage, self._record())
            if run.run_id not in self._ends([run]):  # else another sweep or block has trained it
                self.left -= 1
                return run
        return None

    @property
    def runs(self) -> list[PlannedRun]:
        """The cells that are chosen by now, also those that other calls of the sweep chose."""
        return [run for _, run in self._look()]

    def _look(self) -> list[tuple[Row, PlannedRun]]:
        """Learn what was chosen, by whomever."""
        self._spec = with_what_was_chosen(self._spec, self._storage)
        found = search_block(self._spec)
        assert found
        runs = [(row, self._run_of(row)) for row in found[1].chosen]
        return [(row, run) for row, run in runs if run]

    def _choose(self, chosen: Sequence[tuple[Row, PlannedRun]]) -> PlannedRun | None:
        """Add the most promising cell whose run is none of those `chosen`."""
        found, metrics = search_block(self._spec), self._spec.metrics
        assert found
        block, sample = found
        known = {run.run_id for _, run in chosen}
        for row in suggestions(block, self._told(chosen), metrics.goal, len(sample.chosen)):
            run = self._run_of(row)
            if run and run.run_id not in known:
                self._spec = with_chosen(self._spec, [*sample.chosen, row])
                return run
        return None

    def _run_of(self, row: Row) -> PlannedRun | None:
        key = hashable(row)
        if key not in self._runs:
            self._runs[key] = run_of(self._spec, row)
        return self._runs[key]

    def _record(self) -> SweepRecord:
        runs = expand(self._spec)
        return record_of(self._spec, runs, arm_names(runs))

    def _told(self, chosen: Sequence[tuple[Row, PlannedRun]]) -> list[Told]:
        """What is known of each cell, but for those whose run failed, of which nothing is."""
        ends = self._ends([run for _, run in chosen])
        failed = {run_id for run_id, value in ends.items() if value is None}
        return [Told(row, ends.get(run.run_id)) for row, run in chosen if run.run_id not in failed]

    def _ends(self, runs: Sequence[PlannedRun]) -> dict[str, float | None]:
        """The primary metric of those of `runs` that have ended: the worst there is for one that diverged, None for one
        that failed."""
        from analysis.standing import value_of_each
        from analysis.store import open_store
        from muon_core.store.sweeps import Metric, SweepRecord, SweepRun

        metrics = Metric.model_validate(self._spec.metrics.model_dump())
        listed = tuple(SweepRun(run_id=run.run_id, block=run.block, role=run.role, arm=run.arm_id) for run in runs)
        record = SweepRecord(sweep=self._spec.name, metrics=metrics, runs=listed)
        view = replace(open_store(self._storage), record=record)
        rows = view.runs.collect()
        done = rows.filter(status="done")
        values = dict(zip(done["run_id"], value_of_each(view, metrics, done), strict=True))
        lost = worst(metrics.goal)
        ends: dict[str, float | None] = {}
        for run_id, status in rows.select("run_id", "status").iter_rows():
            if status in FINISHED:
                value = values.get(run_id)
                ends[run_id] = lost if value is None or not math.isfinite(value) else value
            elif status == "failed":
                ends[run_id] = None
        return ends
