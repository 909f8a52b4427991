"""What runs died of: attempts that failed, were lost or diverged, in groups that died alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from analysis.costs import attempts_with_costs
from analysis.store import Store
from muon_core.failures import signature
from muon_core.statuses import FINISHED

_ENDS = ("failed", "lost", "diverged")


@dataclass(frozen=True, slots=True)
class Deaths:
    """Attempts that ended alike."""

    signature: str
    kind: str
    """As `muon_core.failures` names it; `diverged`, or `failed` where the ledger does not tell."""
    attempts: int
    runs: tuple[str, ...]
    """Ids, the newest first."""
    since_done: int
    """How many of them have their result by now."""
    lost_hours: float
    lost_usd: float | None
    """None where an attempt has no price."""
    last_at: datetime | None
    error: str | None
    """Of the newest attempt: the end of its traceback, or why it diverged."""


def deaths(store: Store) -> list[Deaths]:
    """Groups of attempts that ended alike, the largest first, then the newest.

    Hours and USD are what was lost by them, as `costs` counts it: nothing by a run that diverged, which is a result.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    runs = store.runs.select("run_id", "status", "error", "ended_at").unique("run_id").collect()
    for row in (*_of_the_ledger(store), *_of_the_records(store, runs)):
        kind = row["failure"] or row["status"]
        groups[kind, signature(row["error"]) or "ended without a word"].append(row)
    done = set(runs.filter(pl.col("status").is_in(FINISHED))["run_id"])
    found = [_group(*key, rows, done) for key, rows in groups.items()]
    return sorted(found, key=lambda group: (-group.attempts, -_seconds(group.last_at), group.signature))


def _of_the_ledger(store: Store) -> Iterable[dict[str, Any]]:
    ended = attempts_with_costs(store).filter(pl.col("status").is_in(_ENDS)).unique(["run_id", "attempt"])
    columns = ("run_id", "status", "failure", "error", "seen_at", "lost_hours", "lost_usd")
    return ended.select(columns).iter_rows(named=True)


def _of_the_records(store: Store, runs: pl.DataFrame) -> Iterable[dict[str, Any]]:
    """Runs that failed or diverged of which the ledger tells no such attempt: it was not kept, or none had begun."""
    known = store.attempts.select("run_id", "status").collect()
    ended = runs.filter(pl.col("status").is_in(_ENDS)).join(known, on=["run_id", "status"], how="anti")
    for row in ended.iter_rows(named=True):
        yield row | {"failure": None, "seen_at": row["ended_at"], "lost_hours": 0.0, "lost_usd": 0.0}


def _group(kind: str, alike: str, rows: list[dict[str, Any]], done: set[str]) -> Deaths:
    rows = sorted(rows, key=lambda row: (-_seconds(row["seen_at"]), row["run_id"]))
    runs = tuple(dict.fromkeys(row["run_id"] for row in rows))
    prices = [row["lost_usd"] for row in rows]
    return Deaths(
        signature=alike,
        kind=kind,
        attempts=len(rows),
        runs=runs,
        since_done=sum(run in done for run in runs) if kind != "diverged" else 0,
        lost_hours=sum(row["lost_hours"] for row in rows),
        lost_usd=None if None in prices else sum(prices),
        last_at=rows[0]["seen_at"],
        error=rows[0]["error"],
    )


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0
