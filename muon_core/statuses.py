"""Words for how runs end. They stand apart from the tables, for whoever plans a sweep loads no Parquet."""

from __future__ import annotations

STATUSES = ("running", "done", "diverged", "failed", "stopped")
FINISHED = ("done", "diverged")
"""Statuses of a run that nobody goes on with: one that diverged has given its result too."""

STOPPED_EARLY = "early stopping:"
"""How the column `error` begins of a run that early stopping ended: it is `stopped`, and not to be continued."""


def is_stopped_early(status: str, error: str | None) -> bool:
    """Whether a run with this end record was ended for doing worse than others."""
    return status == "stopped" and (error or "").startswith(STOPPED_EARLY)


def last_line(error: str | None) -> str:
    """The last line of the column `error` that is not blank: of a traceback, the exception."""
    return next((line.strip() for line in reversed((error or "").splitlines()) if line.strip()), "")
