"""One S3 server of each kind for all processes of a test session: who needs it first starts it, it ends after the last.

Whoever uses a server holds a shared lock on a file, which the kernel drops when a process ends, however it ends. The
keeper, a process of its own, runs the server and waits for that lock alone: nothing is left behind, not even by a
session that was killed.

Usage: python shared.py NAME FOLDER   (the keeper; `shared` starts it)
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from servers.s3_servers import S3Server, running
from support.session import turn

_keepers: list[subprocess.Popen[bytes]] = []


@contextmanager
def shared(name: str, folder: Path) -> Iterator[S3Server]:
    """The server `name` of the session, which keeps what it needs in `folder`. Raises RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users").open("a") as users:
        with turn(folder / "door"):  # one comes in at a time
            fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper is leaving
            server = _read(folder) or _start(name, folder)
        yield server


def wait_for_keepers() -> None:
    """Until the servers this process started have ended, which is when nobody uses them any more."""
    while _keepers:
        _keepers.pop().wait()


def _start(name: str, folder: Path) -> S3Server:
    with (folder / "keeper.log").open("wb") as log:
        # A session of its own: Ctrl-C in the terminal is for the tests, which still need the server while they end.
        keeper = subprocess.Popen(
            [sys.executable, __file__, name, str(folder)], stdout=log, stderr=log, start_new_session=True
        )
    while not (server := _read(folder)):
        if keeper.poll() is not None:
            raise RuntimeError((folder / "keeper.log").read_text().strip().rpartition("RuntimeError: ")[2])
        time.sleep(0.05)
    _keepers.append(keeper)
    return server


def _read(folder: Path) -> S3Server | None:
    """Where the server can be reached, if it runs."""
    try:
        return S3Server(**json.loads((folder / "server.json").read_text()))
    except FileNotFoundError:
        return None


def keep(name: str, folder: Path) -> None:
    """Run the server until nobody uses it; who comes while it is stopped waits, and starts another."""
    told = folder / "server.json"
    with (folder / "users").open("a") as users, running(name, folder / "objects") as server:
        told.with_suffix(".new").write_text(json.dumps(asdict(server)))
        told.with_suffix(".new").rename(told)
        try:
            fcntl.flock(users, fcntl.LOCK_EX)
        finally:
            told.unlink()


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
