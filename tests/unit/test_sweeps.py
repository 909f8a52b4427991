"""Records of sweeps: written when they differ, read with their schema, and named when they are damaged."""

import json
from pathlib import Path

import pytest

from muon_core.store.folder import Folder
from muon_core.store.keys import sweep_key
from muon_core.store.storage import StoreError
from muon_core.store.sweeps import SweepRecord, SweepRun, read_sweep, write_sweep


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_write_sweep_adds_a_record_only_when_it_differs(folder: Folder) -> None:
    write_sweep(folder, SweepRecord(sweep="s"))
    write_sweep(folder, SweepRecord(sweep="s"))
    assert len(folder.list("sweeps/s/")) == 1
    grown = SweepRecord(sweep="s", runs=(SweepRun(run_id="r", block="b", role="baseline", arm="muon"),))
    write_sweep(folder, grown)
    assert len(folder.list("sweeps/s/")) == 2
    assert read_sweep(folder, "s") == grown
    assert read_sweep(folder, "t") is None


def test_a_sweep_record_carries_its_schema_and_one_of_a_newer_release_is_refused(folder: Folder) -> None:
    write_sweep(folder, SweepRecord(sweep="s"))
    [(key, _)] = folder.list("sweeps/s/")
    record = json.loads(folder.get(key))
    assert record["schema"] == 1
    folder.put(key, json.dumps(record | {"schema": 2, "new": 1}).encode())
    with pytest.raises(StoreError, match="schema 2, this release reads up to 1; update muon-jobs"):
        read_sweep(folder, "s")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            '{"sweep": "s", "runs": [{"run_id": "r"}]}',
            r"is no sweep record \(runs\.0\.block: Field required\); delete it",
        ),
        ("[]", r"is no sweep record \(it: .*\); delete it and run the sweep again"),
        ("{", r"is not JSON \(.*\); delete it and run the sweep again"),
    ],
)
def test_a_damaged_sweep_record_is_named(folder: Folder, fields: str, reason: str) -> None:
    folder.put(sweep_key("s", "00001.aa"), fields.encode())
    with pytest.raises(ValueError, match=reason):
        read_sweep(folder, "s")
