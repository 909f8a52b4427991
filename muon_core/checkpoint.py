"""Checkpoints in the results store: a run's whole state in one immutable object, found again by listing.

    checkpoints/<run>/config.json                                        the resolved RunConfig
    checkpoints/<run>/latest/<step>.<attempt>.<seq>.<hash>.pt            to resume from
    checkpoints/<run>/step_31_0.5M_tokens/<step>.<attempt>.<seq>.<hash>.pt   a milestone, kept; resumed from too
    checkpoints/<run>/model/<step>.<attempt>.<seq>.<hash>.pt             the weights after the last step

An object is written whole or not at all, after the rows it stands for; its name carries the resume point of those rows
and the hash of its bytes. No pointer is overwritten: the newest checkpoint is the one with the greatest step.
Each write removes what it makes needless; one that is torn, which its hash tells, counts for nothing.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from muon_core.config.run import RunConfig
from muon_core.store.keys import END, Attempt, parse_checkpoint
from muon_core.store.lineage import lineage
from muon_core.store.reader import read_attempts
from muon_core.store.storage import Storage, StoreError
from muon_core.store.writer import ResumePoint

SCHEMA = 1  # of what a checkpoint holds
LATEST, MODEL = "latest", "model"

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that must not be continued from: of another run, a newer schema, or without a part of the state."""


class _Lost(Exception):
    """A checkpoint that was listed and is not there whole."""


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
    """Folder of a milestone of so many tokens, kept at `step`: `step_31_0.5M_tokens`."""
    millions = tokens / 1e6
    return f"step_{step}_{millions:.4g}M_tokens" if millions < 1e4 else f"step_{step}_{millions:.0f}M_tokens"


def saved(storage: Storage, run_id: str) -> list[Saved]:
    """The checkpoints a run can go on from, newest first: those on the lineage of its newest attempt.

    Those of attempts that were overtaken, or given up to begin again, are left out, and so are weights alone.
    """
    listed = _listed(storage, run_id)
    return [item for item in _alive(listed, _attempts(storage, run_id)) if item.name != MODEL]


def _listed(storage: Storage, run_id: str) -> list[Saved]:
    return [item for key, _ in storage.list(f"checkpoints/{run_id}/") if (item := _saved_as(key))]


def _attempts(storage: Storage, run_id: str) -> dict[str, Attempt]:
    return read_attempts(storage, run_id).get(run_id, {})


def _alive(items: Iterable[Saved], attempts: dict[str, Attempt]) -> list[Saved]:
    """Those of `items` on the lineage of the newest of `attempts`, newest first."""
    ends = {attempt.id: END if bound is None else bound for attempt, bound in lineage(attempts)}
    return sorted((item for item in items if item.seq <= ends.get(item.attempt, -1)), reverse=True)


def _saved_as(key: str) -> Saved | None:
    found = parse_checkpoint(key)
    return Saved(found.step, found.attempt, found.seq, key, found.name, found.digest) if found else None


def write(
    storage: Storage, config: RunConfig, name: str, step: int, point: ResumePoint, state: Mapping[str, Any]
) -> str:
    """Store `state` as checkpoint `name` of a run, then remove those it makes needless; returns its key.

    The rows of `point` must be acknowledged before.
    """
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, "run_id": config.run_id, "step": step, **state}, buffer)
    data = buffer.getbuffer()  # no copy: it may be gigabytes
    digest = hashlib.sha256(data).hexdigest()[:16]
    key = f"checkpoints/{config.run_id}/{name}/{step:09d}.{point.attempt}.{point.seq:012d}.{digest}.pt"
    storage.put(key, data)
    with suppress(StoreError):  # what stays now goes with the next
        prune(storage, config.run_id, config.checkpoint.keep_last, point.attempt)
    return key


def write_config(storage: Storage, config: RunConfig) -> None:
    """Put the resolved config beside the run's checkpoints."""
    storage.put(f"checkpoints/{config.run_id}/config.json", config.model_dump_json(indent=2).encode())


