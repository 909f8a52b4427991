"""Words for where runs stand. They stand apart from the tables, for whoever plans a sweep loads no Parquet.

The store records how attempts ended, in the words of STATUSES. Plans, `muon status`, panels and answers tell more than
that: whether a run that has not ended is trained at this moment, and that one was never begun. Theirs are the words of
MEANINGS, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping

STATUSES = ("running", "done", "diverged", "failed", "stopped")
FINISHED = ("done", "diverged")
"""Statuses of a run that nobody goes on with: one that diverged has given its result too."""
ENDED = (*FINISHED, "failed")
"""Statuses of a run that is not begun again unless somebody asks for it."""

EARLY = "stopped early"
MEANINGS = {
    "running": "a process trains it now",
    "done": "it trained to its last step",
    "diverged": "its loss or gradient was no longer finite, which is a result too",
    "failed": "an error ended it; only --retry failed begins it again",
    EARLY: "early stopping ended it for doing worse than others",
    "stopped": "it was asked to stop and saved itself; the same sweep goes on with it",
    "interrupted": "its process went without a word; the same sweep goes on with it",
    "left out": "this call did not start it: the budget, the breaker, or a wish to stop",
    "planned": "a sweep lists it, and nobody has begun it",
}
OPEN = ("running", "stopped", "interrupted", "left out", "planned")
"""What a run is called that has not come to its end: the same sweep begins it, or goes on with it."""
STOPPED_EARLY = "early stopping:"
"""How the column `error` begins of a run that early stopping ended: it is `stopped`, and not to be continued."""


def record_told(status: str | None, error: str | None) -> str | None:
    """`status` of a run's record, put as EARLY where `error` says so."""
    return EARLY if status == "stopped" and (error or "").startswith(STOPPED_EARLY) else status


def status_told(recorded: str | None, *, alive: bool) -> str:
    """What a run is called that the store records as `recorded` (None: not at all).

    Args:
        alive: whether somebody trains it at this moment.
    """
    if alive and recorded not in FINISHED:
        return "running"
    if recorded is None:
        return "planned"
    return "interrupted" if recorded == "running" else recorded


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Those of `counts` that are not 0, in the order of MEANINGS."""
    words = [*MEANINGS, *(word for word in counts if word not in MEANINGS)]
    return {word: counts[word] for word in words if counts.get(word)}


def counts_text(counts: Mapping[str, int]) -> str:
    """`2 running, 10 done, 1 failed`."""
    return ", ".join(f"{count} {word}" for word, count in in_order(counts).items()) or "no runs"


def last_line(error: str | None) -> str:
    """The last line of the column `error` that is not blank: of a traceback, the exception."""
    return next((line.strip() for line in reversed((error or "").splitlines()) if line.strip()), "")
