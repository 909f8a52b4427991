"""The lease: one process trains a run, a dead one's is taken over, and of two at the same moment one goes on."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from muon_core import lease as lease_module
from muon_core.lease import HeldElsewhere, Lease, claim
from muon_core.progress import Progress
from muon_core.store import ledger
from muon_core.store.folder import Folder
from muon_core.store.ledger import LOCAL, Rate, close_entry, is_alive, new_entry, read_alive, read_entries, write_entry
from muon_core.store.storage import StoreUnavailable


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def ended() -> Iterator[list[Lease]]:
    """Leases put here are ended after the test."""
    held: list[Lease] = []
    yield held
    for each in held:
        each.end("stopped")


def test_a_held_run_is_refused_with_who_trains_it(storage: Folder, ended: list[Lease]) -> None:
    ended.append(claim(storage, "r", LOCAL))
    with pytest.raises(HeldElsewhere, match=f"process {os.getpid()} on ") as refused:
        claim(storage, "r", LOCAL)
    assert refused.value.holder.attempt == ended[0].attempt
    assert set(read_alive(storage, ["r", "other"])) == {"r"}
    claim(storage, "other", LOCAL).end("done")


def test_a_run_that_ended_is_taken_up_under_the_next_number(storage: Folder) -> None:
    first = claim(storage, "r", LOCAL)
    first.end("failed", error="out of luck")
    second = claim(storage, "r", LOCAL)
    second.end("done")
    second.end("failed")  # what comes later is not believed
    entries = read_entries(storage)
    assert [(entry.number, entry.status, entry.error) for entry in entries] == [
        (1, "failed", "out of luck"),
        (2, "done", None),
    ]
    assert read_alive(storage, ["r"]) == {}


def test_who_found_nothing_to_train_leaves_no_entry(storage: Folder) -> None:
    claim(storage, "r", LOCAL).withdraw()
    assert read_entries(storage) == []


def test_a_dead_process_of_this_machine_is_taken_over_at_once_and_its_entry_closed(storage: Folder) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = replace(new_entry("r", "00001.aa", LOCAL), pid=process.pid, born=ledger.born(process.pid))
    write_entry(storage, theirs)
    with pytest.raises(HeldElsewhere):
        claim(storage, "r", LOCAL)
    process.kill()
    process.communicate()
    claim(storage, "r", LOCAL).end("done")
    told = [(entry.status, entry.failure) for entry in read_entries(storage)]
    assert told == [("lost", "infrastructure"), ("done", None)]


def test_what_ended_an_attempt_without_a_word_is_kept_where_it_is_known(storage: Folder) -> None:
    for number in (1, 2):
        write_entry(storage, new_entry("r", f"{number:05d}.aa", LOCAL))  # alive, as this process is
    close_entry(storage, read_entries(storage)[0], "failed", failure="program")
    claim(storage, "r", LOCAL, after="00002.aa", failure="hang").end("lost", failure="infrastructure")
    third = read_entries(storage)[-1].attempt  # whose own process only saw that it was left alone
    claim(storage, "r", LOCAL, after=third, failure="out_of_memory").end("lost", failure="infrastructure")
    close_entry(storage, read_entries(storage)[-1], "failed", failure="infrastructure", error="too often")
    close_entry(storage, read_entries(storage)[-1], "lost", failure="infrastructure")  # which says no more
    told = [(entry.status, entry.failure) for entry in read_entries(storage)]
    assert told == [
        ("failed", "program"), ("lost", "hang"), ("lost", "out_of_memory"), ("failed", "infrastructure")
    ]  # fmt: skip


def test_a_pid_that_was_given_out_again_is_no_sign_of_life(storage: Folder) -> None:
    write_entry(storage, replace(new_entry("r", "00001.aa", LOCAL), born="1"))
    assert read_alive(storage, ["r"]) == {}
    assert not is_alive(replace(new_entry("r", "00001.aa", LOCAL), born="1"), time.time())


def test_another_machine_counts_as_dead_after_a_minute_of_silence(storage: Folder) -> None:
    theirs = replace(new_entry("r", "00001.aa", LOCAL), machine="elsewhere", pid=1)
    write_entry(storage, theirs)
    with pytest.raises(HeldElsewhere):
        claim(storage, "r", LOCAL)
    long_ago = time.time() - ledger.STALE_S - 1
    os.utime(storage.root / theirs.key, (long_ago, long_ago))
    claim(storage, "r", LOCAL).end("done")


def test_an_attempt_known_to_be_over_is_not_waited_for(storage: Folder) -> None:
    write_entry(storage, replace(new_entry("r", "00001.aa", LOCAL), machine="elsewhere"))
    claim(storage, "r", LOCAL, after="00001.aa").end("done")
    assert [entry.status for entry in read_entries(storage)] == ["lost", "done"]


def test_signs_of_life_tell_how_far_the_run_is(storage: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.01)
    step = iter(range(5, 10**9))
    held = claim(storage, "r", Rate(usd_per_hour=3600.0, gpus=2.0))
    held.follow(lambda: Progress("r", next(step), 10**9, 3.0, 2.5, 0, None, 0.0))
    while (entry := read_entries(storage)[0]).step < 20:
        time.sleep(0.01)
    held.end("stopped")
    assert (entry.first_step, entry.steps, entry.val_loss, entry.status) == (5, 10**9, 2.5, "running")
    assert entry.usd == pytest.approx(entry.seconds)
    assert entry.gpu_hours == pytest.approx(2 * entry.seconds / 3600)


def test_a_store_that_is_away_for_a_moment_does_not_end_the_run(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.01)
    held = claim(storage, "r", LOCAL)
    (path,) = (storage.root / "ledger").iterdir()
    away = path.with_name("away")
    path.rename(away)
    path.write_text("in the way")
    time.sleep(0.1)
    path.unlink()
    away.rename(path)
    held.end("done")
    assert [entry.status for entry in read_entries(storage)] == ["done"]


def test_of_many_that_come_at_the_same_moment_one_trains(
    storage: Folder, ended: list[Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.3)
    for number in range(10):
        got: list[Lease] = []
        together = threading.Barrier(4)

        def come(run: str = f"r{number}", got: list[Lease] = got, together: threading.Barrier = together) -> None:
            together.wait()
            with suppress(HeldElsewhere):
                got.append(claim(storage, run, LOCAL))

        threads = [threading.Thread(target=come) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended += got
        assert len(got) <= 1
        if not got:  # each saw another and left: who asks again gets it
            ended.append(claim(storage, f"r{number}", LOCAL))


def test_an_entry_that_tells_an_end_is_not_closed_again(storage: Folder) -> None:
    claim(storage, "r", LOCAL).end("done")
    close_entry(storage, read_entries(storage)[0], "lost")
    assert read_entries(storage)[0].status == "done"


def test_fields_of_a_later_release_are_passed_over_and_a_damaged_entry_is_named(storage: Folder) -> None:
    claim(storage, "r", LOCAL).end("done")
    (path,) = (storage.root / "ledger/r").iterdir()
    path.write_text(path.read_text().replace('"host"', '"mood": "good", "host"', 1))
    assert read_entries(storage)[0].status == "done"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"r/00001.*is no entry of the ledger"):
        read_entries(storage)


def test_an_entry_that_was_taken_back_meanwhile_is_passed_over(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(storage, "r", LOCAL).end("done")
    going = claim(storage, "r2", LOCAL)
    get_many = Folder.get_many

    def taken_back(self: Folder, keys: Iterable[str]) -> list[bytes]:
        wanted = list(keys)
        going.withdraw()
        return get_many(self, wanted)

    monkeypatch.setattr(Folder, "get_many", taken_back)
    assert [entry.run_id for entry in read_entries(storage)] == ["r"]


def test_an_entry_this_process_could_not_close_is_no_rival(storage: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    held = claim(storage, "r", LOCAL)
    with monkeypatch.context() as away:
        away.setattr(Folder, "put", _refuse)
        held.end("stopped")
    assert read_entries(storage)[0].status == "running"
    claim(storage, "r", LOCAL).end("done")
    assert [entry.status for entry in read_entries(storage)] == ["lost", "done"]


def _refuse(*_: object) -> None:
    raise StoreUnavailable("away")
