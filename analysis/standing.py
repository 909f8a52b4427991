"""How runs stand at this moment, from the store alone: the ledger says how far they are, end records how they ended.

The ledger is written every few seconds and read each time. End records are many and hardly change, so they are read
again only after the ledger shows that an attempt began, ended or died, and now and then for what it cannot show.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import polars as pl

from analysis import queries
from analysis.members import sweep_members, tell_statuses
from analysis.store import Store
from muon_core.pace import time_left
from muon_core.statuses import OPEN, in_order, last_line
from muon_core.store.ledger import Entry, LedgerReader, is_alive
from muon_core.store.sweeps import Metric, SweepRecord

REREAD = 15  # looks after which end records are read again although the ledger shows no change


@dataclass(frozen=True, slots=True)
class RunStanding:
    """One run."""

    run_id: str
    arm: str | None
    seed: int | None
    status: str
    """A word of `muon_core.statuses`."""
    attempts: int | None
    step: int | None
    steps: int | None
    val_loss: float | None
    """nats per token"""
    wall_s: float | None
    health: str | None
    """How its momentum failed, if it did."""
    error: str | None
    host: str | None
    """Who trains it or did last, as far as the ledger tells."""
    pid: int | None
    silent_s: float | None
    """Seconds since the last sign of life of one that is running."""


@dataclass(frozen=True, slots=True)
class BestArm:
    """The arm whose done runs have the best mean so far."""

    arm: str
    metric: str
    value: float
    runs: int
    """That are done."""
    planned: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A sweep, a run, or all of a store."""

    sweep: str | None
    runs: tuple[RunStanding, ...]
    left_s: float | None
    """Seconds until all have ended, at the pace so far, while any is running and a pace is known."""
    usd: float | None
    """What the attempts have cost; None where a price is not known."""
    committed_usd: float
    """What the runs under way will still cost."""
    best: BestArm | None
    failure: str | None
    """The run that failed last, and why."""
    to_choose: int = 0
    """Cells that its search has still to choose, whose runs are not among these yet."""

    @property
    def counts(self) -> dict[str, int]:
        """Runs by status."""
        return in_order(Counter(run.status for run in self.runs))

    @property
    def is_over(self) -> bool:
        """Whether all have come to their end, and none is to be chosen."""
        return not self.to_choose and not any(run.status in OPEN for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "sweep": self.sweep,
            "counts": self.counts,
            "to_choose": self.to_choose,
            "left_s": self.left_s,
            "usd": self.usd,
            "committed_usd": self.committed_usd,
            "best": asdict(self.best) if self.best else None,
            "failure": self.failure,
            "runs": [asdict(run) for run in self.runs],
        }


