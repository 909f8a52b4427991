"""Copies of a remote store's immutable objects on this machine, for readers: what was fetched once is not asked again.

Objects never change under their name, so no copy is ever out of date, and any may be removed at any time: the store
still has the object. A copy proves itself by the digest in its name or, where that has none, by one written before its
content. It is compared when the object is fetched, and whenever `get` answers with the copy. Copies that `local_copies`
hands out for Polars to scan are compared by `muon_core.store.damage`, up to its bound. Many that are asked for at
once, as end records are, lie in one file (`muon_core.store.bundles`). Writers and compaction read the store itself.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from muon_core.store.bundles import FROM, pack, read_bundles
from muon_core.store.keys import digest_in
from muon_core.store.parquet import DIGEST_LENGTH, digest
from muon_core.store.storage import READER_GRACE_S, Listed, Storage, StoreError
from muon_core.user_cache import user_cache

MAX_BYTES = 2 << 30  # MUON_CACHE_BYTES sets another bound; 0 switches the cache off
FETCH_BYTES = 32 << 20  # a question that needs more reads the columns it wants from the store instead
KEPT = ("attempts/", "final/", "packs/", "sweeps/")  # all else changes, or, as live/, is replaced within minutes
BUNDLES = "bundles"


class Copies(NamedTuple):
    """What `local_copies` found."""

    files: dict[str, str]
    """Key of an object -> the file on this machine that holds it."""
    differing: list[str]
    """Objects that were fetched and do not match the digest in their name; no copy is kept of them."""


def cached(storage: Storage) -> Storage:
    """`storage` with a cache before it if it is remote. Raises StoreError if MUON_CACHE_BYTES is no number."""
    text = os.environ.get("MUON_CACHE_BYTES") or str(MAX_BYTES)
    if not text.isdecimal():
        raise StoreError(f"MUON_CACHE_BYTES is {text!r}; give whole bytes, such as {MAX_BYTES}, or 0 for no cache")
    limit = int(text)
    if storage.is_local or limit == 0 or isinstance(storage, Cached):
        return storage
    return Cached(storage, cache_folder(storage.place), limit)


def cache_folder(place: str) -> Path:
    """Where copies from `place`, which names server, bucket and prefix, are kept."""
    return user_cache() / "muon" / "store" / hashlib.sha256(place.encode()).hexdigest()[:16]


class Cached:
    """A storage whose immutable objects are read from a folder once they were fetched."""

    def __init__(self, storage: Storage, folder: Path, max_bytes: int) -> None:
        self.url, self.place, self.is_local = storage.url, storage.place, storage.is_local
        self._storage, self._folder, self._max_bytes = storage, folder, max_bytes

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._storage.put(key, data)

    def get(self, key: str) -> bytes:
        return self.get_many([key])[0]

    def get_many(self, keys: Iterable[str]) -> builtins.list[bytes]:
        wanted = list(keys)
        many = read_bundles(self._folder / BUNDLES, set(wanted)) if len(wanted) >= FROM else {}
        found = {key: data for key, copy in many.items() if (data := _proved(key, copy)) is not None}
        found |= {key: data for key in wanted if key not in found and (data := self._read(key)) is not None}
        missing = [key for key in dict.fromkeys(wanted) if key not in found]
        fetched = dict(zip(missing, self._storage.get_many(missing), strict=True))
        self._keep(fetched, bundled=True)
        return [(found | fetched)[key] for key in wanted]

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        return self._storage.list(prefix)

    def keys(self, prefix: str) -> builtins.list[str]:
        return self._storage.keys(prefix)

    def stat(self, prefix: str) -> builtins.list[Listed]:
        return self._storage.stat(prefix)

    def put_many(self, objects: Mapping[str, bytes]) -> None:
        self._storage.put_many(objects)

    def delete(self, keys: Iterable[str]) -> None:
        self._storage.delete(keys)

    def remove_leftovers(self, older_than_s: float) -> None:
        self._storage.remove_leftovers(older_than_s)

    def uri(self, key: str) -> str:
        return self._storage.uri(key)

    def polars_options(self) -> dict[str, Any]:
        return self._storage.polars_options()

    def local_copies(self, sizes: Mapping[str, int]) -> Copies:
        """Those objects (`sizes`: key -> bytes) that are here, after fetching the others if they are few."""
        keep = {key: size for key, size in sizes.items() if key.startswith(KEPT)}
        missing = [key for key, size in keep.items() if not self._is_here(key, size)]
        differing = []
        if sum(keep[key] for key in missing) <= min(FETCH_BYTES, self._max_bytes):
            differing = self._keep(dict(zip(missing, self._storage.get_many(missing), strict=True)))
        here = {key: f"{self._folder}/{key}" for key, size in keep.items() if self._is_here(key, size)}
        return Copies(here, differing)

    def _is_here(self, key: str, size: int) -> bool:
        try:
            status = os.stat(path := f"{self._folder}/{key}")
            # Sets when it was used, for the most recently used stay. When it was written is left as it is: by that
            # `muon_core.store.damage` knows a copy that it has compared.
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
            return status.st_size == size
        except OSError:
            return False

    def _read(self, key: str) -> bytes | None:
        try:
            with open(f"{self._folder}/{key}", "rb") as file:
                return _proved(key, file.read())
        except OSError:
            return None

    def _keep(self, objects: Mapping[str, bytes], *, bundled: bool = False) -> builtins.list[str]:
        """Add copies, many in one file if `bundled`, but for objects that differ from their name, which are returned.

        A cache that cannot be written is no error.
        """
        copies = {key: _provable(key, data) for key, data in objects.items() if key.startswith(KEPT)}
        whole = {key: copy for key, copy in copies.items() if copy is not None}
        with contextlib.suppress(OSError):
            if bundled and len(whole) >= FROM:
                _write(f"{self._folder}/{BUNDLES}/{uuid.uuid4().hex}.bundle", pack(whole))
            else:
                for key, copy in whole.items():
                    _write(f"{self._folder}/{key}", copy)
            if objects:
                _prune(self._folder.parent, self._max_bytes)
        return [key for key in copies if key not in whole]


def local_copies(storage: Storage, sizes: Mapping[str, int]) -> Copies:
    """The objects of `storage` among `sizes` (key -> bytes) of which a cache holds a copy on this machine."""
    return storage.local_copies(sizes) if isinstance(storage, Cached) else Copies({}, [])


def _provable(key: str, data: bytes) -> bytes | None:
    """What a copy of the object holds; None if the object differs from its name."""
    named, found = digest_in(key), digest(data)
    if named is None:
        return found.encode() + data
    return data if named == found else None


def _proved(key: str, copy: bytes) -> bytes | None:
    """Inverse of `_provable`; None if the copy was damaged."""
    if named := digest_in(key):
        return copy if named == digest(copy) else None
    proof, data = copy[:DIGEST_LENGTH], copy[DIGEST_LENGTH:]
    return data if digest(data).encode() == proof else None


def _write(path: str, data: bytes) -> None:
    # Renamed into place, but not synced: what a power cut leaves of it does not match its digest, and is fetched anew.
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    os.makedirs(folder, exist_ok=True)
    with open(aside, "wb") as file:
        file.write(data)
    os.rename(aside, path)


def _prune(root: Path, max_bytes: int) -> None:
    """Once the caches of all stores exceed `max_bytes`, remove the copies used longest ago, down to four fifths of it.

    Copies used within the last `READER_GRACE_S` stay, for Polars may open them yet. The rest can be fetched again.
    """
    files = list(_files(str(root)))
    total = sum(status.st_size for status, _ in files)
    if total <= max_bytes:
        return
    for status, path in sorted(files, key=lambda item: item[0].st_atime):
        if total <= 0.8 * max_bytes or status.st_atime > time.time() - READER_GRACE_S:
            break
        Path(path).unlink(missing_ok=True)
        total -= status.st_size


def _files(folder: str) -> Iterator[tuple[os.stat_result, str]]:
    """Every file below `folder`; one that is removed meanwhile, by another process that prunes, is none."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir():
                    yield from _files(entry.path)
                else:
                    yield entry.stat(), entry.path
