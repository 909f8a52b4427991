"""The folder of a private Ray: sockets, logs and Tune's bookkeeping, all gone when the sweep ends.

Ray puts sockets below the folder it is given, and the name of a socket ends at 107 bytes; batch systems give folders
for temporary files whose names alone are half of that. A sweep that is killed cannot clear up: Ray's agents wait a
minute then for a server that is gone. So a process watches over it, this file as a program, and does what the next
sweep of the same user does, too: end whom a dead one left behind, and remove its folders.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "muon-"  # then the id of the process the folder belongs to
NEEDED = 64 << 20  # bytes: what Ray writes in a long sweep is some MB
INNER = "r"  # Ray opens the folder it is given to all users; the one around it stays ours alone
# .../muon-4194304-abcdefgh/r/session_2026-11-28_22-47-32_389088_4194304/sockets/plasma_store.tmp
LONGEST = 107 - len("/muon-4194304-abcdefgh/r/session_2026-11-28_22-47-32_389088_4194304/sockets/plasma_store") - 4
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # Ray's files in it have no names
OBJECT_STORE = 128 << 20  # bytes; what goes through it is some configs
# [2026-11-29 01:43:56,110 E 3623 3629] (gcs_server) logging.cc:118: Unhandled exception: ... what(): epoll: Too many
# E1129 01:41:23.294438354    1031 tcp_server_posix.cc:378]              File descriptor limit reached. Retrying.
COMPLAINT = re.compile(
    r"^(?:\[.*? [EC] \d+ \d+\] \(\w+\) \S+:|E\d{4} .*?\]) +(?:.*what\(\): |.*(?=Check failed))?(.{1,100})", re.M
)
FALLBACK = "/tmp"  # noqa: S108  # what is made there has a name of its own


@contextlib.contextmanager
def ray_folder() -> Iterator[str]:
    """A new folder for Ray, removed at the end; those of killed processes are removed, too.

    Raises: ValueError if there is no place for one whose name Ray can use; OSError if there is no room.
    """
    root = _root(tempfile.gettempdir(), FALLBACK)
    _remove_orphans(root)
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root)
    try:
        inner = os.path.join(folder, INNER)
        os.mkdir(inner)
        yield inner
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def watched(folder: str) -> Iterator[None]:
    """End what is left of Ray with the block; should this process be killed before, another does it, and clears up."""
    command = [sys.executable, "-I", __file__, str(Path(folder).parents[1]), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        try:
            yield
        finally:
            watcher.kill()  # before its stdin is closed
            _end_users(Path(folder))


def _watch(root: str, process: int) -> None:
    """Wait for the end of `process`, which holds the other end of stdin, and remove what it left."""
    sys.stdin.read()
    _remove_orphans(root, dead=process)


def object_folder(folder: str) -> str:
    """Where Ray's shared objects go: to memory, or `folder` if that is missing, read-only, or as small as Docker's."""
    is_fit = os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= OBJECT_STORE
    return SHARED_MEMORY if is_fit else folder


def complaint(folder: str) -> str | None:
    """The first error in the logs of Ray's servers: a Ray that does not start says itself only that it waited."""
    for server in ("gcs_server", "raylet"):
        for log in Path(folder).glob(f"session_2*/logs/{server}.err"):
            if found := COMPLAINT.search(log.read_text(errors="replace")):
                return found[1].strip()
    return None


def _root(*candidates: str) -> str:
    """The first of the folders in which Ray's sockets can have names."""
    fitting = [root for root in candidates if root.isascii() and len(root) <= LONGEST and os.access(root, os.W_OK)]
    if not fitting:
        raise ValueError(
            f"Ray's sockets need a folder with a short name, {LONGEST} ASCII letters at most, that can be written to; "
            f"set TMPDIR to one ({' and '.join(dict.fromkeys(candidates))} will not do)"
        )
    if shutil.disk_usage(fitting[0]).free < NEEDED:
        raise OSError(errno.ENOSPC, f"{fitting[0]} has less than {NEEDED >> 20} MB left for Ray")
    return fitting[0]


def _remove_orphans(root: str, dead: int | None = None) -> None:
    """Folders of this user whose process is `dead` or gone; a number that another has by now keeps one till later."""
    for folder in Path(root).glob(f"{PREFIX}[0-9]*-*"):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):  # somebody else removes it at the same moment
            is_mine = number.isdecimal() and folder.stat().st_uid == os.getuid()
            if is_mine and (int(number) == dead or not _is_alive(int(number))):
                _end_users(folder)
                shutil.rmtree(folder, ignore_errors=True)


def _end_users(folder: Path) -> None:
    """Kill the processes of Ray that have files in `folder` open, but for this one."""
    inside = f"{os.path.realpath(folder)}/"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is another user's, or ends meanwhile
            is_of_ray = re.search(rb"ray::|/ray/", (process / "cmdline").read_bytes())
            is_user = any(os.path.realpath(file).startswith(inside) for file in (process / "fd").iterdir())
            if is_of_ray and is_user and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    _watch(sys.argv[1], int(sys.argv[2]))
