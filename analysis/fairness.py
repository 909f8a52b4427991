"""Was the comparison fair: what arms should share, whether they did, and what was tried for each optimizer.

Integrity checks name what is wrong and are silent otherwise; a reader who doubts wants to see what was looked at. So
each check here has a text also where all is well, and says so where the store does not tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import polars as pl

from analysis import queries
from analysis.integrity import ALIKE
from analysis.store import Store
from analysis.summary import Summary
from muon_core.spelling import counted
from muon_core.statuses import EARLY, STOPPED_EARLY, last_line

_SHOWN = 4  # values or arms that are named
_UNEQUAL = 2  # learning rates tried for one optimizer over those for another: from more on tuning counts as unequal
_HARDWARE, _SOFTWARE = ("device", "world_size"), ("commit", "diff_hash", "environment_json")
_SHORT = ("device", "world_size", "commit")
"""Columns whose values are told."""


class Check(NamedTuple):
    """One thing that arms should share."""

    term: str
    text: str
    is_fine: bool | None
    """None where the store does not tell."""


def fairness(view: Store, members: pl.DataFrame, summary: Summary) -> list[Check]:
    """What was looked at, in the order of a report; arms that list the runs of another are left out.

    Args:
        members: rows of `sweep_members`.
        summary: of the same sweep.
    """
    members = members.filter(~pl.col("arm").is_in([arm.arm for arm in summary.arms if arm.copy_of]))
    started = members.filter(pl.col("status") != "planned").unique("run_id", keep="first", maintain_order=True)
    return [
        _seeds(members),
        _same_by_seed("Initial weights", started, "init_hash", "initial weights"),
        _same_by_seed("Data order", started, "first_batch_hash", "first batch"),
        _alike("Text", started, ("data_hash",)),
        _budget(started),
        _alike("Hardware", started, _HARDWARE),
        _alike("Software", started, _SOFTWARE),
        _tuning(view, started),
        _excluded(excluded_runs(view, members, summary)),
    ]


def excluded_runs(view: Store, members: pl.DataFrame, summary: Summary) -> pl.DataFrame:
    """Runs that ended and are in no mean: `run_id`, `arm`, `seed`, `status`, `reason`.

    Those that the sweep no longer lists come last; runs that are to come, or to go on, are not among them.
    """
    assert view.record is not None
    metrics = view.record.metrics
    series = view.table(queries.metric_table(metrics.primary))
    values = queries.value_per_run(series, metrics.primary, at=metrics.at, goal=metrics.goal)
    usable = set(values.filter(pl.col("value").is_finite() & (pl.col("value") > 0)).collect()["run_id"])
    once = members.unique("run_id", keep="first", maintain_order=True)
    rows = [
        (row["run_id"], row["arm"], row["seed"], row["status"], reason)
        for row in once.iter_rows(named=True)
        if (reason := _reason(row, is_usable=row["run_id"] in usable, metric=metrics.primary))
    ]
    rows += [(run.run_id, run.arm, run.seed, run.status, "the sweep no longer lists it") for run in summary.dropped]
    schema = {"run_id": pl.String, "arm": pl.String, "seed": pl.Int64, "status": pl.String, "reason": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def tuning(view: Store, members: pl.DataFrame) -> pl.DataFrame:
    """What was tried for each optimizer of the sweep in this store, a row an optimizer in the sweep's order.

    Returns: `optimizer`; `arms` and `runs` of this sweep; `other_runs`, of other sweeps or of none; `arms_tried` and
        `learning_rates`, different ones over all of these runs.
    """
    own = members.drop_nulls("optimizer")
    order = own.select("optimizer").unique(maintain_order=True)
    ours = pl.col("run_id").is_in(own["run_id"].to_list())
    runs = replace(view, record=None).runs.select("run_id", "optimizer", "arm_id", "lr").collect()
    tried = runs.group_by("optimizer").agg(
        arms=pl.col("arm_id").filter(ours).n_unique(),
        runs=ours.sum(),
        other_runs=(~ours).sum(),
        arms_tried=pl.col("arm_id").n_unique(),
        learning_rates=pl.col("lr").drop_nulls().n_unique(),
    )
    return order.join(tried, on="optimizer", how="left", maintain_order="left")


def _seeds(members: pl.DataFrame) -> Check:
    done = members.filter(pl.col("status") == "done")
    by_arm = {
        arm: _seed_list(done.filter(pl.col("arm") == arm)["seed"]) for arm in members["arm"].unique(maintain_order=True)
    }
    if not any(by_arm.values()):
        return Check("Seeds", "No run is done.", None)
    groups = _grouped(by_arm)
    is_told = done["seed"].null_count() == 0
    if len(groups) == 1 and is_told:
        return Check("Seeds", f"Every arm is done at the same seeds: {next(iter(groups))}.", True)
    text = "; ".join(f"{_names(arms)}: {seeds or 'none'}" for seeds, arms in groups.items())
    return Check(
        "Seeds", f"Arms are done at other seeds than others: {text}." if len(groups) > 1 else f"{text}.", False
    )


def _seed_list(seeds: pl.Series) -> str:
    """`42, 137, 2 runs without a seed`."""
    parts = [str(seed) for seed in seeds.drop_nulls().unique().sort()]
    unknown = seeds.null_count()
    return ", ".join([*parts, *([f"{counted(unknown, 'run')} without a seed"] if unknown else [])])


def _same_by_seed(term: str, started: pl.DataFrame, column: str, what: str) -> Check:
    """Whether arms share at each seed what the seed decides."""
    known = started.drop_nulls([column, "seed"])
    by_seed = known.group_by("seed").agg(pl.col(column).n_unique().alias("values"), arms=pl.col("arm").n_unique())
    shared = by_seed.filter(pl.col("arms") > 1)
    unknown = started.height - known.height
    gap = f" Unknown for {unknown} of {counted(started.height, 'run')}." if unknown else ""
    if shared.is_empty():
        why = "No run tells it." if known.is_empty() else "No two arms share a seed."
        return Check(term, why, None)
    unequal = shared.filter(pl.col("values") > 1)["seed"].sort().to_list()
    if unequal:
        return Check(term, f"Arms differ in the {what} at seed {', '.join(map(str, unequal))}.{gap}", False)
    seeds = counted(shared.height, "seed")
    return Check(term, f"All arms have the same {what} at each of {seeds}, by hash.{gap}", None if unknown else True)


def _alike(term: str, started: pl.DataFrame, columns: tuple[str, ...]) -> Check:
    """Whether all runs have one value of each column."""
    # A commit without a hash of changes was clean.
    changes = pl.when(pl.col("commit").is_not_null()).then(pl.col("diff_hash").fill_null("none"))
    started = started.with_columns(diff_hash=changes)
    known = started.drop_nulls(columns)
    if known.is_empty():
        return Check(term, "No run tells it." if started.height else "No run was started.", None)
    unknown = started.height - known.height
    gap = f" Unknown for {unknown} of {counted(started.height, 'run')}." if unknown else ""
    unequal = [column for column in columns if known[column].n_unique() > 1]
    if unequal:
        return Check(
            term, f"Runs differ in their {'; '.join(_difference(known, name) for name in unequal)}.{gap}", False
        )
    same = ", ".join(_one(known, column) for column in columns)
    return Check(term, f"The same for all runs: {same}.{gap}", None if unknown else True)


def _difference(known: pl.DataFrame, column: str) -> str:
    """`devices (muon: A100; adamw: H100)`; of what is long only that it differs."""
    by_arm = {str(arm): _values(frame[column]) for (arm,), frame in known.group_by("arm", maintain_order=True)}
    if column not in _SHORT:
        return f"{ALIKE[column]} ({known[column].n_unique()} of them)"
    return f"{ALIKE[column]} ({'; '.join(f'{_names(arms)}: {values}' for values, arms in _grouped(by_arm).items())})"


def _one(known: pl.DataFrame, column: str) -> str:
    """`device H100`, or of what is long its name."""
    name = column.removesuffix("_json").replace("_", " ")
    return f"{name} {known[column][0]}" if column in _SHORT else name


def _budget(started: pl.DataFrame) -> Check:
    """Tokens and steps of the runs that are done."""
    done = started.filter(pl.col("status") == "done")
    if done.is_empty():
        return Check("Token budget", "No run is done.", None)
    lengths = done.group_by("tokens", "steps").agg(pl.col("arm").unique(maintain_order=True), runs=pl.len())
    rows = lengths.sort("steps", "tokens", nulls_last=True).rows(named=True)
    if len(rows) > 1:
        text = "; ".join(
            f"{_length(row)} ({_names(row['arm'])}: {counted(row['runs'], 'run')})" for row in rows[:_SHOWN]
        )
        return Check("Token budget", f"Runs were trained for unequal lengths: {text}.", False)
    if rows[0]["tokens"] is None:
        return Check("Token budget", f"All {counted(done.height, 'run')} done took {_length(rows[0])}.", None)
    return Check("Token budget", f"All {counted(done.height, 'run')} done saw {_length(rows[0])}.", True)


def _length(row: Mapping[str, int | None]) -> str:
    tokens, steps = row["tokens"], row["steps"]
    known = [f"{tokens:,} tokens" if tokens is not None else "", f"{steps:,} steps" if steps is not None else ""]
    return " in ".join(filter(None, known)) or "a length that is not told"


def _tuning(view: Store, started: pl.DataFrame) -> Check:
    tried = tuning(view, started)
    if tried.is_empty():
        return Check("Tuning", "No run tells its optimizer.", None)
    texts = [
        f"{row['optimizer']}: {counted(row['learning_rates'], 'learning rate')} in "
        f"{counted(row['arms_tried'], 'setting')}, {counted(row['runs'], 'run')} here and "
        f"{row['other_runs']} elsewhere"
        for row in tried.iter_rows(named=True)
    ]
    rates = tried["learning_rates"].to_list()
    is_equal = None if max(rates) <= 1 else max(rates) <= _UNEQUAL * max(1, min(rates))
    text = "; ".join(texts)
    known = "What was tried in other stores is not known."
    if tried.height == 1:
        return Check("Tuning", f"One optimizer, so none was tuned more than another. {text}. {known}", True)
    why = "No optimizer was tried at two learning rates in this store. " if is_equal is None else ""
    return Check("Tuning", f"{why}Tried in this store, of {text}. {known}", is_equal)


def _excluded(runs: pl.DataFrame) -> Check:
    if runs.is_empty():
        return Check("Excluded runs", "None: every run that ended is in the numbers.", True)
    counts = runs.group_by("reason", maintain_order=True).agg(pl.col("run_id"), pl.len())
    texts = [
        f"{row['len']} {row['reason']} ({', '.join(row['run_id'][:_SHOWN])}{', ...' if row['len'] > _SHOWN else ''})"
        for row in counts.iter_rows(named=True)
    ]
    return Check("Excluded runs", f"{counted(runs.height, 'run')}: {'; '.join(texts)}.", False)


def _reason(row: Mapping[str, Any], *, is_usable: bool, metric: str) -> str:
    """Why a run is in no mean; empty if it is in one, or has not ended."""
    status = str(row["status"])
    if status in ("failed", "diverged", EARLY):
        why = last_line(row["error"]).removeprefix(STOPPED_EARLY).strip()
        return f"{status}: {why}" if why else status
    return f"done without a positive, finite {metric}" if status == "done" and not is_usable else ""


def _values(column: pl.Series) -> str:
    """The different values of an arm."""
    values = [str(value) for value in column.drop_nulls().unique().sort()]
    return ", ".join(values[:_SHOWN]) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


def _grouped(by_arm: Mapping[str, str]) -> dict[str, list[str]]:
    """Value -> the arms that have it."""
    groups: dict[str, list[str]] = {}
    for arm, value in by_arm.items():
        groups.setdefault(value, []).append(arm)
    return groups


def _names(arms: Iterable[str]) -> str:
    names = list(arms)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
