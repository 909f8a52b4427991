"""What the results store needs of a place to keep objects, its two kinds of errors, and patience with one of them.

Objects are immutable, lie under `/`-separated keys, and are there whole or not at all. To put, get, list and delete is
all that is asked: no lock and no conditional write, which some servers do not make atomic. A folder (`folder.py`) and
an S3 bucket (`s3/bucket.py`) are such places.

StoreUnavailable says that the same request may succeed later. Every request may be repeated, so it is, for minutes
(`patiently`). Any other StoreError would come again, and ends the work at once.
"""

from __future__ import annotations

import builtins
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LEFTOVER_S = 86_400.0  # a temporary file not written to for a day is no live writer's
READER_GRACE_S = 600.0
"""How long an object stays after another took its place, and a cached copy after its last use.

A reader lists names first and Polars opens the files when the result is computed, so what was listed must outlive the
longest question. Nobody counts readers, so the time is a guess, and meant to be on the safe side.
"""


class StoreError(ValueError):
    """The results store cannot be reached, read or written; the message says what to do."""


class StoreUnavailable(StoreError):
    """The store did not answer, or asked to slow down: the same request may succeed later."""


class StoreUnwritable(StoreError):
    """Nothing can be written: no room, no permission, a disk that is read only. Each run that follows would meet it."""


class StoreClosed(StoreError):
    """Nobody gets in under these settings: no such bucket, no credentials, or not those of one who may."""


OUT_OF_USE = StoreUnavailable, StoreUnwritable, StoreClosed
"""The store failed, not the run that met it: that can be continued when the store is in order again."""


class Listed(NamedTuple):
    """An object as a listing shows it; `modified` is in seconds since 1970, by the store's clock."""

    key: str
    size: int
    modified: float


class Storage(Protocol):
    """What the results store needs of a place to keep objects."""

    url: str
    is_local: bool
    """Whether objects are files of this machine."""
    place: str
    """Tells stores of one URL on two servers apart."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write one object, atomically and durably.

        It may be repeated, as after an answer that got lost: a name has one content, so the bytes are the same.
        """

    def get(self, key: str) -> bytes:
        """Bytes of one object. Raises FileNotFoundError if there is none."""

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        """(key, size in bytes) of the objects whose key starts with `prefix` (ends in `/` or is empty), sorted."""

    def keys(self, prefix: str) -> builtins.list[str]:
        """The keys that `list` gives, without sizes: to learn these, a folder looks at each file."""

    def stat(self, prefix: str) -> builtins.list[Listed]:
        """`list` with the time each object was written."""

    def get_many(self, keys: Iterable[str]) -> builtins.list[bytes]:
        """Bytes of several objects, in the order of `keys`. Raises FileNotFoundError if one is missing."""

    def put_many(self, objects: Mapping[str, bytes]) -> None:
        """Write several objects, in no order; raises as `put` does, others may be there then."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; missing ones are no error."""

    def remove_leftovers(self, older_than_s: float) -> None:
        """Remove what killed writers left half written, if it is no object and was last written to that long ago."""

    def uri(self, key: str) -> str:
        """What Polars opens to read `key`."""

    def polars_options(self) -> dict[str, Any]:
        """Keyword arguments that let `pl.scan_parquet` open a `uri`."""


def put_side_by_side(put: Callable[[str, bytes], None], objects: Mapping[str, bytes], at_once: int) -> None:
    """`put` each of `objects`, so many at a time, since each waits for a disk or a server. Raises as `put` does."""
    with ThreadPoolExecutor(max(1, min(at_once, len(objects)))) as pool:
        list(pool.map(put, objects, objects.values()))


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


def check_writable(storage: Storage) -> None:
    """Fail early: raises StoreError if nothing can be written to `storage`. Clears what killed writers left there."""
    probe = f".writable/{uuid.uuid4().hex}"
    storage.put(probe, b"")
    storage.delete([probe])
    storage.remove_leftovers(LEFTOVER_S)


def store_time(storage: Storage) -> float:
    """Seconds since 1970 by the store's own clock, against which the age of its objects counts.

    This machine's may be minutes off. Listings show the store's, so a probe is written and listed.
    """
    probe = f"clock/{uuid.uuid4().hex}"
    storage.put(probe, b"")
    listed = {item.key: item.modified for item in storage.stat("clock/")}
    storage.delete([probe])
    return listed[probe]
