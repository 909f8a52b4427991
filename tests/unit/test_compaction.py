"""Compaction: fewer objects, the same rows, whoever else is at work; what a final does not hold stays."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from muon_core.store.compaction import compact
from muon_core.store.final import finalize
from muon_core.store.folder import Folder
from muon_core.store.keys import digest_in, live_key, next_start
from muon_core.store.packs import repack
from muon_core.store.parquet import decode, digest, encode
from muon_core.store.reader import read_rows, read_statuses, visible_objects
from muon_core.store.run_log import RunLog
from muon_core.store.storage import StoreError
from muon_core.store.writer import RunWriter, write_end_record
from muon_core.tables import SERIES, TRAIN, VAL

AT_ONCE = 0.0  # no object is too young to go
START = {"arm_id": "muon-1", "arm": "muon", "seed": 1, "optimizer": "muon"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def write(writer: RunWriter, steps: range) -> None:
    """A train row and a val row a step, flushed: two rows a step."""
    for step in steps:
        writer.emit("train", step=step, tokens=0, train_loss=float(step))
        writer.emit("val", step=step, tokens=0, val_loss=float(step))
    writer.flush()


def finished(folder: Folder, run: str, steps: int = 6, status: str = "done") -> RunWriter:
    writer = RunWriter(folder, run, START)
    write(writer, range(steps // 2))
    write(writer, range(steps // 2, steps))
    writer.end(status=status)
    return writer


def rows(folder: Folder, table: str = "val", run: str | None = None) -> list[tuple[str, int, int, int]]:
    """(run, seq, step, attempt) of every row a reader sees, sorted."""
    objects, _ = visible_objects(folder, table, run)
    found = read_rows(folder, objects, SERIES[table]).to_pylist()
    return sorted((row["run_id"], row["seq"], row["step"], row["attempt"]) for row in found)


def keys(folder: Folder, prefix: str) -> list[str]:
    return [key for key, _ in folder.list(prefix)]


def expected(run: str, steps: int, attempt: int = 1) -> list[tuple[str, int, int, int]]:
    return [(run, 2 * step + 1, step, attempt) for step in range(steps)]


def test_compact_keeps_every_row_and_removes_what_finals_hold(folder: Folder) -> None:
    for run in ("a", "b"):
        finished(folder, run)
    done = compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "live/") == []
    assert done.removed == 8
    assert done.problems == {}
    assert rows(folder) == expected("a", 6) + expected("b", 6)


@pytest.mark.parametrize("age", [0, 3_600], ids=["now", "by a clock ahead"])
def test_one_call_without_grace_leaves_nothing_for_the_next(folder: Folder, age: float) -> None:
    """Of runs that have their finals, and of runs whose finals it writes itself."""
    for run, status in (("a", "done"), ("b", "stopped"), ("c", "stopped")):
        finished(folder, run, status=status)
    for path in folder.root.rglob("*.parquet"):
        os.utime(path, (time.time() + age, time.time() + age))
    done = compact(folder, grace_s=0.0)
    assert (done.finals, done.problems) == (4, {})
    assert keys(folder, "live/") == []
    assert compact(folder, grace_s=0.0).removed == 0
    assert rows(folder) == [row for run in "abc" for row in expected(run, 6)]


def test_compact_twice_changes_nothing_more(folder: Folder) -> None:
    for run in ("a", "b"):
        finished(folder, run)
    compact(folder, grace_s=AT_ONCE)
    before = folder.stat("")
    done = compact(folder, grace_s=AT_ONCE)
    assert (done.finals, done.packs, done.removed) == (0, 0, 0)
    assert folder.stat("") == before


def test_compact_leaves_everything_readers_may_still_open_within_the_grace(folder: Folder) -> None:
    finished(folder, "a")
    before = keys(folder, "live/")
    assert compact(folder, grace_s=600).removed == 0
    assert keys(folder, "live/") == before


def test_compact_leaves_a_running_run_alone(folder: Folder) -> None:
    writer = RunWriter(folder, "a", START)
    write(writer, range(4))
    before = keys(folder, "")
    compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "") == before


def test_compact_leaves_logs_alone(folder: Folder) -> None:
    finished(folder, "r")
    log = RunLog(folder, "r", next_start(), 0)
    log.write(b"printed")
    log.flush()
    before = keys(folder, "logs/")
    compact(folder, grace_s=0)
    compact(folder, grace_s=0)
    assert keys(folder, "logs/") == before != []
    assert rows(folder) == expected("r", 6)


def test_compact_of_named_runs_finalizes_only_these(folder: Folder) -> None:
    for run in ("a", "b"):
        finished(folder, run, status="stopped")
    compact(folder, ["b"], grace_s=AT_ONCE)
    assert keys(folder, "final/table=val/run=a/") == []
    assert len(keys(folder, "final/table=val/run=b/")) == 1


def test_plain_polars_reads_the_finals_without_our_code(folder: Folder) -> None:
    for run in ("001", "1e5"):
        finished(folder, run)
    compact(folder, grace_s=AT_ONCE)
    frame = pl.read_parquet(f"{folder.root}/final/table=val/**/*.parquet", hive_partitioning=True)
    assert frame.sort("run_id", "step")["val_loss"].to_list() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] * 2
    assert frame["run_id"].unique().sort().to_list() == ["001", "1e5"]


def test_packs_answer_instead_of_finals_and_statuses_too(folder: Folder) -> None:
    for run, status in (("a", "done"), ("b", "diverged"), ("c", "failed")):
        finished(folder, run, status=status)
    assert compact(folder, grace_s=AT_ONCE).packs == 3
    objects, _ = visible_objects(folder, "val")
    assert len({item.key for item in objects}) == 1
    assert rows(folder) == expected("a", 6) + expected("b", 6) + expected("c", 6)
    assert read_statuses(folder) == {"a": "done", "b": "diverged", "c": "failed"}


def test_packs_grow_with_the_runs_and_the_old_one_goes(folder: Folder) -> None:
    finished(folder, "a")
    finished(folder, "b")
    compact(folder, grace_s=AT_ONCE)
    (first,) = [key for key in keys(folder, "packs/table=val/") if key.endswith(".json")]
    finished(folder, "c")
    assert compact(folder, grace_s=AT_ONCE).packs == 3
    (second,) = [key for key in keys(folder, "packs/table=val/") if key.endswith(".json")]
    assert first != second
    assert rows(folder) == [row for run in "abc" for row in expected(run, 6)]


def test_a_pack_without_its_manifest_is_invisible_and_removed(folder: Folder) -> None:
    finished(folder, "a")
    folder.put("packs/table=val/0123456789abcdef.parquet", b"half")
    assert rows(folder) == expected("a", 6)
    compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "packs/") == []


def test_a_run_extended_after_packing_takes_the_packed_rows_up_to_its_resume_point(folder: Folder) -> None:
    first = finished(folder, "a")
    finished(folder, "b")
    compact(folder, grace_s=AT_ONCE)
    second = RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=8)
    write(second, range(4, 8))
    assert rows(folder, run="a") == rows(folder)[:8]
    assert rows(folder)[:8] == expected("a", 4) + [("a", 2 * step + 1, step, 2) for step in range(4, 8)]
    assert rows(folder)[8:] == expected("b", 6)


def test_a_rollback_to_an_old_attempt_reads_its_rows_from_the_final_of_a_later_one(folder: Folder) -> None:
    first = RunWriter(folder, "a", START)
    write(first, range(6))
    second = RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=8)
    write(second, range(4, 8))
    second.end(status="done")
    compact(folder, grace_s=AT_ONCE)
    third = RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=6)
    write(third, range(3, 5))
    assert rows(folder) == expected("a", 3) + [("a", 2 * step + 1, step, 3) for step in range(3, 5)]


def test_rows_a_failed_attempt_writes_after_its_final_stay_visible(folder: Folder) -> None:
    """The launcher declared it dead; it was only cut off, went on, and its checkpoint is the one to resume from."""
    slow = RunWriter(folder, "a", START)
    write(slow, range(4))
    finalize(folder, "a")
    write(slow, range(4, 6))
    assert rows(folder) == expected("a", 6)
    child = RunWriter(folder, "a", START, parent=slow.attempt.id, resume_seq=12)
    write(child, range(6, 7))
    assert rows(folder) == [*expected("a", 6), ("a", 13, 6, 2)]
    child.end(status="done")
    compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "live/") == []
    assert rows(folder) == [*expected("a", 6), ("a", 13, 6, 2)]


def zombie_store(folder: Folder) -> tuple[RunWriter, RunWriter]:
    """Attempt 1, its zombie child 2 that went further than the head, and the head 3, done."""
    first = RunWriter(folder, "a", START)
    write(first, range(4))
    zombie = RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=4)
    write(zombie, range(2, 9))
    head = RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=8)
    write(head, range(4, 6))
    head.end(status="done")
    return zombie, head


def test_compact_keeps_a_zombies_rows_while_a_checkpoint_may_continue_it(folder: Folder) -> None:
    zombie, _ = zombie_store(folder)
    folder.put("checkpoints/a/latest.json", b"{}")
    compact(folder, grace_s=AT_ONCE)
    after = RunWriter(folder, "a", START, parent=zombie.attempt.id, resume_seq=12)
    write(after, range(6, 7))
    owner = {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 4}
    assert rows(folder) == [("a", 2 * step + 1, step, attempt) for step, attempt in owner.items()]


def test_compact_drops_a_zombie_when_every_checkpoint_continues_the_head(folder: Folder) -> None:
    zombie, head = zombie_store(folder)
    folder.put("checkpoints/a/config.json", b"{}")
    folder.put(f"checkpoints/a/latest/000000004.{zombie.attempt.id}.000000000012.0123456789abcdef.pt", b"")
    assert compact(folder, grace_s=AT_ONCE).problems == {}
    assert zombie.attempt.key in keys(folder, "attempts/")
    folder.delete(keys(folder, "checkpoints/a/latest/"))
    folder.put(f"checkpoints/a/latest/000000006.{head.attempt.id}.000000000012.0123456789abcdef.pt", b"")
    compact(folder, grace_s=AT_ONCE)
    assert zombie.attempt.key not in keys(folder, "attempts/")
    assert keys(folder, "live/") == []


def test_compact_drops_a_zombie_without_checkpoints_and_refuses_to_continue_it(folder: Folder) -> None:
    zombie, _ = zombie_store(folder)
    compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "live/") == []
    with pytest.raises(StoreError, match="does not know; point it to the store that checkpoint was written with"):
        RunWriter(folder, "a", START, parent=zombie.attempt.id, resume_seq=12)
    owner = {0: 1, 1: 1, 2: 1, 3: 1, 4: 3, 5: 3}
    assert rows(folder) == [("a", 2 * step + 1, step, attempt) for step, attempt in owner.items()]


def test_compact_drops_a_zombie_whole_though_it_alone_wrote_some_table(folder: Folder) -> None:
    zombie, _ = zombie_store(folder)
    zombie.emit("health", step=9, tokens=0, layer=0, projection="q")
    zombie.flush()
    compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "live/") == []
    assert zombie.attempt.key not in keys(folder, "attempts/")


def test_compact_keeps_a_zombie_whole_until_every_table_is_settled(folder: Folder) -> None:
    zombie, _ = zombie_store(folder)
    before = keys(folder, "")
    (young,) = folder.root.glob("final/table=val/**/*.parquet")
    for path in folder.root.rglob("*"):
        os.utime(path, (0, 0))
    os.utime(young)
    compact(folder, grace_s=600)
    gone = set(before) - set(keys(folder, ""))
    assert {key.split("run=")[0] for key in gone} == {"live/table=train/"}
    assert [key for key in gone if zombie.attempt.id in key] == []
    after = RunWriter(folder, "a", START, parent=zombie.attempt.id, resume_seq=12)
    assert [row[1] for row in rows(folder, "train")] == [0, 2, 4, 6, 8, 10]
    assert after.attempt.number == 4


def failed_then_resumed(folder: Folder) -> tuple[RunWriter, RunWriter]:
    """Attempt 1 failed after 6 steps and was compacted; attempt 2 went on from its checkpoint after 2 of them."""
    first = finished(folder, "a", status="failed")
    compact(folder, grace_s=AT_ONCE)
    second = RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=4)
    write(second, range(2, 5))
    second.end(status="done")
    return first, second


def test_final_holds_one_lineage_a_run_though_a_failed_attempt_had_gone_further(folder: Folder) -> None:
    failed_then_resumed(folder)
    folder.put("checkpoints/a/latest.json", b"{}")  # so every branch stays
    assert compact(folder, grace_s=AT_ONCE).problems == {}
    plain = pl.read_parquet(f"{folder.root}/final/table=val/**/*.parquet", hive_partitioning=True)
    assert plain.sort("step").select("step", "attempt").rows() == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2)]
    before = keys(folder, "")
    assert compact(folder, grace_s=AT_ONCE).removed == 0
    assert keys(folder, "") == before


def segments(folder: Folder, prefix: str) -> list[str]:
    """What lies below `prefix`, as `attempt: rows`."""
    names = [key.rsplit("/", 1)[1].split(".") for key in keys(folder, prefix)]
    bounds = [(int(name[0]), name[2].split("-")) for name in names]
    if prefix.startswith("final/"):
        return [f"{number}: -{int(hi)}" for number, (hi, _) in bounds]
    return [f"{number}: {int(lo)}-{int(hi)}" for number, (lo, hi) in bounds]


def test_three_attempts_leave_what_the_worked_example_says(folder: Folder) -> None:
    """The example that opens `muon_core.store.cleaning`, one table and so one row a step."""

    def attempt(steps: range, parent: RunWriter | None = None) -> RunWriter:
        point = {"parent": parent.attempt.id, "resume_seq": steps.start} if parent else {}
        writer = RunWriter(folder, "a", START, **point)
        for step in steps:
            writer.emit("val", step=step, tokens=0, val_loss=1.0)
        writer.flush()
        return writer

    first = attempt(range(100))
    second = attempt(range(60, 120), first)
    second.end(status="failed")
    compact(folder, grace_s=AT_ONCE)
    third = attempt(range(80, 150), first)
    third.end(status="done")
    assert segments(folder, "live/") == ["1: 0-100", "3: 80-150"]
    assert segments(folder, "final/table=val/") == ["2: -120", "3: -150"]

    checkpoint = f"checkpoints/a/latest/000000100.{first.attempt.id}.000000000100.0123456789abcdef.pt"
    folder.put(checkpoint, b"")  # it continues rows that 3 does not show
    compact(folder, grace_s=AT_ONCE)
    assert segments(folder, "live/") == ["1: 0-100", "2: 60-120"]
    assert segments(folder, "final/table=val/") == ["3: -150"]
    folder.delete([checkpoint])
    compact(folder, grace_s=AT_ONCE)
    assert segments(folder, "live/") == []
    assert [key.split("/")[2][:5] for key in keys(folder, "attempts/")] == ["00001", "00003"]
    assert [(row[1], row[3]) for row in rows(folder)] == [(seq, 1 if seq < 80 else 3) for seq in range(150)]


def test_a_checkpoint_of_the_failed_attempt_still_finds_its_rows(folder: Folder) -> None:
    first, _ = failed_then_resumed(folder)
    folder.put("checkpoints/a/latest.json", b"{}")
    compact(folder, grace_s=AT_ONCE)
    third = RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=10)
    write(third, range(5, 7))
    assert rows(folder) == [*expected("a", 5), *expected("a", 7, attempt=3)[5:]]
    third.end(status="done")
    assert compact(folder, grace_s=AT_ONCE).problems == {}
    plain = pl.read_parquet(f"{folder.root}/final/table=val/**/*.parquet", hive_partitioning=True)
    assert plain.sort("step")["attempt"].to_list() == [1, 1, 1, 1, 1, 3, 3]


def test_an_older_final_stays_until_its_tail_is_older_than_the_grace(folder: Folder) -> None:
    first, _ = failed_then_resumed(folder)
    folder.put("checkpoints/a/latest.json", b"{}")
    for path in folder.root.rglob("*"):
        os.utime(path, (0, 0))
    compact(folder, grace_s=600)
    assert [first.attempt.id in key for key in keys(folder, "final/table=val/")] == [True, False]
    (tail,) = (key for key in keys(folder, "live/table=val/") if first.attempt.id in key)
    assert tail == live_key("val", "a", first.attempt.id, 4, 12)
    assert [row["seq"] for row in decode(folder.get(tail)).to_pylist()] == [5, 7, 9, 11]


def test_an_attempt_that_goes_on_after_its_tail_was_kept_shows_each_row_once(folder: Folder) -> None:
    """It was cut off, not dead: its next version of the segment holds the rows of the tail too."""
    slow = RunWriter(folder, "a", START)
    write(slow, range(6))
    write_end_record(folder, slow.attempt, START | {"run_id": "a", "status": "failed"}, 12)
    compact(folder, grace_s=AT_ONCE)
    second = RunWriter(folder, "a", START, parent=slow.attempt.id, resume_seq=4)
    write(second, range(2, 5))
    second.end(status="done")
    folder.put("checkpoints/a/latest.json", b"{}")
    compact(folder, grace_s=AT_ONCE)
    write(slow, range(6, 8))
    RunWriter(folder, "a", START, parent=slow.attempt.id, resume_seq=16)
    assert rows(folder) == expected("a", 8)


def test_a_resume_point_beyond_the_stored_rows_is_refused(folder: Folder) -> None:
    first = RunWriter(folder, "a", START)
    write(first, range(4))
    with pytest.raises(StoreError, match="holds its rows up to 8 only"):
        RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=9)


@pytest.mark.parametrize(("lost", "missing"), [("live/table=train/", 4), ("live/", 8), ("live/table=val/", 4)])
def test_lost_rows_stop_compaction_of_their_run_and_nothing_is_removed(folder: Folder, lost: str, missing: int) -> None:
    """Also the last ones: the end record knows how many there were."""
    writer = RunWriter(folder, "a", START)
    write(writer, range(4))
    writer.end(status="stopped")
    (end,) = keys(folder, "final/table=runs/")
    stopped = decode(folder.get(end)).to_pylist()[0]
    folder.delete([end, *keys(folder, lost)])
    write_end_record(folder, writer.attempt, stopped | {"status": "done"}, writer.seq)
    before = keys(folder, "")
    done = compact(folder, grace_s=AT_ONCE)
    assert done.problems["a"].startswith(f"run a: {missing} of its 8 rows are missing")
    assert keys(folder, "") == before


def test_a_final_that_lacks_a_row_stops_the_removal(folder: Folder) -> None:
    finished(folder, "a")
    finished(folder, "b")
    (of_a,), (of_b,) = keys(folder, "final/table=val/run=a/"), keys(folder, "final/table=val/run=b/")
    folder.put(of_a, folder.get(of_b))
    before = keys(folder, "live/")
    assert "not those it is named after" in compact(folder, ["a"], grace_s=AT_ONCE).problems["a"]
    assert keys(folder, "live/") == before


def test_columns_of_a_newer_release_are_not_dropped_by_compaction(folder: Folder) -> None:
    writer = finished(folder, "a", status="stopped")
    (live, *_) = keys(folder, "live/table=val/")
    newer = pl.read_parquet(folder.uri(live)).with_columns(added=1.0)
    newer.write_parquet(folder.uri(live).replace("000000000006.", "000000000099."))
    assert "columns of a newer release (added)" in compact(folder, grace_s=AT_ONCE).problems["a"]
    assert writer.attempt.run == "a"


def test_two_finalizers_with_different_encoders_leave_one_final_a_table(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both list before either writes, the worst order."""
    writer = RunWriter(folder, "a", START)
    write(writer, range(6))
    meet = threading.Barrier(2, timeout=30)
    put = Folder.put

    def together(self: Folder, key: str, data: bytes) -> None:
        if key.startswith("final/table=train"):
            meet.wait()
        put(self, key, data)

    monkeypatch.setattr(Folder, "put", together)
    levels = iter((1, 3, 5, 7))
    encode = finalize.__globals__["encode"]

    def differently(data: Any, table: Any, **_: Any) -> bytes:
        return encode(data, table, row_group=next(levels))

    monkeypatch.setattr("muon_core.store.final.encode", differently)
    threads = [threading.Thread(target=finalize, args=(folder, "a")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys(folder, "final/table=train/")) == 2  # a reader may be on either
    assert rows(folder) == expected("a", 6)
    assert [row[2] for row in rows(folder, "train")] == list(range(6))
    monkeypatch.undo()
    writer.end(status="done")
    assert compact(folder, grace_s=AT_ONCE).problems == {}
    assert [len(keys(folder, f"final/table={name}/")) for name in ("train", "val")] == [1, 1]
    assert rows(folder) == expected("a", 6)


def test_compactions_at_once_agree(folder: Folder) -> None:
    for run in "abcd":
        finished(folder, run, status="stopped")
    threads = [threading.Thread(target=compact, args=(folder,), kwargs={"grace_s": AT_ONCE}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(folder) == [row for run in "abcd" for row in expected(run, 6)]
    compact(folder, grace_s=AT_ONCE)
    assert rows(folder) == [row for run in "abcd" for row in expected(run, 6)]
    assert len(keys(folder, "final/table=val/")) == 4
    assert len(keys(folder, "packs/table=val/")) == 2


def test_a_compaction_killed_anywhere_is_completed_by_the_next(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in "ab":
        finished(folder, run, status="stopped")
    calls = {"put": Folder.put, "delete": Folder.delete}
    for budget in range(12):
        left = [budget]

        def stingy(name: str, left: list[int] = left) -> Any:
            def call(self: Folder, *args: Any) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                calls[name](self, *args)

            return call

        for name in calls:
            monkeypatch.setattr(Folder, name, stingy(name))
        try:
            compact(folder, grace_s=AT_ONCE)
        except KeyboardInterrupt:
            assert rows(folder) == expected("a", 6) + expected("b", 6)
    monkeypatch.undo()
    compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "live/") == []
    assert rows(folder) == expected("a", 6) + expected("b", 6)


def test_a_full_pack_is_not_rewritten_when_runs_are_added(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in "ab":
        finished(folder, run)
    repack(folder, TRAIN, AT_ONCE, {})[0]
    before = keys(folder, "packs/table=train/")
    monkeypatch.setattr("muon_core.store.packs.PACK_BYTES", 30_000)
    for run in "cd":
        finished(folder, run)
    repack(folder, TRAIN, AT_ONCE, {})[0]
    assert set(before) < set(keys(folder, "packs/table=train/"))


def test_a_large_final_is_not_packed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in "ab":
        finished(folder, run)
    monkeypatch.setattr("muon_core.store.packs.PACK_BELOW", 10)
    assert repack(folder, VAL, AT_ONCE, {})[0] == 0


def test_a_run_that_went_back_to_before_its_first_row_is_packed_without_rows(folder: Folder) -> None:
    finished(folder, "a")
    first = RunWriter(folder, "b", START)
    write(first, range(4))
    first.end(status="failed")
    finalize(folder, "b")
    RunWriter(folder, "b", START, parent=first.attempt.id, resume_seq=1).end(status="failed")  # after one train row
    assert compact(folder, grace_s=AT_ONCE).problems == {}
    assert len(keys(folder, "packs/table=val/")) == 2
    assert rows(folder) == expected("a", 6)
    assert rows(folder, "train") == [*((run, 2 * s, s, 1) for run, n in (("a", 6), ("b", 1)) for s in range(n))]


def test_a_final_under_the_name_of_another_run_is_not_packed(folder: Folder) -> None:
    for run in ("a", "b"):
        finished(folder, run)
        finalize(folder, run)
    (key,) = keys(folder, "final/table=val/run=a/")
    (own,) = keys(folder, "final/table=val/run=b/")
    stranger = encode(decode(folder.get(key)).set_column(0, "run_id", [["x"] * 6]).cast(VAL.schema), VAL, final=True)
    folder.delete([own])
    folder.put(own.replace(str(digest_in(own)), digest(stranger)), stranger)
    problems: dict[str, str] = {}
    assert repack(folder, VAL, AT_ONCE, problems) == (0, [])
    assert problems["b"].endswith("holds rows of another run than its name says; delete it")
    assert keys(folder, "packs/table=val/") == []


def test_a_status_that_is_out_of_date_says_nothing_of_the_attempt_after(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is tried again just after compaction read that it is done: what the new attempt has is not complete."""
    first = finished(folder, "a", steps=4)

    def late(*arguments: Any, **options: Any) -> int:
        second = RunWriter(folder, "a", START, parent=first.attempt.id, resume_seq=8)
        second.emit("train", step=4, tokens=0)
        second.emit("val", step=4, tokens=0)
        second.flush()
        folder.delete(key for key in keys(folder, "live/table=train/") if second.attempt.id in key)
        return finalize(*arguments, **options)

    monkeypatch.setattr("muon_core.store.compaction.finalize", late)
    before = keys(folder, "final/")
    assert compact(folder, grace_s=AT_ONCE).problems == {}
    assert keys(folder, "final/") == before


def test_a_store_of_a_newer_release_is_not_compacted(folder: Folder) -> None:
    finished(folder, "a")
    folder.put("schema/00002.json", b"{}")
    before = keys(folder, "")
    with pytest.raises(StoreError, match="was written with schema 2, this release reads up to 1; update"):
        compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "") == before


def test_compact_with_nothing_to_do_lists_no_more_for_more_runs(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    listings = {"keys": Folder.keys, "stat": Folder.stat}

    def counting(name: str) -> Any:
        def ask(self: Folder, prefix: str) -> Any:
            asked.append(prefix)
            return listings[name](self, prefix)

        return ask

    counts = []
    for run in ("a", "b", "c", "d"):
        finished(folder, run)
        compact(folder, grace_s=AT_ONCE)
        with monkeypatch.context() as patch:
            for name in listings:
                patch.setattr(Folder, name, counting(name))
            asked.clear()
            compact(folder, grace_s=AT_ONCE)
        counts.append(len(asked))
    assert counts[1] == counts[3] > 0
    assert not [prefix for prefix in asked if "run=" in prefix]


@pytest.mark.parametrize("damage", [None, b"", b"{", b"x" * 99], ids=["gone", "empty", "cut", "other"])
@pytest.mark.parametrize("part", [".parquet", ".json"])
@pytest.mark.parametrize("table", ["val", "runs"])
def test_a_damaged_pack_is_passed_over_and_replaced(
    folder: Folder, table: str, part: str, damage: bytes | None
) -> None:
    for run in "ab":
        finished(folder, run)
    compact(folder, grace_s=AT_ONCE)
    before = {key: folder.get(key) for key in keys(folder, f"packs/table={table}/")}
    (key,) = (key for key in before if key.endswith(part))
    if damage is None:
        folder.delete([key])
    else:
        folder.put(key, damage)
    assert rows(folder) == expected("a", 6) + expected("b", 6)
    assert read_statuses(folder) == {"a": "done", "b": "done"}
    done = compact(folder, grace_s=AT_ONCE)
    assert (done.packs, done.problems) == (1, {})
    assert {key: folder.get(key) for key in keys(folder, f"packs/table={table}/")} == before


@pytest.mark.parametrize("table", ["val", "runs"])
def test_a_pack_damaged_inside_is_replaced(folder: Folder, table: str) -> None:
    for run in "ab":
        finished(folder, run)
    compact(folder, grace_s=AT_ONCE)
    (key,) = (key for key in keys(folder, f"packs/table={table}/") if key.endswith(".parquet"))
    data = folder.get(key)
    folder.put(key, data[:20] + bytes([data[20] ^ 1]) + data[21:])
    assert read_statuses(folder) == {"a": "done", "b": "done"}
    assert compact(folder, grace_s=AT_ONCE).packs == 1
    assert folder.get(key) == data


def test_pieces_of_a_damaged_pack_go_though_no_new_one_is_written(folder: Folder) -> None:
    for run in "ab":
        finished(folder, run)
    compact(folder, grace_s=AT_ONCE)
    (key,) = (key for key in keys(folder, "packs/table=val/") if key.endswith(".parquet"))
    folder.put(key, b"torn")
    RunWriter(folder, "b", START)
    compact(folder, grace_s=AT_ONCE)
    assert keys(folder, "packs/table=val/") == []
    assert rows(folder) == expected("a", 6)


def test_a_broken_run_is_a_problem_of_its_own_and_the_others_are_packed(folder: Folder) -> None:
    """Of c a start record is missing, of d the end record is damaged, of e the final."""
    writers = {run: finished(folder, run) for run in "abcde"}
    RunWriter(folder, "c", START, parent=writers["c"].attempt.id, resume_seq=12).end(status="failed")
    folder.delete([writers["c"].attempt.key])
    (end,) = keys(folder, "final/table=runs/run=d/")
    folder.put(end, b"x")
    (final,) = keys(folder, "final/table=val/run=e/")
    folder.put(final, b"x")
    done = compact(folder, grace_s=AT_ONCE)
    assert set(done.problems) == {"c", "d", "e"}
    assert "whose start record is missing" in done.problems["c"]
    assert "table=runs/run=d/" in done.problems["d"]
    assert "table=val/run=e/" in done.problems["e"]
    assert done.packs == 3
    packed = [key for key in keys(folder, "packs/table=val/") if key.endswith(".parquet")]
    assert {row["run_id"] for row in decode(folder.get(packed[0])).to_pylist()} == {"a", "b", "d"}
    assert read_statuses(folder)["a"] == "done"
    assert read_statuses(folder)["d"] == "running"
    again = compact(folder, grace_s=AT_ONCE)
    assert (again.packs, again.problems) == (0, done.problems)


def test_grace_counts_by_the_stores_clock(folder: Folder) -> None:
    finished(folder, "a")
    for path in folder.root.rglob("final/**/*.parquet"):
        os.utime(path, (0, 0))
    assert compact(folder, grace_s=600).removed == 4
