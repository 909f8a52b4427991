"""Whether the files of a prepared data set are those that its manifest names: by their sha256. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from muon_core.config.base import canonical_json
from muon_core.data.manifest import MANIFEST, TOKENIZER, Manifest
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreError

AT_ONCE = 4
_TRUSTED_AFTER_S = 2.0  # coarsest time stamp of common file systems: younger files may change and look the same


def wanted_files(manifest: Manifest) -> dict[str, str]:
    """Name -> sha256 of each file that a set has beside its manifest."""
    return {TOKENIZER: manifest.tokenizer.sha256} | {shard.name: shard.sha256 for shard in manifest.all_shards}


def damaged_files(folder: Path, manifest: Manifest, cache: Path) -> list[str]:
    """Names of the files in `folder` that are missing or differ from the manifest.

    All are read at the first time only: the folder `cache` remembers, under names, sizes and times of files, that they
    were found sound, and these change with what is written to a file.
    """
    wanted, memory = wanted_files(manifest), Folder(cache)
    stamp, is_trusted = _stamp(folder, wanted)
    with contextlib.suppress(FileNotFoundError, StoreError):
        memory.get(f"sound/{stamp}")
        return []
    damaged = compare(folder, wanted)
    if not damaged and is_trusted:
        with contextlib.suppress(StoreError):  # a cache that cannot be written costs time, nothing else
            memory.put(f"sound/{stamp}", b"")
    return damaged


def compare(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Those of the files `wanted` (name -> sha256) that are missing in `folder` or differ; each is read."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        digests = pool.map(lambda name: file_sha256(folder / name), wanted)
        return [name for name, found in zip(wanted, digests, strict=True) if found != wanted[name]]


def describe_damage(place: str, damaged: list[str]) -> str:
    """One line on files of the set at `place` that are missing or differ."""
    if damaged == [TOKENIZER]:
        return f"{place}/{TOKENIZER} is not the tokenizer that {MANIFEST} names; restore it, or prepare the data again"
    others = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return f"{place}/{damaged[0]}{others} is damaged or missing (sha256 differs); restore it, or prepare the data again"


def file_sha256(file: Path) -> str | None:
    """sha256 of a file, None where it cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None


def _stamp(folder: Path, wanted: Mapping[str, str]) -> tuple[str, bool]:
    """What identifies the files without reading them, and whether they are old enough for it to be trusted."""
    facts, newest_ns = [], 0
    for name, sha256 in wanted.items():
        try:
            status = (folder / name).stat()
        except OSError:
            return "missing", False
        facts.append([str(folder / name), status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256])
        newest_ns = max(newest_ns, status.st_mtime_ns, status.st_ctime_ns)
    stamp = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
    return stamp, time.time() - newest_ns / 1e9 > _TRUSTED_AFTER_S
