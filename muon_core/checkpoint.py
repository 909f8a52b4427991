"""Checkpoints in the results store: a run's whole state in one immutable object, found again by listing.

    checkpoints/<run>/config.json                                        the resolved RunConfig
    checkpoints/<run>/latest/<step>.<attempt>.<seq>.<hash>.pt            to resume from
    checkpoints/<run>/step_30_0.5M_tokens/<step>.<attempt>.<seq>.<hash>.pt   a milestone, kept; resumed from too
    checkpoints/<run>/model/<step>.<attempt>.<seq>.<hash>.pt             the weights after the last step

An object is written whole or not at all, after the rows it stands for; its name carries the resume point of those rows
and the hash of its bytes. No pointer is overwritten: the newest checkpoint is the one with the greatest step.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from muon_core import layout
from muon_core.config import RunConfig
from muon_core.results import ResumePoint
from muon_core.snapshot import read_attempts
from muon_core.storage import Storage

SCHEMA = 1  # of what a checkpoint holds
LATEST, MODEL = "latest", "model"

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that must not be continued from: of another run, a newer schema, or without a part of the state."""


@dataclass(frozen=True, slots=True, order=True)
class Saved:
    """A checkpoint as its key tells it; the greatest is the newest."""

    step: int
    attempt: str
    seq: int
    key: str
    name: str
    digest: str

    @property
    def resume_point(self) -> ResumePoint:
        """Where the rows stand that belong to it."""
        return ResumePoint(self.attempt, self.seq)


def milestone_name(step: int, tokens: int) -> str:
    """Folder of a milestone: `step_30_0.5M_tokens`."""
    millions = tokens / 1e6
    return f"step_{step}_{millions:.4g}M_tokens" if millions < 1e4 else f"step_{step}_{millions:.0f}M_tokens"


def saved(storage: Storage, run_id: str) -> list[Saved]:
    """The checkpoints a run can go on from, newest first: those on the lineage of its newest attempt.

    Those of attempts that were overtaken, or given up to begin again, are left out, and so are weights alone.
    """
    alive = {attempt.id: bound for attempt, bound in layout.lineage(read_attempts(storage, run_id).get(run_id, {}))}
    found = []
    for key, _ in storage.list(f"checkpoints/{run_id}/"):
        if (item := _saved_as(key)) and item.name != MODEL and item.attempt in alive:
            bound = alive[item.attempt]
            if bound is None or item.seq <= bound:
                found.append(item)
    return sorted(found, reverse=True)


def _saved_as(key: str) -> Saved | None:
    told = layout.parse_checkpoint(key)
    return Saved(told.step, told.attempt, told.seq, key, told.name, told.digest) if told else None


def write(
    storage: Storage, config: RunConfig, name: str, step: int, point: ResumePoint, state: Mapping[str, Any]
) -> str:
    """Store `state` as checkpoint `name` of a run; returns its key. The rows of `point` must be acknowledged before."""
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, "run_id": config.run_id, "step": step, **state}, buffer)
    data = buffer.getbuffer()  # no copy: it may be gigabytes
    digest = hashlib.sha256(data).hexdigest()[:16]
    key = f"checkpoints/{config.run_id}/{name}/{step:09d}.{point.attempt}.{point.seq:012d}.{digest}.pt"
    storage.put(key, data)
    return key


def write_config(storage: Storage, config: RunConfig) -> None:
    """Put the resolved config beside the run's checkpoints."""
    storage.put(f"checkpoints/{config.run_id}/config.json", config.model_dump_json(indent=2).encode())


def prune(storage: Storage, run_id: str, keep_last: int) -> None:
    """Remove all but the newest `keep_last` of the `latest` checkpoints the run can go on from; milestones stay."""
    rolling = [item for item in saved(storage, run_id) if item.name == LATEST]
    storage.delete([item.key for item in rolling[keep_last:]])


def newest(storage: Storage, config: RunConfig) -> tuple[Saved, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read, and its state on the CPU; None if there is none.

    A torn or foreign file is named in a warning, and the one before it is taken.
    Raises: CheckpointError for a readable checkpoint that is not this run's to continue from.
    """
    for item in saved(storage, config.run_id):
        state = _read(storage, item)
        if state is not None:
            _check(state, item, config)
            return item, state
    return None


def load(storage: Storage, key: str) -> dict[str, Any]:
    """State of the checkpoint at `key`, on the CPU. Raises CheckpointError if it cannot be read."""
    item = _saved_as(key)
    if item is None:
        raise CheckpointError(f"{key} is no checkpoint; their names end in .<attempt>.<seq>.<hash>.pt")
    state = _read(storage, item)
    if state is None:
        raise CheckpointError(f"checkpoint {key} cannot be read; take another one")
    return state


def _read(storage: Storage, item: Saved) -> dict[str, Any] | None:
    try:
        data = storage.get(item.key)
    except FileNotFoundError:
        return None  # pruned since it was listed
    if hashlib.sha256(data).hexdigest()[:16] != item.digest:
        log.warning("checkpoint %s is torn or was changed (%d bytes); the one before it is used", item.key, len(data))
        return None
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        log.warning("checkpoint %s is no checkpoint of ours (%s); the one before it is used", item.key, reason)
        return None
    if not isinstance(state, dict) or "schema" not in state:
        log.warning("checkpoint %s is no checkpoint of ours; the one before it is used", item.key)
        return None
    return state


PARTS = ("run_id", "step", "model", "optimizers", "peaks", "recorder", "data_hash")


def _check(state: dict[str, Any], item: Saved, config: RunConfig) -> None:
    start_anew = f"remove checkpoints/{config.run_id}/ to train it from the start"
    if state["schema"] != SCHEMA:
        raise CheckpointError(
            f"checkpoint {item.key} has schema {state['schema']}, this version reads up to {SCHEMA}; "
            f"update, or {start_anew}"
        )
    if missing := [part for part in PARTS if part not in state]:
        raise CheckpointError(f"checkpoint {item.key} lacks {', '.join(missing)}; {start_anew}")
    if state["run_id"] != config.run_id:
        raise CheckpointError(f"checkpoint {item.key} is of run {state['run_id']}, not {config.run_id}; {start_anew}")
