"""The folder of a private Ray: sockets, logs and Tune's bookkeeping, all gone when the sweep ends.

Ray puts sockets below the folder it is given, and the name of a socket ends at 107 bytes; batch systems give folders
for temporary files whose names alone are half of that. A sweep that is killed leaves its folder behind, for the next
one of the same user to remove.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "muon-"  # then the id of the process the folder belongs to
NEEDED = 64 << 20  # bytes: what Ray writes in a long sweep is some MB
# .../muon-4194304-abcdefgh/session_2026-11-28_22-47-32_389088_4194304/sockets/plasma_store.tmp
LONGEST = 107 - len("/muon-4194304-abcdefgh/session_2026-11-28_22-47-32_389088_4194304/sockets/plasma_store") - 4
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
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _remove_orphans(root: str) -> None:
    """Folders of this user whose process is gone; a number that another process has by now keeps one till later."""
    for folder in Path(root).glob(f"{PREFIX}[0-9]*-*"):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):  # somebody else removes it at the same moment
            if number.isdecimal() and folder.stat().st_uid == os.getuid() and not _is_alive(int(number)):
                shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
