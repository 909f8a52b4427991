"""Finds objects that cannot be read, so that an error names them and the rest can be read without them.

Polars compares neither digests nor checksums, and its errors do not name the object. So before a question is scanned
its objects are checked here, as far as that costs next to nothing: files on this machine once in a process, up to a
bound on their bytes, and beyond it only their two ends. `thorough` reads all of them in full.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from muon_core.store.cache import local_copies
from muon_core.store.keys import digest_in
from muon_core.store.parquet import MAGIC, Damaged, check, check_ends, decode_named
from muon_core.store.storage import Storage, StoreError

CONCURRENCY = 8  # objects in memory at once
CHECKED_BYTES = 64 << 20  # of files new to this process, which a question may read ahead of Polars, in about 0.1 s
_checked: set[tuple[str, int, int]] = set()
"""Path, bytes and time of writing (ns) of the files whose digest this process has compared."""


class Checked(NamedTuple):
    """What `check_objects` found."""

    damaged: list[str]
    """Keys of the objects that do not hold what was written."""
    files: dict[str, str]
    """Key of another object -> its copy on this machine, where there is one."""


def check_objects(storage: Storage, sizes: Mapping[str, int], *, thorough: bool) -> Checked:
    """Tell the objects that do not hold what was written from those that can be scanned.

    Files on this machine are compared with the digest in their name (finals and packs have one), once in a process,
    if those that are new to it hold at most `CHECKED_BYTES`. Of all others, and of live objects, only the two ends are
    looked at; of an object without a file here, whether it is empty.

    Args:
        sizes: bytes of each object, by key.
        thorough: read all in full and compare digests and checksums instead.
    Raises: StoreError if an object may not be read or, where it was looked into, is of a newer schema.
    """
    copies = local_copies(storage, sizes)
    suspects = list(sizes)
    if not thorough:
        paths = {key: copies.files.get(key, storage.uri(key)) for key in sizes}
        files = {key: path for key, path in paths.items() if "://" not in path}
        empty = [key for key, size in sizes.items() if size == 0]
        suspects = list(dict.fromkeys([*empty, *copies.differing, *_suspect_files(storage, files, sizes)]))
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        verdicts = pool.map(lambda key: _is_whole(storage, key, copies.files.get(key)), suspects)
        is_whole = dict(zip(suspects, verdicts, strict=True))
    files = {key: path for key, path in copies.files.items() if key not in is_whole}
    # Looking at a suspect may have removed its copy, replaced it, or fetched the object for the first time.
    files |= local_copies(storage, {key: sizes[key] for key, whole in is_whole.items() if whole}).files
    return Checked([key for key, whole in is_whole.items() if not whole], files)


def _suspect_files(storage: Storage, files: Mapping[str, str], sizes: Mapping[str, int]) -> list[str]:
    """Keys of the `files` that look damaged or cannot be read."""
    states = {key: state for key, path in files.items() if (state := _state(path))}
    new = [key for key in states if digest_in(key) and states[key] not in _checked]
    compared = set(new) if sum(sizes[key] for key in new) <= CHECKED_BYTES else set()
    suspects = []
    for key, state in states.items():
        if state not in _checked:
            if not _is_sound(files[key], storage.uri(key), ends_only=key not in compared):
                suspects.append(key)
            elif key in compared:
                _checked.add(state)
    return suspects


def _state(path: str) -> tuple[str, int, int] | None:
    """What changes when a file does; None if it was removed since it was listed, which is no damage."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return path, status.st_size, status.st_mtime_ns


def _is_sound(path: str, uri: str, *, ends_only: bool) -> bool:
    try:
        with open(path, "rb") as file:
            if ends_only:
                check_ends(_ends(file), uri)
            else:
                check(file.read(), uri)
    except FileNotFoundError:
        return True
    except (Damaged, OSError):
        return False
    return True


def _ends(file: BinaryIO) -> bytes:
    """The first bytes of a Parquet file and its footer. Raises OSError if it is too short for what it says."""
    mark = file.read(len(MAGIC))
    file.seek(-8, os.SEEK_END)
    footer = int.from_bytes(file.read(4), "little")
    file.seek(-8 - footer, os.SEEK_END)
    return mark + file.read()


def _is_whole(storage: Storage, key: str, copy: str | None) -> bool:
    """Whether the object decodes. A copy that does not is removed, for the object itself may be whole."""
    try:
        if copy is not None:
            if _decodes(Path(copy).read_bytes(), storage.uri(key)):
                return True
            Path(copy).unlink(missing_ok=True)
        return _decodes(storage.get(key), storage.uri(key))
    except FileNotFoundError:
        return True
    except PermissionError as error:
        raise StoreError(f"{storage.uri(key)} may not be read; give this user the permission to") from error


def _decodes(data: bytes, uri: str) -> bool:
    try:
        decode_named(data, uri)
    except Damaged:
        return False
    return True
