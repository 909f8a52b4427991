"""The record of a sweep in the results store: what was asked, and which runs answer it; written and read here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from muon_core.store.keys import check_name, next_id, parse_sweeps, sweep_key
from muon_core.store.parquet import Row
from muon_core.store.reader import (
    list_keys,
    mark_version,
)
from muon_core.store.storage import Storage


def write_sweep(storage: Storage, name: str, record: Row) -> None:
    """Record what a sweep asks and which runs answer it; a new record only where it differs from the newest."""
    check_name(name)
    mark_version(storage)
    keys = list_keys(storage, f"sweeps/{name}/")
    data = json.dumps(record | {"sweep": name}, sort_keys=True).encode()
    newest = parse_sweeps(keys).get(name)
    if newest and storage.get(newest) == data:
        return
    ids = [key.rsplit("/", 1)[1].removesuffix(".json") for key in keys]
    storage.put(sweep_key(name, next_id(ids)), data)


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run as a sweep lists it; `arm` is shared by the runs of a block that differ only in seed."""

    run_id: str
    block: str
    role: str
    arm: str


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """What a sweep asked: `metrics` names the primary metric, its goal (min, max) and when (final, best)."""

    name: str
    question: str
    spec: dict[str, Any]
    metrics: dict[str, str]
    runs: tuple[SweepRun, ...]


def read_sweep(storage: Storage, name: str) -> SweepRecord | None:
    """The newest record of a sweep; None if there is none of that name."""
    key = parse_sweeps(list_keys(storage, f"sweeps/{name}/")).get(name)
    return read_record(storage, name, key) if key else None


def read_record(storage: Storage, name: str, key: str) -> SweepRecord:
    """The record of sweep `name` that lies at `key`. Raises ValueError if it is damaged."""
    try:
        record = json.loads(storage.get(key))
    except ValueError as error:
        raise ValueError(f"{storage.uri(key)} is not JSON ({error}); delete it and run the sweep again") from error
    metrics = {"primary": "val_loss", "goal": "min", "at": "final"} | (record.get("metrics") or {})
    runs = dict.fromkeys(SweepRun(run["run_id"], run["block"], run["role"], run["arm"]) for run in record["runs"])
    return SweepRecord(name, record.get("question") or "", record.get("spec") or {}, metrics, tuple(runs))