def prune(storage: Storage, run_id: str, keep_last: int, attempt: str) -> None:
    """Remove what `attempt` and those before it wrote and the run no longer needs; nothing once `attempt` is overtaken.

    Of `latest`, the newest `keep_last` the run can go on from stay. Of each milestone and of the weights one stays: the
    newest on the lineage, or, until that has one, the newest of those that were given up.
    """
    listed = _listed(storage, run_id)
    attempts = _attempts(storage, run_id)  # last, so that it knows of as many as can be known
    if max(attempts, default=None) != attempt:
        return
    by_name: dict[str, list[Saved]] = defaultdict(list)
    for item in listed:
        if item.attempt <= attempt:
            by_name[item.name].append(item)
    for name, items in by_name.items():
        alive = _alive(items, attempts)
        kept = alive[:keep_last] if name == LATEST else (alive or sorted(items, reverse=True))[:1]
        storage.delete([item.key for item in items if item not in kept])


def newest(storage: Storage, config: RunConfig) -> tuple[Saved, dict[str, Any]] | None:
    """The newest whole checkpoint of a run, and its state on the CPU; None if there is none.

    Those passed over are named in warnings. Raises: CheckpointError for a whole one that is not this run's to continue
    from.
    """
    lost: dict[str, str] = {}
    found = None
    # Listed anew each time: one that was removed meanwhile has given way to a newer one.
    while not found and (item := next((i for i in saved(storage, config.run_id) if i.key not in lost), None)):
        try:
            found = item, _read(storage, item)
        except _Lost as reason:
            lost[item.key] = str(reason)
    then = "no earlier one is whole; training starts from step 0"
    if found:
        then = f"that of step {found[0].step} is read instead"
    for key, why in lost.items():
        log.warning("checkpoint %s %s; %s", key, why, then)
    if found:
        _check(*found, config)
    return found


def load(storage: Storage, key: str) -> dict[str, Any]:
    """State of the checkpoint at `key`, on the CPU. Raises CheckpointError if it cannot be read."""
    item = _saved_as(key)
    if item is None:
        raise CheckpointError(f"{key} is no checkpoint; their names end in .<attempt>.<seq>.<hash>.pt")
    try:
        return _read(storage, item)
    except _Lost as reason:
        raise CheckpointError(f"checkpoint {key} {reason}; take another one") from reason


def _read(storage: Storage, item: Saved) -> dict[str, Any]:
    """Content of a checkpoint. Raises _Lost, or CheckpointError if the object is whole and holds something else."""
    try:
        data = storage.get(item.key)
    except FileNotFoundError:
        raise _Lost("was removed since it was listed") from None
    if hashlib.sha256(data).hexdigest()[:16] != item.digest:
        raise _Lost(f"is torn or was changed ({len(data)} bytes)")
    foreign = f"checkpoint {item.key} holds no state of ours"
    remedy = "remove it to go on from the one before"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of other kinds of pickle, which are refused
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise CheckpointError(f"{foreign} ({type(error).__name__}); {remedy}") from error
    if not isinstance(state, dict) or "schema" not in state:
        raise CheckpointError(f"{foreign}; {remedy}")
    return state


PARTS = {
    "run_id": str,
    "step": int,
    "model": dict,
    "optimizers": dict,
    "peaks": dict,
    "recorder": dict,
    "data_hash": str,
}
"""What every checkpoint holds, and as what."""


def _check(item: Saved, state: dict[str, Any], config: RunConfig) -> None:
    start_anew = f"remove checkpoints/{config.run_id}/ to train it from the start"
    if state["schema"] != SCHEMA:
        raise CheckpointError(
            f"checkpoint {item.key} has schema {state['schema']}, this version reads up to {SCHEMA}; "
            f"update, or {start_anew}"
        )
    if missing := [part for part in PARTS if part not in state]:
        raise CheckpointError(f"checkpoint {item.key} lacks {', '.join(missing)}; {start_anew}")
    for part, kind in PARTS.items():
        if not isinstance(state[part], kind):
            found = type(state[part]).__name__
            raise CheckpointError(f"{part} of checkpoint {item.key} is {found}, not {kind.__name__}; {start_anew}")
    if state["run_id"] != config.run_id:
        raise CheckpointError(f"checkpoint {item.key} is of run {state['run_id']}, not {config.run_id}; {start_anew}")
