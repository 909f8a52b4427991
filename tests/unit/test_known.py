"""How the runs of a store stand: what end records said is remembered, and never believed of another record."""

import json
from pathlib import Path
from typing import Any

import pytest

from muon_core.store.compaction import compact
from muon_core.store.folder import Folder
from muon_core.store.keys import ROOT
from muon_core.store.known import NEWEST, End, read_known
from muon_core.store.reader import read_statuses
from muon_core.store.writer import RunWriter


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "store")


def trained(storage: Folder, run: str, status: str | None, **start: Any) -> None:
    writer = RunWriter(storage, run, {"config_json": f'{{"run": "{run}"}}'} | start)
    if status:
        writer.end(status=status, wall_s=2.0, steps=3)


def read_without_parquet(storage: Folder, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is known where no end record may be read."""
    with monkeypatch.context() as patch:
        patch.setattr("muon_core.store.reader.read_ends_of", None)
        return read_known(storage).statuses


def test_it_is_what_the_records_say_and_the_second_time_none_is_read(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_known(storage).statuses == {}
    for run, status in {"a": "done", "b": "failed", "c": None}.items():
        trained(storage, run, status, device="NVIDIA L4")
    known = read_known(storage)
    assert known.statuses == read_statuses(storage) == {"a": "done", "b": "failed", "c": "running"}
    assert {(end.status, end.wall_s, end.steps, end.config_json, end.device) for end in known.newest} == {
        ("done", 2.0, 3, '{"run": "a"}', "NVIDIA L4"),
        ("failed", 2.0, 3, '{"run": "b"}', "NVIDIA L4"),
    }
    assert read_without_parquet(storage, monkeypatch) == known.statuses
    assert read_known(storage) == known


def test_a_newer_attempt_is_seen_whatever_is_remembered(storage: Folder) -> None:
    trained(storage, "a", "failed")
    assert read_known(storage).statuses == {"a": "failed"}
    again = RunWriter(storage, "a", {}, parent=ROOT)
    assert read_known(storage).statuses == {"a": "running"}
    again.end(status="done")
    assert read_known(storage).statuses == {"a": "done"}


def test_packed_records_are_known_too(storage: Folder) -> None:
    for run in "abc":
        trained(storage, run, "done")
    compact(storage, grace_s=0.0)
    compact(storage, grace_s=0.0)
    assert read_known(storage).statuses == dict.fromkeys("abc", "done")


def test_a_damaged_memory_or_none_that_can_be_written_costs_time_only(storage: Folder, cache: Path) -> None:
    trained(storage, "a", "done")
    read_known(storage)
    (memory,) = (cache / "muon" / "ends").iterdir()
    for damage in ("{", "[]", '{"x": 1}', '{"x": ["done"]}'):
        memory.write_text(damage)
        assert read_known(storage).statuses == {"a": "done"}
    memory.unlink()
    memory.parent.rmdir()
    memory.parent.write_text("in the way")
    assert read_known(storage).statuses == {"a": "done"}


def test_two_stores_have_memories_of_their_own(storage: Folder, tmp_path: Path, cache: Path) -> None:
    other = Folder(tmp_path / "other")
    trained(storage, "a", "done")
    trained(other, "a", "failed")
    assert read_known(storage).statuses == {"a": "done"}
    assert read_known(other).statuses == {"a": "failed"}
    assert len(list((cache / "muon" / "ends").iterdir())) == 2


def test_configs_are_kept_of_the_newest_alone(storage: Folder, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muon_core.store.known.NEWEST", 2)
    assert NEWEST > 2
    for run in "abc":
        trained(storage, run, "done")
    assert [end.config_json for end in read_known(storage).newest] == ['{"run": "c"}', '{"run": "b"}']
    (memory,) = (cache / "muon" / "ends").iterdir()
    ends = [End(*fields) for fields in json.loads(memory.read_text()).values()]
    assert sum(end.config_json is None for end in ends) == 1
