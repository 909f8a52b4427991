"""Finds objects that cannot be read, so that an error names them and the rest can be read without them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from muon_core.parquet import decode_named
from muon_core.storage import Storage, StoreError

CONCURRENCY = 8  # objects in memory at once
_MAGIC = b"PAR1"


def damaged_objects(
    storage: Storage, sizes: Mapping[str, int], here: Mapping[str, str], *, thorough: bool
) -> list[str]:
    """Keys of the objects that are no whole Parquet.

    Args:
        sizes: bytes of each object, by key.
        here: file of those that have a copy on this machine, by key.
        thorough: read all in full and compare their checksums. Without it only those are looked at that are empty, or
            lie on this machine and lack Parquet's marks at both ends.
    """
    paths = {key: here.get(key, storage.uri(key)) for key in sizes}
    suspects = [
        key
        for key, path in paths.items()
        if thorough or sizes[key] == 0 or ("://" not in path and not _is_marked(path))
    ]
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        whole = pool.map(lambda key: _is_whole(storage, key, here.get(key)), suspects)
        return [key for key, is_whole in zip(suspects, whole, strict=True) if not is_whole]


def _is_marked(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            begins = file.read(len(_MAGIC)) == _MAGIC
            file.seek(-len(_MAGIC), os.SEEK_END)
            return begins and file.read() == _MAGIC
    except FileNotFoundError:
        return True  # removed since it was listed, which is no damage
    except OSError:
        return False  # shorter than the marks


def _is_whole(storage: Storage, key: str, copy: str | None) -> bool:
    """Whether the object decodes. A copy that does not is removed, for the object itself may be whole.

    Raises StoreError if the object may not be read.
    """
    try:
        if copy is not None:
            if _decodes(Path(copy).read_bytes(), copy):
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
    except StoreError:
        return False
    return True