class Follower:
    """Looks at a store again and again.

    Args:
        store: narrowed to a sweep or a run, or all of a store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ledger = LedgerReader(store.storage)
        self._stored = pl.DataFrame()
        self._best: BestArm | None = None
        self._seen: set[tuple[str, str, bool]] | None = None
        self._looks = 0

    def look(self) -> Standing:
        """How they stand now. Raises as `open_store(...).runs` and `read_entries`."""
        grew = self._read_record()
        if self._seen is None or grew:
            self._read_ends()
        entries = self._ledger.read(self._runs())
        now = self._ledger.now() if any(entry.status == "running" for entry in entries) else 0.0
        alive = {entry.run_id: entry for entry in entries if is_alive(entry, now)}
        seen = {(entry.attempt, entry.status, entry.run_id in alive) for entry in entries}
        self._looks += 1
        if self._seen is not None and (seen != self._seen or self._looks % REREAD == 0):
            self._read_ends()
        self._seen = seen
        record = self._store.record
        runs = sweep_members(record, self._stored, alive) if record else tell_statuses(self._stored, alive)
        newest = {entry.run_id: entry for entry in entries}
        rows = runs.unique("run_id", keep="first", maintain_order=True).to_dicts()
        told = tuple(_describe(row, newest.get(row["run_id"]), now) for row in rows)
        left = _left(told, alive)
        to_choose = record.to_choose if record else 0
        prices = [entry.usd for entry in entries]
        return Standing(
            sweep=record.sweep if record else None,
            runs=told,
            left_s=_until_the_end(told, left, to_choose),
            usd=None if None in prices else sum(usd for usd in prices if usd is not None),
            committed_usd=sum((alive[run].rate.usd_per_hour or 0.0) * s / 3600 for run, s in left.items() if s),
            best=self._best,
            failure=_last_failure(rows),
            to_choose=to_choose,
        )

    def _runs(self) -> Collection[str]:
        record = self._store.record
        return dict.fromkeys(run.run_id for run in record.runs) if record else self._stored["run_id"].to_list()

    def _read_record(self) -> bool:
        """Whether a search has chosen since the last look: then the sweep lists more runs."""
        record = self._store.record
        if record is None or not record.to_choose:
            return False
        self._store = self._store.sweep(record.sweep)
        return self._store.record != record

    def _read_ends(self) -> None:
        self._stored = self._with_steps(self._store.runs.collect())
        if self._store.record:
            self._best = _best_arm(self._store, self._store.record, self._stored)

    def _with_steps(self, runs: pl.DataFrame) -> pl.DataFrame:
        """`runs`, and of those without an end record the steps done and newest loss, from their rows."""
        going = runs.filter(pl.col("status") == "running")["run_id"].to_list()
        if not going:
            return runs

        def last(table: pl.LazyFrame, **columns: str) -> pl.LazyFrame:
            rows = table.filter(pl.col("run_id").is_in(going)).sort("step")
            return rows.group_by("run_id").agg(**{name: pl.col(column).last() for name, column in columns.items()})

        steps, losses = last(self._store.train, steps="step"), last(self._store.val, last_val_loss="val_loss")
        newest = steps.join(losses, on="run_id", how="full", coalesce=True).collect()
        return runs.update(newest, on="run_id", how="left")


def _describe(run: Mapping[str, Any], entry: Entry | None, now: float) -> RunStanding:
    config = json.loads(run["config_json"]) if run["config_json"] else {}
    step, steps, val_loss = run["steps"], config.get("steps"), run["last_val_loss"]
    is_running = run["status"] == "running"
    if entry and entry.steps and run["status"] in ("running", "interrupted"):
        step, steps = max(entry.step, step or 0), entry.steps
        val_loss = val_loss if entry.val_loss is None else entry.val_loss
    return RunStanding(
        run_id=run["run_id"],
        arm=run["arm"],
        seed=run["seed"],
        status=run["status"],
        attempts=entry.number if is_running and entry else run["attempts"],
        step=step,
        steps=steps,
        val_loss=val_loss,
        wall_s=run["wall_s"],
        health=run["health"],
        error=run["error"],
        host=entry.host if entry else None,
        pid=entry.pid if entry else None,
        silent_s=max(0.0, now - entry.seen_at) if is_running and entry else None,
    )


def _left(runs: Sequence[RunStanding], alive: Mapping[str, Entry]) -> dict[str, float | None]:
    """Seconds that each run under way still takes; None for one that has not come far enough to tell."""
    found: dict[str, float | None] = {}
    for run in runs:
        if run.status != "running" or not (entry := alive.get(run.run_id)):
            continue
        done = entry.step - entry.first_step if entry.first_step is not None else 0
        to_do = (entry.steps or 0) - entry.step
        found[run.run_id] = entry.seconds / done * to_do if done > 0 else None
    return found


def _until_the_end(runs: Sequence[RunStanding], left: Mapping[str, float | None], to_choose: int) -> float | None:
    """Seconds until all have ended: those to come take as long as those of their arm did, or as all did."""
    by_arm: dict[str | None, list[float]] = {}
    for run in runs:
        if run.status == "done" and run.wall_s:
            by_arm.setdefault(run.arm, []).append(run.wall_s)
        elif (seconds := left.get(run.run_id)) and run.step and run.steps and run.steps > run.step:
            by_arm.setdefault(run.arm, []).append(seconds * run.steps / (run.steps - run.step))
    if not left or not by_arm:
        return None
    means = {arm: fmean(seconds) for arm, seconds in by_arm.items()}
    usual = fmean(means.values())

    def expected(run: RunStanding) -> float:
        share = (run.step or 0) / run.steps if run.steps else 0.0
        return means.get(run.arm, usual) * (1 - share)

    under_way = [expected(run) if left[run.run_id] is None else left[run.run_id] for run in runs if run.run_id in left]
    to_come = [expected(run) for run in runs if run.status in OPEN and run.run_id not in left]
    to_come += [usual] * to_choose
    return time_left([seconds for seconds in under_way if seconds is not None], to_come)


def _last_failure(runs: Sequence[Mapping[str, Any]]) -> str | None:
    failed = [run for run in runs if run["status"] == "failed"]
    dated = [run for run in failed if run["ended_at"] is not None]
    run = max(dated, key=lambda run: run["ended_at"]) if dated else failed[-1] if failed else None
    return f"{run['run_id']}: {last_line(run['error'])}" if run else None


def _best_arm(view: Store, record: SweepRecord, runs: pl.DataFrame) -> BestArm | None:
    """The arm with the best mean of the primary metric over its done runs, which may still be few."""
    metric, goal = record.metrics.primary, record.metrics.goal
    members = sweep_members(record, runs).unique(["arm", "run_id"], maintain_order=True)
    done = members.filter(pl.col("status") == "done")
    if done.is_empty():
        return None
    values = done.with_columns(value=pl.Series(value_of_each(view, record.metrics, done), dtype=pl.Float64))
    finite = values.filter(pl.col("value").is_finite())
    means = finite.group_by("arm", maintain_order=True).agg(value=pl.col("value").mean(), runs=pl.len())
    if means.is_empty():
        return None
    best = means.sort("value", descending=goal == "max", maintain_order=True).row(0, named=True)
    planned = members.filter(arm=best["arm"]).height
    return BestArm(best["arm"], metric, best["value"], best["runs"], planned)


def value_of_each(view: Store, metrics: Metric, done: pl.DataFrame) -> list[float | None]:
    """What each run of `done`, rows of the `runs` table, has of the metric that its sweep is decided by."""
    if (metrics.primary, metrics.at) == ("val_loss", "final"):  # the end record has it, which spares the rows
        return done["final_val_loss"].to_list()
    series = view.table(queries.metric_table(metrics.primary)).filter(pl.col("run_id").is_in(done["run_id"].to_list()))
    per_run = queries.value_per_run(series, metrics.primary, at=metrics.at, goal=metrics.goal).collect()
    values = dict(per_run.select("run_id", "value").iter_rows())
    return [values.get(run_id) for run_id in done["run_id"]]
