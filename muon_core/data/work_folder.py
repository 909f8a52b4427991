"""What `muon data prepare` keeps while it is at work, for the call that goes on when it was killed. Imports no torch.

A folder with the shards that are not full, the digests of the documents so far, and `state.json`, which says how much
of both counts. What was written after the state is cut off, or comes again and is recognized. One process at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from muon_core.data.duplicates import Duplicates
from muon_core.data.manifest import WORK, Counts, Side
from muon_core.data.records import BEGIN, Position
from muon_core.data.set_cache import cache_root
from muon_core.data.shard_writer import ShardWriter, Written
from muon_core.store.folder import Folder
from muon_core.store.storage import Storage, check_writable

STATE, DIGESTS = "state.json", "digests.sqlite"


@dataclass(slots=True)
class State:
    """What a killed call leaves to the next one."""

    plan: str
    asked: dict[str, str]
    """What it is the state of, by the names its user knows."""
    position: Position = BEGIN
    documents: int = 0
    """Documents so far, duplicates among them: the number of the next one."""
    counts: Counts = field(default_factory=Counts)
    written: dict[str, Written] | None = None


@contextlib.contextmanager
def working_folder(storage: Storage, out: str) -> Iterator[Path]:
    """Where a call keeps what is not finished; a place that is none of this machine has it in the user's cache.

    A call that ends without anything for the next one leaves no folder behind.

    Raises: ValueError if another process is at work there; StoreError if nothing can be written.
    """
    work = _folder(storage)
    if not storage.is_local:
        check_writable(storage)
    made = [folder for folder in work.parents if not folder.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / "lock").open("w")
    except OSError as error:
        raise ValueError(f"cannot write to {work}: {error.strerror}; choose another place") from error
    with file:
        if not _lock(file, work):
            raise ValueError(f"another process is preparing {out}; wait for it, or end it")
        try:
            yield work
        finally:
            if not _holds_work(work):
                shutil.rmtree(work, ignore_errors=True)
                with contextlib.suppress(OSError):  # somebody else has put something there
                    for folder in made:
                        folder.rmdir()


def _lock(file: IO[str], work: Path) -> bool:
    """Whether the lock is this process's, and is still the one that others find there."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(work / "lock"))
    except OSError:
        return False


def differences(there: Mapping[str, str] | None, here: Mapping[str, str]) -> str:
    """`--train-bpe: 300, not 310`: how what there is differs from what is asked for now, as far as it is known."""
    there = there or {}
    return "; ".join(
        f"{name}: {there[name]}, not {here[name]}" for name in here if there.get(name, here[name]) != here[name]
    )


def is_begun(storage: Storage) -> bool:
    """Whether a call that did not come to its end left something to the next one."""
    return _holds_work(_folder(storage))


def _folder(storage: Storage) -> Path:
    if storage.is_local:
        return Path(storage.url) / WORK
    return cache_root().parent / "preparing" / hashlib.sha256(storage.place.encode()).hexdigest()[:16]


def _holds_work(work: Path) -> bool:
    return (work / STATE).is_file() or any(work.glob("tokenizer-*.json"))


def load_state(work: Path, plan: str, asked: dict[str, str]) -> State:
    """Where the call before has got. Raises ValueError if it was after something else."""
    try:
        saved: dict[str, Any] = json.loads((work / STATE).read_text())
    except FileNotFoundError:
        for file in work.glob(f"{DIGESTS}*"):  # of a call killed before it saved a state, of other text perhaps
            file.unlink()
        return State(plan, asked)
    if saved["plan"] != plan:
        which = differences(saved.get("asked"), asked) or "an earlier release does not say which"
        raise ValueError(
            f"{work} is of text or settings that were others, or have changed ({which}); repeat that call, or remove "
            "the folder"
        )
    return State(
        plan,
        asked,
        Position(*saved["position"]),
        saved["documents"],
        Counts.model_validate(saved["counts"]),
        {side: Written(*written) for side, written in saved["written"].items()},
    )


def save_state(work: Path, state: State, writers: Mapping[Side, ShardWriter], known: Duplicates) -> None:
    """Make this the point from which the next call goes on."""
    written = {side: writer.state() for side, writer in writers.items()}
    known.commit()
    content = {
        "plan": state.plan,
        "asked": state.asked,
        "position": state.position,
        "documents": state.documents,
        "counts": state.counts.model_dump(),
        "written": written,
    }
    Folder(work).put(STATE, json.dumps(content).encode())
    for writer in writers.values():
        writer.forget_finished()
