"""How every run of a store stands, in the time of a listing: what end records said is remembered on this machine.

To read thousands of end records takes seconds, and a plan needs a few fields of each. An end record's name holds the
digest of its content, so what one said under that name holds for ever: it is kept in a file of the user's cache, which
may be removed at any time. Nothing of Parquet is loaded where no record is new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from muon_core.statuses import record_told
from muon_core.store.keys import Attempt, parse_attempts, parse_ends
from muon_core.store.storage import Storage
from muon_core.user_cache import user_cache

_FIELDS = ("wall_s", "steps", "final_val_loss", "final_val_accuracy", "config_json", "device")
NEWEST = 300  # end records of which the config is kept, too: by them speed and scatter of the next runs are judged


class End(NamedTuple):
    """What an end record says that is asked of many at once."""

    status: str
    ended_at: int
    """Microseconds since 1970."""
    wall_s: float | None
    steps: int | None
    final_val_loss: float | None
    final_val_accuracy: float | None
    config_json: str | None
    """None for all but the newest."""
    device: str | None
    """As `runs` has it: a GPU's name, or `cpu ...`."""


@dataclass(frozen=True, slots=True)
class Known:
    """The runs of a store."""

    statuses: dict[str, str]
    """As `muon_core.store.reader.read_statuses` has them."""
    newest: list[End]
    """The newest ends, with their configs."""


def read_known(storage: Storage) -> Known:
    """How the runs in `storage` stand. An end record that cannot be read is named in a warning and counts as none."""
    attempts = parse_attempts(storage.keys("attempts/"))
    heads = {run: max(tries.values()) for run, tries in attempts.items()}
    if not heads:
        return Known({}, [])
    listed = parse_ends(storage.keys("final/table=runs/"))
    names = {run: listed[run, head.id].key for run, head in heads.items() if (run, head.id) in listed}
    memory = user_cache() / "muon" / "ends" / f"{hashlib.sha256(storage.place.encode()).hexdigest()[:16]}.json"
    before = _recall(memory)
    ends = {key: before[key] for key in names.values() if key in before}
    if missing := [heads[run] for run, key in names.items() if key not in ends]:
        ends |= {names[run]: end for run, end in _read(storage, missing)}
    newest = sorted(ends, key=lambda key: ends[key].ended_at, reverse=True)
    ends |= {key: ends[key]._replace(config_json=None) for key in newest[NEWEST:]}
    if ends != before:
        _remember(memory, ends)
    statuses = {run: ends[key].status for run, key in names.items() if key in ends}
    return Known({run: statuses.get(run, "running") for run in heads}, [ends[key] for key in newest[:NEWEST]])


def _read(storage: Storage, heads: list[Attempt]) -> Iterable[tuple[str, End]]:
    from muon_core.store.cache import cached
    from muon_core.store.reader import read_ends_of, relisting

    rows = relisting(lambda: read_ends_of(cached(storage), heads))
    columns = [rows[name].to_pylist() for name in ("run_id", "status", "error")]
    columns.append(rows["ended_at"].cast("int64").to_pylist())  # as numbers: to read a time, Arrow loads pandas
    columns += [rows[name].to_pylist() for name in _FIELDS]
    for run, status, error, ended_at, *others in zip(*columns, strict=True):
        yield run, End(record_told(status, error) or status, ended_at or 0, *others)


def _recall(memory: Path) -> dict[str, End]:
    """What was remembered; nothing where that cannot be read."""
    try:
        values: dict[str, Any] = json.loads(memory.read_text())
        return {key: End(*fields) for key, fields in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(memory: Path, ends: dict[str, End]) -> None:
    """Keep `ends` for the next time; a cache that cannot be written is done without."""
    aside = memory.with_name(f".{memory.name}.{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(ends))
        os.replace(aside, memory)
