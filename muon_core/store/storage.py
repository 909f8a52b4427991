"""Where objects lie, a folder or an S3 bucket: immutable, under `/`-separated keys, written whole or not at all."""

from __future__ import annotations

import builtins
import contextlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LEFTOVER_S = 86_400.0  # a temporary file not written to for a day is no live writer's
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class StoreError(ValueError):
    """The results store cannot be reached, read or written; the message says what to do."""


class StoreUnavailable(StoreError):
    """The store did not answer, or asked to slow down: the same request may succeed later."""


class Listed(NamedTuple):
    """An object as a listing shows it; `modified` is in seconds since 1970, by the store's clock."""

    key: str
    size: int
    modified: float


class Storage(Protocol):
    """What the results store needs of a place to keep objects."""

    url: str

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write one object, atomically and durably. Repeating a put with the same bytes is harmless."""

    def get(self, key: str) -> bytes:
        """Bytes of one object. Raises FileNotFoundError if there is none."""

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        """(key, size in bytes) of the objects whose key starts with `prefix` (ends in `/` or is empty), sorted."""

    def stat(self, prefix: str) -> builtins.list[Listed]:
        """`list` with the time each object was written."""

    def get_many(self, keys: Iterable[str]) -> builtins.list[bytes]:
        """Bytes of several objects, in the order of `keys`. Raises FileNotFoundError if one is missing."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; missing ones are no error."""

    def uri(self, key: str) -> str:
        """What Polars opens to read `key`."""

    def polars_options(self) -> dict[str, Any]:
        """Keyword arguments that let `pl.scan_parquet` open a `uri`."""


class Folder:
    """Objects as files below a folder; a write is a temporary file, fsync, rename, fsync of the folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)

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
            raise StoreError(
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

    def stat(self, prefix: str) -> builtins.list[Listed]:
        start = len(str(self.root).rstrip("/")) + 1
        try:
            return sorted(Listed(path[start:], size, modified) for path, size, modified in _files(self.root / prefix))
        except OSError as error:
            raise StoreError(f"cannot read {self.root}: {error.strerror}; check its permissions") from error

    def delete(self, keys: Iterable[str]) -> None:
        try:
            for key in keys:
                (self.root / key).unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"cannot remove objects from {self.root}: {reason}; check its permissions") from error

    def sweep_leftovers(self, older_than_s: float) -> None:
        """Remove temporary files of killed writers, whose last byte was written that long ago."""
        since = time.time() - older_than_s
        for folder, _, names in os.walk(self.root):
            for name in filter(_LEFTOVER.fullmatch, names):
                with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                    if os.stat(path := os.path.join(folder, name)).st_mtime < since:
                        os.unlink(path)

    def uri(self, key: str) -> str:
        return str(self.root / key)

    def polars_options(self) -> dict[str, Any]:
        return {}


def _files(folder: str | os.PathLike[str]) -> Iterator[tuple[str, int, float]]:
    """(path, size, time of writing) of every file below `folder`; none if it does not exist."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            yield from _files(entry.path)
        elif not entry.name.startswith("."):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # removed between listing and stat, as if listed a moment later
            yield entry.path, status.st_size, status.st_mtime


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


def patiently(request: Callable[[], T], patience_s: float) -> T:
    """The answer to `request`, repeated with growing pauses while the store is unavailable.

    Raises StoreUnavailable once that has lasted `patience_s` seconds; any other error at once.
    """
    begin, pause = time.monotonic(), FIRST_PAUSE_S
    while True:
        try:
            return request()
        except StoreUnavailable as error:
            waited = time.monotonic() - begin
            if waited + pause > patience_s:
                raise StoreUnavailable(f"{error} (gave up after {waited:.0f} s)") from error
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # so that runs do not come back all at once
        pause = min(2 * pause, LONGEST_PAUSE_S)


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The place `url` names: a folder or `s3://bucket/prefix`. Raises StoreError for a scheme nobody handles."""
    text = os.fspath(url)
    if re.match(r"s3:/?(?!/)", text):
        raise StoreError("a store on S3 is s3://bucket/prefix, as text with two slashes: a Path drops one of them")
    scheme = text.split("://")[0] if "://" in text else "file"
    if scheme == "s3":
        from muon_core.s3 import open_bucket  # boto3 takes 0.2 s to import, which a folder need not pay

        return open_bucket(text)
    if scheme != "file":
        raise StoreError(f"store with unknown scheme {scheme!r}; give a folder or s3://bucket/prefix")
    return Folder(text.removeprefix("file://"))


def check_writable(storage: Storage) -> None:
    """Fail early: raises StoreError if nothing can be written to `storage`. Clears what killed writers left there."""
    probe = f".writable/{uuid.uuid4().hex}"
    storage.put(probe, b"")
    storage.delete([probe])
    if isinstance(storage, Folder):
        storage.sweep_leftovers(LEFTOVER_S)


def store_time(storage: Storage) -> float:
    """Seconds since 1970 by the store's own clock, against which the age of its objects counts."""
    probe = f"clock/{uuid.uuid4().hex}"
    storage.put(probe, b"")
    listed = {item.key: item.modified for item in storage.stat("clock/")}
    storage.delete([probe])
    return listed[probe]
