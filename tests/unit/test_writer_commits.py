"""Commits happen beside the training, nothing is dropped while the store is away, and a zombie is told to stop."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from muon_core.store.final import finalize
from muon_core.store.folder import Folder
from muon_core.store.parquet import decode
from muon_core.store.reader import read_ends, read_rows, visible_objects
from muon_core.store.storage import StoreError, StoreUnavailable, patiently
from muon_core.store.writer import RunWriter, Superseded, write_end_record
from muon_core.tables import VAL

START = {"arm_id": "muon-1", "arm": "muon", "seed": 1, "optimizer": "muon"}


class Moody(Folder):
    """A folder whose puts of rows fail while `away`, or wait while the gate is closed."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.away = False
        self.failures = 0
        self.gate = threading.Event()
        self.gate.set()

    def put(self, key: str, data: bytes) -> None:
        if key.startswith("live/"):
            assert self.gate.wait(30)
            if self.away or self.failures:
                self.failures = max(0, self.failures - 1)
                raise StoreUnavailable("store x: no answer; check the network")
        super().put(key, data)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moody:
    monkeypatch.setattr("muon_core.store.storage.FIRST_PAUSE_S", 0.001)
    return Moody(tmp_path)


def steps(store: Folder) -> list[int]:
    objects, _ = visible_objects(store, "val")
    return sorted(read_rows(store, objects, VAL)["step"].to_pylist())


def emit(writer: RunWriter, first: int, last: int) -> None:
    for step in range(first, last):
        writer.emit("val", step=step, tokens=0, val_loss=1.0)


def test_a_flush_without_waiting_returns_while_the_store_is_busy(store: Moody) -> None:
    writer = RunWriter(store, "r", START)
    store.gate.clear()
    emit(writer, 0, 3)
    writer.flush(wait=False)
    emit(writer, 3, 5)
    writer.flush(wait=False)
    assert steps(store) == []
    store.gate.set()
    writer.flush()
    assert steps(store) == [0, 1, 2, 3, 4]


def test_barrier_waits_for_every_row_and_names_the_resume_point(store: Moody) -> None:
    writer = RunWriter(store, "r", START)
    emit(writer, 0, 3)
    writer.flush(wait=False)
    emit(writer, 3, 4)
    point = writer.barrier()
    assert (point.attempt, point.seq) == (writer.attempt.id, 4)
    assert steps(store) == [0, 1, 2, 3]
    child = RunWriter(store, "r", START, parent=point.attempt, resume_seq=point.seq)
    assert child.attempt.number == 2


def test_commits_outlast_a_store_that_is_away_for_a_while(store: Moody) -> None:
    writer = RunWriter(store, "r", START)
    store.failures = 5
    emit(writer, 0, 3)
    writer.barrier()
    assert steps(store) == [0, 1, 2]


def test_a_store_that_stays_away_ends_the_attempt_with_its_rows_still_in_memory(store: Moody) -> None:
    writer = RunWriter(store, "r", START, patience_s=0.01)
    emit(writer, 0, 3)
    store.away = True
    with pytest.raises(StoreUnavailable, match=r"no answer; check the network \(gave up after"):
        writer.barrier()
    emit(writer, 3, 5)
    store.away = False
    writer.barrier()
    assert steps(store) == [0, 1, 2, 3, 4]


def test_a_commit_that_failed_in_the_background_is_raised_by_the_next_flush(store: Moody) -> None:
    writer = RunWriter(store, "r", START, patience_s=0.0)
    store.away = True
    emit(writer, 0, 3)
    writer.flush(wait=False)
    with pytest.raises(StoreUnavailable, match="gave up"):
        writer.flush()


