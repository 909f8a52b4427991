"""Many small copies in one file of the cache: to create two thousand files takes a disk longer than to fetch them.

A bundle begins with the length of its index, the index as JSON (key -> bytes, in the order of what follows), and then
holds the copies. Each of them proves itself as one in a file of its own does; what an unreadable bundle held is fetched
again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection, Mapping
from itertools import accumulate
from pathlib import Path

FROM = 128  # copies: fewer are files, which need no index to be read
_LENGTH = 8  # bytes that hold the length of the index


def pack(copies: Mapping[str, bytes]) -> bytes:
    """A bundle of `copies`, by key."""
    index = json.dumps({key: len(copy) for key, copy in copies.items()}).encode()
    return b"".join([len(index).to_bytes(_LENGTH), index, *copies.values()])


def unpack(bundle: bytes, keys: Collection[str]) -> dict[str, bytes]:
    """Those of `keys` that `bundle` holds. Raises ValueError if it is none."""
    start = _LENGTH + int.from_bytes(bundle[:_LENGTH])
    index = json.loads(bundle[_LENGTH:start])
    if not isinstance(index, dict):
        raise ValueError("the index of a bundle is no object")
    offsets = accumulate(index.values(), initial=start)
    places = zip(index.items(), offsets, strict=False)  # the last offset is the end
    return {key: bundle[offset : offset + size] for (key, size), offset in places if key in keys}


def read_bundles(folder: Path, keys: Collection[str]) -> dict[str, bytes]:
    """The copies of `keys` in the bundles below `folder`, not proved yet."""
    found: dict[str, bytes] = {}
    for path in folder.glob("*.bundle"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # removed, or damaged: fetched again
            held = unpack(path.read_bytes(), keys)
            if held:  # used now, as the copies in files of their own are told to be
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                found |= held
    return found
