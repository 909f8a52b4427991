"""The folder a private Ray is given: names short enough for sockets, room, and nothing left behind."""

import os
import shutil
import socket
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from ray_jobs import ray_folder as module
from ray_jobs.ray_folder import LONGEST, ray_folder


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
        assert {Path(one), Path(another)} == set(temporary.iterdir())
        (Path(one) / "file").touch()
    assert list(temporary.iterdir()) == []


def test_the_longest_place_leaves_room_for_sockets(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    folder = temporary / ("x" * (LONGEST - len(str(temporary)) - 1))
    folder.mkdir()
    use(monkeypatch, folder)
    with ray_folder() as found:
        assert Path(found).parent == folder
        assert len(Path(found).name) == len(f"muon-{os.getpid()}-abcdefgh")
        stamp = "session_2026-11-28_22-47-32_389088_4194304"  # the largest number of a process on Linux
        sockets = folder / "muon-4194304-abcdefgh" / stamp / "sockets"
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
        assert Path(found).parent == temporary
    monkeypatch.setattr(module, "FALLBACK", str(folder))
    with pytest.raises(ValueError, match=f"{LONGEST} ASCII letters at most.*set TMPDIR to one"), ray_folder():
        pass


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(OSError, match=f"{temporary} has less than 64 MB left"), ray_folder():
        pass


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
