"""`--only EXPR`: which of a sweep's runs to start, by a condition over what the plan knows of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from analysis.sql import matching
from muon_core.config.reference import ReferenceConfig
from search_spaces.expand import PlannedRun
from search_spaces.parameters import parameters
from search_spaces.plan import Plan


def narrow(planned: Plan, condition: str) -> Plan:
    """`planned`, which starts only the runs for which `condition` holds in one of their blocks.

    A search goes on if it holds for cells whatever their values, judged by those drawn in their place.

    Raises ValueError with one line for what is no condition, names a column there is not, or chooses no run.
    """
    listed = {run.run_id for run in planned.runs}
    drawn = [run for run in planned.to_choose if run.run_id not in listed]
    runs = [*zip(planned.runs, planned.statuses, strict=True), *((run, "planned") for run in drawn)]
    table = _table(runs, planned.names)
    named = [name for name in table.columns if not name.startswith("optimizer.")]  # which are there without it, too
    try:
        chosen = set(matching(table, condition, named)["run_id"])
    except ValueError as error:
        raise ValueError(f"--only {condition!r}: {error}") from error
    if not chosen:
        raise ValueError(
            f"--only {condition!r} chooses none of the {len(planned.runs)} runs; "
            "`muon sweep plan --json` shows what they have"
        )
    to_run, elsewhere = (
        tuple(run for run in runs if run.run_id in chosen) for runs in (planned.to_run, planned.elsewhere)
    )
    goes_on = all(run.run_id in chosen for run in drawn)
    return replace(planned, to_run=to_run, elsewhere=elsewhere, to_choose=planned.to_choose if goes_on else ())


def _table(runs: Iterable[tuple[PlannedRun, str]], arms: Mapping[str, str]) -> pl.DataFrame:
    """A row for each run in each of its blocks; parameters are named as in a sweep file, null where a run has none."""
    rows = []
    for run, status in runs:
        known = {
            "arm": arms.get(run.arm_id, run.config.arm_label),
            "arm_id": run.config.arm_id,
            "optimizer": run.config.optimizer.name,
            "seed": run.config.seed,
            "status": status,
            "run_id": run.run_id,
        } | _parameters(run)
        rows += [{"block": block, "role": role} | known for block, role in run.members]
    names = dict.fromkeys(name for row in rows for name in row)
    return pl.DataFrame([_column(name, [row.get(name) for row in rows]) for name in names])


def _parameters(run: PlannedRun) -> dict[str, Any]:
    values = run.config.model_dump(mode="json")
    found = {}
    optimizer = run.config.optimizer
    named = optimizer.reference if isinstance(optimizer, ReferenceConfig) else optimizer.name
    for name, path in parameters(named).items():
        value: Any = values
        for part in path:
            value = value.get(part)  # fields of Hugging Face models are there only where there is one
        found[name] = value
    return found


def _column(name: str, values: list[Any]) -> pl.Series:
    """One type for all: numbers, or the text of values of several kinds."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pl.Series(name, values, pl.Float64, strict=False)
    if len(kinds) > 1 or dict in kinds:
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pl.Series(name, values)
