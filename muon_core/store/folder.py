"""A folder as a place for objects: each is there whole or not at all, whenever the process or the machine stops.

An object is written aside under a hidden name, synced to the disk, and renamed, which file systems do in one step; then
the folder is synced, which makes the new name last. A process killed before the rename leaves the hidden file: no
listing shows it, and `remove_leftovers` clears it a day later.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from muon_core.store.storage import Listed, StoreError, StoreUnwritable, put_side_by_side

SYNCS_AT_ONCE = 8
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class Folder:
    """Objects as files below a folder; a write is a temporary file, fsync, rename, fsync of the folder."""

    is_local = True

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = self.place = str(self.root)
        self._base = f"{self.url.rstrip('/')}/"

    def put(self, key: str, data: bytes | memoryview) -> None:
        path = self.root / key
        # The dot and the ending hide leftovers of a killed writer from every Parquet reader.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            _make_folder(path.parent)
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            _fsync_folder(path.parent)  # without it a power cut may leave an empty file, which reads as no rows
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            reason = error.strerror or error
            raise StoreUnwritable(
                f"cannot write to {self.root}: {reason}; free space there or choose another store"
            ) from error

    def get(self, key: str) -> bytes:
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"cannot read {self.root / key}: {error.strerror}; check its permissions") from error

    def get_many(self, keys: Iterable[str]) -> builtins.list[bytes]:
        return [self.get(key) for key in keys]

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        return [(key, size) for key, size, _ in self.stat(prefix)]

    def keys(self, prefix: str) -> builtins.list[str]:
        skip = len(self._base)
        with self._reading():
            return sorted([entry.path[skip:] for entry in _files(self._base + prefix) if _is_there(entry)])

    def stat(self, prefix: str) -> builtins.list[Listed]:
        found, skip = [], len(self._base)
        with self._reading():
            for entry in _files(self._base + prefix):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # removed between listing and stat, as if listed a moment later
                found.append(Listed(entry.path[skip:], status.st_size, status.st_mtime))
        return sorted(found)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot read {self.root}: {error.strerror}; check its permissions") from error

    def put_many(self, objects: Mapping[str, bytes]) -> None:
        put_side_by_side(self.put, objects, SYNCS_AT_ONCE)

    def delete(self, keys: Iterable[str]) -> None:
        try:
            for key in keys:
                (self.root / key).unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"cannot remove objects from {self.root}: {reason}; check its permissions") from error

    def remove_leftovers(self, older_than_s: float) -> None:
        """Remove temporary files of killed writers, whose last byte was written that long ago."""
        since = time.time() - older_than_s
        for folder, _, names in os.walk(self.root):
            for name in filter(_LEFTOVER.fullmatch, names):
                with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                    if os.stat(path := os.path.join(folder, name)).st_mtime < since:
                        os.unlink(path)

    def uri(self, key: str) -> str:
        return self._base + key

    def polars_options(self) -> dict[str, Any]:
        return {}


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    """Every file below `folder` but the hidden ones; none if it does not exist."""
    folders = [folder]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif not entry.name.startswith("."):
                    yield entry


def _is_there(entry: os.DirEntry[str]) -> bool:
    """False for a link to nothing, which has no size and is no object."""
    return not entry.is_symlink() or os.path.exists(entry.path)


def _make_folder(path: Path) -> None:
    """Create a folder and those above it, durably: each new name is synced in the folder that holds it."""
    new = list(takewhile(lambda folder: not folder.is_dir(), [path, *path.parents]))
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        _fsync_folder(folder.parent)


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