def test_an_end_that_failed_is_tried_again_and_fails_with_the_same_error(
    store: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatiently(request: Callable[[], Any], patience_s: float) -> Any:
        try:
            return request()
        except StoreUnavailable as error:
            raise StoreUnavailable(f"{error} (gave up after {patience_s:.0f} s)") from error

    monkeypatch.setattr("muon_core.store.writer.patiently", impatiently)
    writer = RunWriter(store, "r", START)
    emit(writer, 0, 3)
    store.away = True
    for status in ("done", "failed"):
        with pytest.raises(StoreUnavailable, match=r"no answer; check the network \(gave up after 300 s\)$"):
            writer.end(status=status)
    store.away = False
    writer.end(status="failed", error="the store was away")
    assert steps(store) == [0, 1, 2]
    assert read_ends(store, [writer.attempt])["status"].to_pylist() == ["failed"]


def test_replaced_objects_that_cannot_be_removed_stay_for_later(store: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muon_core.store.writer.READER_GRACE_S", 0.0)

    def refused(self: Folder, keys: Iterable[str]) -> None:
        raise StoreError("access denied")

    writer = RunWriter(store, "r", START)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", refused)
        for step in range(3):
            emit(writer, step, step + 1)
            writer.flush()
    assert len(store.list("live/")) == 3
    assert steps(store) == [0, 1, 2]
    emit(writer, 3, 4)
    writer.flush()
    assert len(store.list("live/")) == 1
    assert steps(store) == [0, 1, 2, 3]


def test_memory_is_bounded_by_waiting_for_the_store(store: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muon_core.store.writer.MAX_PENDING_VALUES", 10)
    writer = RunWriter(store, "r", START)
    emit(writer, 0, 25)  # six values each
    assert steps(store) == list(range(24))


def test_a_superseded_attempt_is_stopped_at_its_barrier_and_its_end(store: Moody) -> None:
    zombie = RunWriter(store, "r", START)
    assert not zombie.superseded()
    RunWriter(store, "r", START)
    assert zombie.superseded()
    with pytest.raises(Superseded, match="a newer attempt than 00001"):
        zombie.barrier()
    with pytest.raises(Superseded):
        zombie.end(status="done")
    assert store.list("final/") == []


@pytest.mark.parametrize("status", ["done", "diverged"])
def test_an_attempt_that_is_overtaken_after_its_last_fence_is_told_so(
    store: Moody, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    writer = RunWriter(store, "r", START)
    emit(writer, 0, 3)

    def overtaken(*arguments: Any, **options: Any) -> int:
        RunWriter(store, "r", START)
        return finalize(*arguments, **options)

    monkeypatch.setattr("muon_core.store.writer.finalize", overtaken)
    with pytest.raises(Superseded, match="a newer attempt than 00001"):
        writer.end(status=status)
    assert store.list("final/") == []


def test_a_superseded_attempt_is_stopped_in_its_periodic_commit(store: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = RunWriter(store, "r", START)
    RunWriter(store, "r", START)
    emit(zombie, 0, 1)
    zombie.flush()
    monkeypatch.setattr("muon_core.store.writer.FENCE_EVERY_S", 0.0)
    emit(zombie, 1, 2)
    with pytest.raises(Superseded):
        zombie.flush()


def test_an_end_record_is_written_once(store: Moody) -> None:
    writer = RunWriter(store, "r", START)
    writer.end(status="failed", error="first")
    before = store.stat("final/")
    write_end_record(store, writer.attempt, {"run_id": "r", "status": "stopped"}, 0)
    assert store.stat("final/") == before


def test_of_two_end_records_written_at_once_everyone_reads_the_same(
    store: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(store, "r", START)
    monkeypatch.setattr("muon_core.store.writer.list_keys", lambda storage, prefix: [])  # neither saw the other's
    for error in ("first", "second"):
        write_end_record(store, writer.attempt, {"run_id": "r", "status": "failed", "error": error}, 0)
    keys = [key for key, _ in store.list("final/table=runs/")]
    assert len(keys) == 2
    read = read_ends(store, [writer.attempt])["error"].to_pylist()
    assert read == [decode(store.get(min(keys)))["error"][0].as_py()]


def test_patiently_repeats_only_what_may_pass() -> None:
    calls = []

    def refused() -> None:
        calls.append(1)
        raise StoreError("denied")

    with pytest.raises(StoreError, match="denied"):
        patiently(refused, 60)
    assert calls == [1]
