"""The writer: rows become readable in order, each once; the final tables are sorted; the end record closes a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from muon_core.lease import claim
from muon_core.store.final import finalize
from muon_core.store.folder import Folder
from muon_core.store.keys import ROOT
from muon_core.store.ledger import LOCAL, read_entries
from muon_core.store.lineage import visible_slices
from muon_core.store.parquet import decode
from muon_core.store.reader import read_statuses
from muon_core.store.writer import ResumePoint, RunWriter, head_point, record_failure
from muon_core.tables import RUNS, VAL, Table

START = {"arm_id": "muon-1", "arm": "muon", "seed": 1, "optimizer": "muon"}


def visible_rows(folder: Folder, table: Table) -> list[dict[str, Any]]:
    keys = [key for key, _ in folder.list("")]
    rows: list[dict[str, Any]] = []
    for item in visible_slices(keys, keys, table.name):
        rows += [r for r in decode(folder.get(item.key)).to_pylist() if item.bound is None or r["seq"] < item.bound]
    return sorted(rows, key=lambda row: row["seq"])


def emit_vals(writer: RunWriter, steps: range) -> None:
    for step in steps:
        writer.emit("val", step=step, tokens=step * 10, val_loss=float(step))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_rows_are_readable_after_a_flush_and_not_before(folder: Folder) -> None:
    writer = RunWriter(folder, "r", START)
    emit_vals(writer, range(3))
    assert visible_rows(folder, VAL) == []
    writer.flush()
    assert [(row["step"], row["seq"], row["val_loss"]) for row in visible_rows(folder, VAL)] == [
        (0, 0, 0.0),
        (1, 1, 1.0),
        (2, 2, 2.0),
    ]


def test_later_flushes_supersede_earlier_ones_without_doubling_rows(folder: Folder) -> None:
    writer = RunWriter(folder, "r", START)
    for first in range(0, 9, 3):
        emit_vals(writer, range(first, first + 3))
        writer.flush()
    assert [row["step"] for row in visible_rows(folder, VAL)] == list(range(9))


def test_a_large_segment_is_sealed_and_rows_stay_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muon_core.store.writer.SEAL_BYTES", 1)
    writer = RunWriter(folder, "r", START)
    for first in range(0, 9, 3):
        emit_vals(writer, range(first, first + 3))
        writer.flush()
    bounds = [key.split("/")[-1].split(".")[2] for key, _ in folder.list("live/")]
    assert bounds == [f"{lo:012d}-{lo + 3:012d}" for lo in (0, 3, 6)]
    assert [row["step"] for row in visible_rows(folder, VAL)] == list(range(9))


def test_superseded_objects_go_after_their_grace(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(folder, "r", START)
    emit_vals(writer, range(1))
    writer.flush()
    emit_vals(writer, range(1, 2))
    writer.flush()
    assert len(folder.list("live/")) == 2
    monkeypatch.setattr("muon_core.store.writer.READER_GRACE_S", 0.0)
    emit_vals(writer, range(2, 3))
    writer.flush()
    assert len(folder.list("live/")) == 1
    assert [row["step"] for row in visible_rows(folder, VAL)] == [0, 1, 2]


def test_a_resumed_attempt_replaces_the_rows_after_its_resume_point(folder: Folder) -> None:
    first = RunWriter(folder, "r", START)
    emit_vals(first, range(8))
    first.flush()
    second = RunWriter(folder, "r", START, parent=first.attempt.id, resume_seq=5)
    emit_vals(second, range(5, 8))
    second.flush()
    emit_vals(first, range(8, 12))  # a zombie goes on writing
    first.flush()
    assert [(row["step"], row["attempt"]) for row in visible_rows(folder, VAL)] == [
        *((step, 1) for step in range(5)),
        *((step, 2) for step in range(5, 8)),
    ]


def test_end_writes_finals_sorted_for_reading_and_the_outcome(folder: Folder) -> None:
    writer = RunWriter(folder, "r", START)
    for step in (10, 20):
        for projection in ("v", "q"):
            for layer in (1, 0):
                writer.emit("layers", step=step, tokens=0, layer=layer, projection=projection)
    writer.end(status="done", steps=20)
    (key,) = [key for key, _ in folder.list("final/table=layers/")]
    rows = decode(folder.get(key)).to_pylist()
    assert [(row["layer"], row["projection"], row["step"]) for row in rows] == [
        (layer, projection, step) for layer in (0, 1) for projection in ("q", "v") for step in (10, 20)
    ]
    assert read_statuses(folder) == {"r": "done"}


def test_finalize_twice_writes_the_same_object_once(folder: Folder) -> None:
    writer = RunWriter(folder, "r", START)
    emit_vals(writer, range(3))
    writer.end(status="done")
    before = folder.stat("")
    assert finalize(folder, "r") == 0
    assert folder.stat("") == before


def test_statuses_tell_running_from_ended_and_follow_the_newest_attempt(folder: Folder) -> None:
    RunWriter(folder, "a", START)
    first = RunWriter(folder, "b", START)
    first.end(status="failed", error="boom")
    assert read_statuses(folder) == {"a": "running", "b": "failed"}
    RunWriter(folder, "b", START)
    assert read_statuses(folder)["b"] == "running"


def test_record_failure_closes_an_open_attempt_and_keeps_its_rows(folder: Folder) -> None:
    writer = RunWriter(folder, "r", START)
    emit_vals(writer, range(3))
    writer.flush()
    record_failure(folder, "r", START, "worker died", writer.attempt.id)
    [(end, _)] = folder.list("final/table=runs/run=r/")
    assert end.startswith(f"final/table=runs/run=r/{writer.attempt.id}.{writer.seq:012d}-")
    row = decode(folder.get(end)).to_pylist()[0]
    assert (row["status"], row["error"], row["attempts"]) == ("failed", "worker died", 1)
    assert [row["step"] for row in visible_rows(folder, VAL)] == [0, 1, 2]


def test_record_failure_records_a_run_that_never_started_and_leaves_an_ended_one(folder: Folder) -> None:
    record_failure(folder, "new", START, "no data")
    writer = RunWriter(folder, "ended", START)
    writer.end(status="done")
    record_failure(folder, "ended", START, "too late", writer.attempt.id)
    assert read_statuses(folder) == {"new": "failed", "ended": "done"}


def test_record_failure_records_an_attempt_that_only_claimed_a_run_left_before_its_end(folder: Folder) -> None:
    """It loaded the checkpoint and died of that: the rows before stay, and the run is not resumable for ever."""
    writer = RunWriter(folder, "r", START)
    emit_vals(writer, range(3))
    writer.end(status="stopped")
    lease = claim(folder, "r", LOCAL)
    lease.end("lost", failure="infrastructure")
    record_failure(folder, "r", START, "worker died 4 times", lease.attempt, "infrastructure")
    assert read_statuses(folder) == {"r": "failed"}
    assert [row["step"] for row in visible_rows(folder, VAL)] == [0, 1, 2]
    (entry,) = read_entries(folder, "r")
    assert (entry.status, entry.error) == ("failed", "worker died 4 times")


def test_record_failure_records_one_that_never_came_as_far_but_hides_no_result(folder: Folder) -> None:
    RunWriter(folder, "stopped", START).end(status="stopped")
    RunWriter(folder, "done", START).end(status="done")
    for run in ("stopped", "done"):
        record_failure(folder, run, START, "its workers could not start")
    record_failure(folder, "done", START, "begun again, it died at once", "00002.aaaaaaaa")
    assert read_statuses(folder) == {"stopped": "failed", "done": "done"}


def test_record_failure_leaves_an_attempt_alone_that_is_not_the_callers(folder: Folder) -> None:
    first = RunWriter(folder, "r", START)
    second = RunWriter(folder, "r", START)
    record_failure(folder, "r", START, "its worker died", first.attempt.id)
    record_failure(folder, "r", START, "its slot broke")
    assert read_statuses(folder) == {"r": "running"}
    second.end(status="done")
    assert read_statuses(folder) == {"r": "done"}


def test_the_head_point_keeps_every_row(folder: Folder) -> None:
    assert head_point(folder, "r") == ResumePoint(ROOT, 0)
    first = RunWriter(folder, "r", START)
    emit_vals(first, range(5))
    first.flush()
    second = RunWriter(folder, "r", START, parent=first.attempt.id, resume_seq=3)
    emit_vals(second, range(3, 5))
    emit_vals(second, range(5, 6))  # never flushed
    assert head_point(folder, "r") == ResumePoint(second.attempt.id, 3)
    second.flush()
    point = head_point(folder, "r")
    assert point == ResumePoint(second.attempt.id, 6)
    RunWriter(folder, "r", START, parent=point.attempt, resume_seq=point.seq)
    assert [row["step"] for row in visible_rows(folder, VAL)] == [0, 1, 2, 3, 4, 5]


def test_a_column_the_table_has_not_is_refused(folder: Folder) -> None:
    with pytest.raises(ValueError, match="table val has no column val_los"):
        RunWriter(folder, "r", START).emit("val", step=0, tokens=0, val_los=1.0)


def test_start_record_is_json_with_the_known_columns(folder: Folder) -> None:
    writer = RunWriter(folder, "r", START)
    record = json.loads(folder.get(writer.attempt.key))
    assert record.items() >= START.items()
    assert set(record) <= set(RUNS.columns)


def test_a_run_name_that_breaks_keys_is_refused(folder: Folder) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        RunWriter(folder, "a=b", START)
