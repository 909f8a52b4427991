"""What all processes of a test session share: one folder, and turns at what only one of them may do at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def shared_folder(tmp_path_factory: pytest.TempPathFactory, config: pytest.Config) -> Path:
    """The session's own temporary folder; a worker of a parallel run has one below it for itself."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(config, "workerinput") else folder


@contextmanager
def turn(lock: Path) -> Iterator[None]:
    """Alone until the block ends, among all who name the same file; who dies in it gives it up."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
