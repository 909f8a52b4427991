"""`muon logs`: what it shows of attempts and ranks, what it leaves out, and that it follows a run to its end."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import test_cli
from support.analysis_fixtures import FakeRun, write_store
from support.sweeps import MUON
from test_cli import Muon

from muon_core.store.folder import Folder
from muon_core.store.keys import LogPart
from muon_core.store.run_log import RunLog
from muon_core.store.writer import RunWriter

muon = test_cli.muon
RUN = "muon-s1-0badcafe"
START, LATER = "20260101T120000000000.aa", "20260101T123000000000.bb"
HEADERS = ("== attempt started 2026-01-01 12:00:00 UTC ==", "== attempt started 2026-01-01 12:30:00 UTC ==")


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    """Two runs, of which one has a log."""
    storage = write_store(tmp_path / "results", [FakeRun("muon", 1, {0: 6.9}), FakeRun("adamw", 1, {0: 6.9})])
    put(storage, START, 0, "one\ntwo\n")
    put(storage, LATER, 0, "three\nfour")
    return storage


def put(storage: Folder, start: str, rank: int, text: str) -> None:
    log = RunLog(storage, RUN, start, rank)
    log.write(text.encode())
    log.flush()


def test_attempts_follow_each_other_under_a_line_each(muon: Muon, storage: Folder) -> None:
    done = muon("logs", "muon")
    assert done.code == 0
    assert done.out.splitlines() == [HEADERS[0], "one", "two", HEADERS[1], "three", "four"]
    assert done.err == f"next: muon runs show {RUN}\n"


def test_lines_of_several_ranks_say_whose_they_are(muon: Muon, storage: Folder) -> None:
    put(storage, LATER, 1, "other\n")
    assert muon("logs", "muon").out.splitlines()[-3:] == ["[0] three", "[0] four", "[1] other"]
    assert muon("logs", "muon", "--rank", "1").out.splitlines() == [HEADERS[1], "other"]


def test_tail_is_of_the_newest_attempt(muon: Muon, storage: Folder) -> None:
    assert muon("logs", "muon", "--tail", "1").out.splitlines() == [HEADERS[1], "four"]
    assert muon("logs", "muon", "--tail", "9").out.splitlines() == [HEADERS[1], "three", "four"]
    assert muon("logs", "muon", "--tail", "0").out == ""


def test_bytes_that_are_not_kept_are_told(muon: Muon, storage: Folder) -> None:
    storage.put(LogPart(RUN, LATER, 0, 1010, 1016).key, b"\nlast\n")
    assert muon("logs", "muon").out.splitlines()[-4:] == ["four", "[... 1,000 bytes left out ...]", "", "last"]
    rank = json.loads(muon("logs", "muon", "--json").out)["attempts"][1]["ranks"][0]
    assert rank == {
        "rank": 0, "left_out": 1000, "text": "three\nfour\n[... 1,000 bytes left out ...]\n\nlast\n"
    }  # fmt: skip


def test_json_holds_attempts_and_ranks(muon: Muon, storage: Folder) -> None:
    told = json.loads(muon("logs", "muon", "--json").out)
    assert (told["run_id"], told["status"]) == (RUN, "done")
    assert told["attempts"][0] == {
        "started_at": "2026-01-01T12:00:00+00:00", "ranks": [{"rank": 0, "left_out": 0, "text": "one\ntwo\n"}]
    }  # fmt: skip
    assert muon("logs", "muon", "--json", "-f").err == (
        "muon: --json gives the whole log; leave -f and --tail out. See `muon logs --help`.\n"
    )


def test_a_run_without_a_log_is_one_line_and_what_is_next(muon: Muon, storage: Folder) -> None:
    quiet = muon("logs", "adamw")
    assert (quiet.code, quiet.out) == (0, "")
    assert quiet.err == (
        "no log: adamw-s1-0badcafe has printed nothing\nnext: muon runs show adamw-s1-0badcafe\n"
    )  # fmt: skip
    assert muon("logs", "muon", "--rank", "3").err.startswith(f"no log: rank 3 of {RUN} has printed nothing\n")
    assert json.loads(muon("logs", "adamw", "--json").out)["attempts"] == []
    unknown = muon("logs", "nobody")
    assert unknown.code == 2
    assert unknown.err.startswith("muon: no run begins with 'nobody' in ")


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_it_without_a_word(storage: Folder) -> None:
    put(storage, LATER, 1, "a line\n" * 50_000)
    command = [MUON, "logs", RUN, "--store", storage.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def follow(storage: Folder) -> "subprocess.Popen[str]":
    """`muon logs -f` of the run, when it has shown its first line."""
    command = [MUON, "logs", RUN, "-f", "--store", storage.url]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("== attempt started ")
    assert process.stdout.readline() == "first\n"
    return process


@pytest.fixture
def running(tmp_path: Path) -> tuple[Folder, RunWriter, RunLog]:
    storage = Folder(tmp_path / "live")
    writer, log = RunWriter(storage, RUN, {"seed": 1}), RunLog(storage, RUN, START, 0)
    log.write(b"first\nsec")
    log.flush()
    return storage, writer, log


@pytest.mark.slow
def test_follow_shows_what_comes_and_ends_with_the_run(running: tuple[Folder, RunWriter, RunLog]) -> None:
    storage, writer, log = running
    process = follow(storage)
    log.write(b"ond\nthird\n")
    log.flush()
    assert process.stdout is not None
    assert process.stdout.readline() == "second\n"
    writer.end(status="failed", error="boom")
    log.write(b"boom")
    log.flush()
    assert process.stdout.read() == "third\nboom\n"
    assert process.communicate(timeout=60)[1] == f"next: muon runs show {RUN} --store {storage.url}\n"
    assert process.returncode == 0


@pytest.mark.slow
def test_follow_ends_at_ctrl_c_without_a_word(running: tuple[Folder, RunWriter, RunLog]) -> None:
    process = follow(running[0])
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.read() == "sec\n"
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 130
