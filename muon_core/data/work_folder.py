"""What `muon data prepare` keeps while it is at work, for the call that goes on when it was killed. Imports no torch.

A folder with the shards that are not full, the digests of the documents so far, and `state.json`, which says how much
of both counts. What was written after the state is cut off, or comes again and is recognized. One process at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    position: Position = BEGIN
    documents: int = 0
    """Documents so far, duplicates among them: the number of the next one."""
    counts: Counts = field(default_factory=Counts)
    written: dict[str, Written] | None = None


@contextlib.contextmanager
def working_folder(storage: Storage, out: str) -> Iterator[Path]:
    """Where a call keeps what is not finished; a place that is none of this machine has it in the user's cache.

    Raises: ValueError if another process is at work there; StoreError if nothing can be written.
    """
    if storage.is_local:
        work = Path(storage.url) / WORK
    else:
        check_writable(storage)
        work = cache_root().parent / "preparing" / hashlib.sha256(storage.place.encode()).hexdigest()[:16]
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / "lock").open("w")
    except OSError as error:
        raise ValueError(f"cannot write to {work}: {error.strerror}; choose another place") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process is preparing {out}; wait for it, or end it") from None
        yield work


def load_state(work: Path, plan: str) -> State:
    """Where the call before has got. Raises ValueError if it was after something else."""
    try:
        saved: dict[str, Any] = json.loads((work / STATE).read_text())
    except FileNotFoundError:
        for file in work.glob(f"{DIGESTS}*"):  # of a call killed before it saved a state, of other text perhaps
            file.unlink()
        return State(plan)
    if saved["plan"] != plan:
        raise ValueError(
            f"{work} is of text or settings that were others, or have changed; repeat that call, or remove the folder"
        )
    return State(
        plan,
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
        "position": state.position,
        "documents": state.documents,
        "counts": state.counts.model_dump(),
        "written": written,
    }
    Folder(work).put(STATE, json.dumps(content).encode())
    for writer in writers.values():
        writer.forget_finished()
