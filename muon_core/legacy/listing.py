"""Lists imported runs as a sweep, and finds the arm that is its baseline."""

from __future__ import annotations

import json
from typing import Any

from muon_core.legacy.arms import FROM, imported_arms
from muon_core.legacy.imported import optimizer_name
from muon_core.store.storage import Storage
from muon_core.store.sweeps import SweepRecord, SweepRun, read_sweep, write_sweep

_SHOWN = 8  # arms that an error names


def listed_earlier(storage: Storage, sweep: str) -> tuple[SweepRun, ...]:
    """The runs that `sweep` lists already. Raises ValueError if it was not imported."""
    record = read_sweep(storage, sweep)
    if record is None:
        return ()
    if not record.spec.get("imported"):
        raise ValueError(f"{storage.url} has a sweep {sweep!r} that was not imported; choose another with --name")
    return record.runs


def list_runs(
    storage: Storage, sweep: str, earlier: tuple[SweepRun, ...], starts: list[dict[str, Any]], baseline: str | None
) -> tuple[list[str], bool]:
    """List the runs with these start records as `sweep`; each block is an optimizer.

    Args:
        earlier: what it listed before; without a `baseline` the arm that was it stays it.
    Returns: what is to be told of the arms, and whether one is the baseline.
    Raises: ValueError if `baseline` names no arm, or several. The runs are listed then, to be found by the next import.
    """
    first = {run.run_id for run in earlier if run.role == "baseline"}
    chosen = next((start["run_id"] for start in starts if start["run_id"] in first), None)
    unknown = None
    if baseline is not None:
        try:
            chosen = find_baseline(starts, baseline)
        except ValueError as error:
            unknown = error
    arms = imported_arms(starts, chosen)
    base = arms.names[chosen] if chosen else None
    listed = tuple(
        SweepRun(
            run_id=start["run_id"],
            block=start["optimizer"],
            role="baseline" if arms.names[start["run_id"]] == base else "candidate",
            arm=arms.names[start["run_id"]],
            seed=start["seed"],
        )
        for start in starts
    )
    write_sweep(storage, SweepRecord(sweep=sweep, spec={"imported": True}, runs=listed))
    if unknown:
        raise ValueError(f"{unknown}; the runs are listed in {sweep!r}, and only the baseline is missing") from None
    return arms.notes, base is not None


def find_baseline(starts: list[dict[str, Any]], baseline: str) -> str:
    """A run of the arm that `baseline` names: by its name, a folder, or as the only one of an optimizer.

    Raises ValueError if there is none, or several.
    """
    arms = imported_arms(starts).names
    of_optimizer: dict[str, str] = {
        arms[start["run_id"]]: start["run_id"]
        for start in starts
        if start["optimizer"].casefold() == optimizer_name(baseline).casefold()
    }
    of_folder: dict[str, Any] = {start["run_id"]: json.loads(start["config_json"]).get(FROM) for start in starts}
    named = {arms[run_id]: run_id for run_id in arms if baseline in (arms[run_id], of_folder[run_id])} or of_optimizer
    if not named:
        there = ", ".join(sorted({start["optimizer"] for start in starts}))
        raise ValueError(f"no run has the optimizer {baseline!r} to be the baseline; there are {there}")
    if len(named) > 1:
        shown = "; ".join(sorted(named)[:_SHOWN]) + (f"; and {len(named) - _SHOWN} more" if len(named) > _SHOWN else "")
        raise ValueError(f"{len(named)} arms have the optimizer {baseline!r}; give --baseline one of them: {shown}")
    return next(iter(named.values()))
