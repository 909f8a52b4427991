"""The folder a private Ray is given: names short enough for sockets, room, and nothing left behind."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from ray_jobs import ray_folder as module
from ray_jobs.ray_folder import LONGEST, OBJECT_STORE, complaint, object_folder, ray_folder, watched

SOON_S = 60


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for temporary files is a short one, and there is no other."""
    folder = Path(f"/tmp/m{os.getpid()}")
    folder.mkdir()
    use(monkeypatch, folder)
    monkeypatch.setattr(module, "FALLBACK", str(folder))
    yield folder  # type: ignore[misc]
    shutil.rmtree(folder)


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))


def test_it_is_new_and_gone_at_the_end(temporary: Path) -> None:
    with ray_folder() as one, ray_folder() as another:
        assert {Path(one).parent, Path(another).parent} == set(temporary.iterdir())
        (Path(one) / "file").touch()
    assert list(temporary.iterdir()) == []


def test_it_stays_closed_to_other_users_though_ray_opens_what_it_is_given(temporary: Path) -> None:
    with ray_folder() as found:
        Path(found).chmod(0o777)
        (outer,) = temporary.iterdir()
        assert (stat.S_IMODE(outer.stat().st_mode), Path(found).parent) == (0o700, outer)


def test_the_longest_place_leaves_room_for_sockets(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    folder = temporary / ("x" * (LONGEST - len(str(temporary)) - 1))
    folder.mkdir()
    use(monkeypatch, folder)
    with ray_folder() as found:
        assert Path(found).parent.parent == folder
        assert len(found) - len(str(folder)) == len(f"/muon-{os.getpid()}-abcdefgh/r")
        stamp = "session_2026-11-28_22-47-32_389088_4194304"  # the largest number of a process on Linux
        sockets = folder / "muon-4194304-abcdefgh" / "r" / stamp / "sockets"
        sockets.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(sockets / "plasma_store.tmp"))


@pytest.mark.parametrize("name", ["x" * LONGEST, "ä", "missing/"])
def test_a_place_that_will_not_do_gives_way_to_another(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, name: str
) -> None:
    folder = temporary / name
    if name != "missing/":
        folder.mkdir()
    use(monkeypatch, folder)
    with ray_folder() as found:
        assert Path(found).parent.parent == temporary
    monkeypatch.setattr(module, "FALLBACK", str(folder))
    with pytest.raises(ValueError, match=f"{LONGEST} ASCII letters at most.*set TMPDIR to one"), ray_folder():
        pass


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(OSError, match=f"{temporary} has less than 64 MB left"), ray_folder():
        pass


@pytest.mark.parametrize(("free", "is_memory"), [(OBJECT_STORE, True), (OBJECT_STORE - 1, False)])
def test_shared_objects_lie_in_memory_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, free: int, is_memory: bool
) -> None:
    """Docker gives 64 MB."""
    memory, usage = temporary / "memory", namedtuple("usage", "total used free")
    memory.mkdir()
    monkeypatch.setattr(module, "SHARED_MEMORY", str(memory))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 0, free))
    assert object_folder(str(temporary)) == str(memory if is_memory else temporary)
    memory.rmdir()
    assert object_folder(str(temporary)) == str(temporary)


STACK = "[2026-11-29 01:43:56,110 E 3623 3626] (gcs_server) logging.cc:474: *** SIGABRT received ***"


@pytest.mark.parametrize(
    ("server", "lines", "words"),
    [
        ("gcs_server", ["E1129 01:41:23.294 1031 tcp_server_posix.cc:378]      Limit reached."] * 2, "Limit reached."),
        ("gcs_server", [
            "[symbolize_elf.inc : 1012] RAW: /proc/self/task/3623/maps: errno=24",
            "[2026-11-29 01:43:56,110 E 3623 3629] (gcs_server) logging.cc:118: Unhandled. what(): epoll: Too many",
            "/site-packages/ray/core/src/ray/gcs/gcs_server(+0x14c484c) [0x5629a55aa84c]", STACK], "epoll: Too many"),
        ("raylet", ["[2026-11-29 01:43:56,110 C 36 36] (raylet) store.cc:1:  Check failed: memory", STACK],
         "Check failed: memory"),
        ("raylet", ["[2026-11-29 01:43:56,110 C 36 36] (raylet) store.cc:1:  An unexpected system state has occurred. "
                    "You have likely discovered a bug in Ray. Check failed: memory", STACK], "Check failed: memory"),
        ("raylet", ["[2026-11-29 01:41:04,884 W 1037 1037] (raylet) rpc_client.h:153: Failed within 5 seconds."], None),
        ("monitor", [STACK], None),
    ],
)  # fmt: skip
def test_a_ray_that_did_not_start_has_said_why_in_its_logs(
    tmp_path: Path, server: str, lines: list[str], words: str | None
) -> None:
    logs = tmp_path / "session_2026-11-29_01-43-56_055921_3615" / "logs"
    logs.mkdir(parents=True)
    (logs / f"{server}.err").write_text("\n".join(lines) + "\n")
    assert complaint(str(tmp_path)) == words


def test_what_a_killed_process_left_is_removed_and_nothing_else(temporary: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    orphan, mine, other = (temporary / name for name in (f"muon-{dead.pid}-a", f"muon-{os.getpid()}-a", "muon-notes-1"))
    for folder in (orphan, mine, other):
        folder.mkdir()
        (folder / "file").touch()
    with ray_folder():
        assert not orphan.exists()
        assert (mine / "file").exists()
        assert (other / "file").exists()


def holder(file: Path, *words: str) -> "subprocess.Popen[str]":
    """A process that has `file` open, and `words` in its command line."""
    script = "import sys, time; file = open(sys.argv[1]); print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(file), *words], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_of_a_killed_sweeps_ray_are_ended_with_its_folder_and_nobody_else(temporary: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    log = temporary / f"muon-{dead.pid}-a" / "log"
    log.parent.mkdir()
    for file in (log, temporary / "log"):
        file.touch()
    agent, reader, other = holder(log, "ray::Agent"), holder(log), holder(temporary / "log", "ray::Agent")
    with agent, reader, other:
        try:
            with ray_folder():
                assert agent.wait(SOON_S) == -signal.SIGKILL
                assert (reader.poll(), other.poll()) == (None, None)
        finally:
            for process in (agent, reader, other):
                process.kill()
    assert not log.parent.exists()


SWEEP = """
import os, signal, sys, tempfile
from ray_jobs.ray_folder import ray_folder, watched

tempfile.tempdir = sys.argv[1]
with ray_folder() as folder, ray_folder(), watched(folder):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_its_folders_removed_at_once(temporary: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", SWEEP, str(temporary)], check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + SOON_S
    while found := list(temporary.iterdir()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_a_block_that_fails_under_watch_leaves_the_folder_to_its_own_and_no_process(temporary: Path) -> None:
    with ray_folder() as folder:
        log = Path(folder) / "log"
        log.touch()
        with holder(log, "ray::Agent") as agent:
            try:
                with pytest.raises(RuntimeError, match="ours"), watched(folder):
                    raise RuntimeError("ours")
                assert agent.wait(SOON_S) == -signal.SIGKILL
            finally:
                agent.kill()
        assert log.exists()
