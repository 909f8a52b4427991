"""Copies of a remote store's immutable objects on this machine, for readers: what was fetched once is not asked again.

Objects never change under their name, so no copy is ever out of date. One that was damaged here is fetched again: it
proves itself by the digest in its name or, where that has none, by one written before its content. Writers and
compaction read the store itself.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from muon_core.parquet import DIGEST_LENGTH, digest
from muon_core.storage import Listed, Storage, StoreError

MAX_BYTES = 2 << 30  # MUON_CACHE_BYTES sets another bound; 0 switches the cache off
FETCH_BYTES = 32 << 20  # a question that needs more reads the columns it wants from the store instead
IN_USE_S = 600.0  # a copy this fresh may be open in a reader, and stays though the bound be exceeded
KEPT = ("attempts/", "final/", "packs/", "sweeps/")  # live/ is replaced within minutes


def cached(storage: Storage) -> Storage:
    """`storage` with a cache before it if it is remote. Raises StoreError if MUON_CACHE_BYTES is no number."""
    place = getattr(storage, "place", None)
    text = os.environ.get("MUON_CACHE_BYTES") or str(MAX_BYTES)
    if not text.isdecimal():
        raise StoreError(f"MUON_CACHE_BYTES is {text!r}; give whole bytes, such as {MAX_BYTES}, or 0 for no cache")
    limit = int(text)
    return storage if place is None or limit == 0 else Cached(storage, cache_folder(place), limit)


def cache_folder(place: str) -> Path:
    """Where copies from `place`, which names server, bucket and prefix, are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "muon" / "store" / hashlib.sha256(place.encode()).hexdigest()[:16]


class Cached:
    """A storage whose immutable objects are read from a folder once they were fetched."""

    def __init__(self, storage: Storage, folder: Path, max_bytes: int) -> None:
        self.url = storage.url
        self._storage, self._folder, self._max_bytes = storage, folder, max_bytes

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._storage.put(key, data)

    def get(self, key: str) -> bytes:
        return self.get_many([key])[0]

    def get_many(self, keys: Iterable[str]) -> builtins.list[bytes]:
        wanted = list(keys)
        found = {key: data for key in wanted if (data := self._read(key)) is not None}
        missing = [key for key in dict.fromkeys(wanted) if key not in found]
        fetched = dict(zip(missing, self._storage.get_many(missing), strict=True))
        self._keep(fetched)
        return [(found | fetched)[key] for key in wanted]

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        return self._storage.list(prefix)

    def stat(self, prefix: str) -> builtins.list[Listed]:
        return self._storage.stat(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        self._storage.delete(keys)

    def uri(self, key: str) -> str:
        return self._storage.uri(key)

    def polars_options(self) -> dict[str, Any]:
        return self._storage.polars_options()

    def local_paths(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """Files of those objects (`sizes`: key -> bytes) that are here, after fetching the others if they are few."""
        keep = {key: size for key, size in sizes.items() if key.startswith(KEPT)}
        missing = [key for key, size in keep.items() if not self._is_here(key, size)]
        if sum(keep[key] for key in missing) <= min(FETCH_BYTES, self._max_bytes):
            self._keep(dict(zip(missing, self._storage.get_many(missing), strict=True)))
        return {key: str(self._folder / key) for key, size in keep.items() if self._is_here(key, size)}

    def _is_here(self, key: str, size: int) -> bool:
        try:
            os.utime(self._folder / key)  # the most recently used stay
            return (self._folder / key).stat().st_size == size
        except OSError:
            return False

    def _read(self, key: str) -> bytes | None:
        try:
            return _proved(key, (self._folder / key).read_bytes())
        except OSError:
            return None

    def _keep(self, objects: Mapping[str, bytes]) -> None:
        """Add copies; a cache that cannot be written is no error."""
        with contextlib.suppress(OSError):
            for key, data in objects.items():
                if key.startswith(KEPT):
                    _write(self._folder / key, _provable(key, data))
            if objects:
                _prune(self._folder.parent, self._max_bytes)


def local_paths(storage: Storage, sizes: Mapping[str, int]) -> dict[str, str]:
    """Files that hold objects of `storage` on this machine, of those in `sizes` (key -> bytes)."""
    return storage.local_paths(sizes) if isinstance(storage, Cached) else {}


def _provable(key: str, data: bytes) -> bytes:
    """What a copy of the object holds."""
    return data if digest(data) in key else digest(data).encode() + data


def _proved(key: str, copy: bytes) -> bytes | None:
    """Inverse of `_provable`; None if the copy was damaged."""
    if digest(copy) in key:
        return copy
    proof, data = copy[:DIGEST_LENGTH], copy[DIGEST_LENGTH:]
    return data if digest(data).encode() == proof else None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    aside.write_bytes(data)
    aside.rename(path)


def _prune(root: Path, max_bytes: int) -> None:
    """Once the caches of all stores exceed `max_bytes`, remove the copies used longest ago, down to four fifths of it.

    Copies used within the last `IN_USE_S` stay.
    """
    files = [(path.stat(), path) for path in root.rglob("*") if path.is_file()]
    total = sum(status.st_size for status, _ in files)
    if total <= max_bytes:
        return
    for status, path in sorted(files, key=lambda item: item[0].st_mtime):
        if total <= 0.8 * max_bytes or status.st_mtime > time.time() - IN_USE_S:
            break
        path.unlink(missing_ok=True)
        total -= status.st_size
