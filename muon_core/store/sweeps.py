"""The record of a sweep in the results store: what was asked, and which runs answer it; written and read here.

A run belongs to the store and not to a sweep: its record only lists runs, so two sweeps that ask for the same run share
it. A record is never changed. A sweep that grew by a seed gets another record with a greater id, and the newest counts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from muon_core.store.keys import check_name, next_id, parse_sweeps, sweep_key
from muon_core.store.parquet import newer_schema
from muon_core.store.reader import list_keys, mark_version
from muon_core.store.storage import Storage

SCHEMA = 1  # of a record; raised when a field changes its meaning


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SweepRun(_Part):
    """One run as a sweep lists it; a run that several blocks contain is listed in each."""

    run_id: str
    block: str
    role: str
    """baseline, candidate or control."""
    arm: str
    """What its arm is called (`muon_core.config.arm_names`): runs of the sweep that differ only in seed share it."""
    seed: int | None = None
    """None for an imported run that does not tell it."""


class Metric(_Part):
    """What a sweep is decided by."""

    primary: str = "val_loss"
    goal: Literal["min", "max"] = "min"
    at: Literal["final", "best"] = "final"
    """The value at the last step, or the best of all evaluations."""


class SweepRecord(_Part):
    """What a sweep asked, and the runs that answer it."""

    sweep: str
    question: str = ""
    spec: dict[str, Any] = {}
    """The sweep file as it was read; of imported runs `{"imported": true}`."""
    metrics: Metric = Metric()
    runs: tuple[SweepRun, ...] = ()
    to_choose: int = 0
    """Cells that its search has still to choose: their runs are not listed yet."""

    @property
    def is_imported(self) -> bool:
        """Whether its runs were logged elsewhere: there is no sweep file to run them by."""
        return bool(self.spec.get("imported"))

    def arm_names(self) -> dict[tuple[str, str], str]:
        """(block, arm) -> what the arm is called in that block: an arm that several blocks list is a row in each."""
        blocks: dict[str, set[str]] = defaultdict(set)
        for run in self.runs:
            blocks[run.arm].add(run.block)
        return {
            (run.block, run.arm): f"{run.block}: {run.arm}" if len(blocks[run.arm]) > 1 else run.arm
            for run in self.runs
        }


def write_sweep(storage: Storage, record: SweepRecord) -> None:
    """Record what a sweep asks and which runs answer it; a new record only where it differs from the newest.

    Raises: ValueError for a name that cannot stand in a key.
    """
    check_name(record.sweep)
    mark_version(storage)
    keys = list_keys(storage, f"sweeps/{record.sweep}/")
    data = json.dumps(record.model_dump(mode="json") | {"schema": SCHEMA}, sort_keys=True).encode()
    newest = parse_sweeps(keys).get(record.sweep)
    if newest and storage.get(newest) == data:
        return
    ids = [key.rsplit("/", 1)[1].removesuffix(".json") for key in keys]
    storage.put(sweep_key(record.sweep, next_id(ids)), data)


def read_sweep(storage: Storage, name: str) -> SweepRecord | None:
    """The newest record of a sweep; None if there is none of that name. Raises as `read_record`."""
    key = parse_sweeps(list_keys(storage, f"sweeps/{name}/")).get(name)
    return read_record(storage, key) if key else None


def read_records(storage: Storage, name: str) -> list[SweepRecord]:
    """All records of a sweep, the newest last. Raises as `read_record`."""
    keys = sorted(key for key in list_keys(storage, f"sweeps/{name}/") if parse_sweeps([key]))
    return [_decode(storage.uri(key), data) for key, data in zip(keys, storage.get_many(keys), strict=True)]


def read_record(storage: Storage, key: str) -> SweepRecord:
    """The sweep record at `key`. Raises ValueError if it is damaged, StoreError if a newer release wrote it."""
    return _decode(storage.uri(key), storage.get(key))


def _decode(uri: str, data: bytes) -> SweepRecord:
    remedy = "delete it and run the sweep again"
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{uri} is not JSON ({error}); {remedy}") from error
    schema = fields.pop("schema", 1) if isinstance(fields, dict) else 1
    if schema > SCHEMA:
        raise newer_schema(uri, schema, SCHEMA)
    try:
        return SweepRecord.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{uri} is no sweep record ({where}: {first['msg']}); {remedy}") from error
