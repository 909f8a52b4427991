"""Which cells of a search are chosen: those that a store remembers, and stand-ins for those to come."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from search_spaces.cells import random_rows
from search_spaces.errors import Problems, SpecError
from search_spaces.expand import PlannedRun, expand
from search_spaces.sampling import Row
from search_spaces.searching import search_block, to_choose, with_chosen
from search_spaces.spec import SweepSpec


def continued(spec: SweepSpec, before: Iterable[tuple[Mapping[str, Any], Collection[str]]]) -> SweepSpec:
    """`spec`, whose search goes on from the cells that it chose before.

    A cell stays chosen as long as the file gives the same run for it: with other ranges those stay that lie within,
    with other constants the search begins anew.

    Args:
        before: the fields of the sweep file, and the ids of the runs it listed, of each record of the sweep.
    """
    found = search_block(spec)
    if found is None:
        return spec
    block, sample = found
    rows, runs = [*sample.chosen], set[str]()
    for fields, listed in before:
        for row in _chosen(fields, block.name):
            if row in rows or row.keys() != sample.distributions.keys() or not sample.holds(row):
                continue
            run = run_of(spec, row)
            if run and run.run_id in listed and run.run_id not in runs:
                rows.append(row)
                runs.add(run.run_id)
    return with_chosen(spec, rows[: sample.n])


def _chosen(fields: Mapping[str, Any], block: str) -> list[Row]:
    """What the block of that name had chosen in a sweep file with these fields."""
    samples = [other.get("sample") or {} for other in fields.get("blocks", ()) if other.get("name") == block]
    return [row for sample in samples for row in sample.get("chosen", ())]


def run_of(spec: SweepSpec, row: Row) -> PlannedRun | None:
    """The run of a cell of the search; None where the file cannot have it, such as for values that exclude others."""
    found = search_block(spec)
    assert found
    blocks = [block for block in spec.blocks if block.role == "baseline" or block is found[0]]
    try:
        runs = expand(with_chosen(spec.model_copy(update={"blocks": blocks, "gates": []}), [row]))
    except SpecError:
        return None
    return next(iter(chosen_runs(spec, runs)))


def chosen_runs(spec: SweepSpec, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Those of `runs` that are cells of the search of `spec`; none where it has no search."""
    found = search_block(spec)
    return [run for run in runs if found and found[0].name in dict(run.members)]


def stand_ins(spec: SweepSpec, runs: Iterable[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Runs drawn at random, in the place of those that the search of `spec` has still to choose.

    Args:
        runs: those of `spec` so far.
    Raises: SpecError if there are not so many cells, or what may be drawn is nothing a run can have.
    """
    found = search_block(spec)
    if found is None or not (missing := to_choose(spec)):
        return ()
    block, sample = found
    try:
        others = [row for row in random_rows(block) if row not in sample.chosen]
    except ValueError as error:
        problems = Problems(spec.source)
        problems.add(("blocks", spec.blocks.index(block), "sample"), f"sample {error}")
        raise problems.error() from error
    filled = expand(with_chosen(spec, [*sample.chosen, *others[:missing]]))
    known = {run.run_id for run in chosen_runs(spec, runs)}
    return tuple(run for run in chosen_runs(spec, filled) if run.run_id not in known)
