"""Bytes that lie elsewhere as a file, read by ranges: whoever reads it in order holds one range of it at a time.

Elsewhere is a file of another machine, or a buffer that must not be copied.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

RANGE = 4 * 2**20  # bytes of one request


class RangeFile(io.RawIOBase):
    """A read-only file of `size` bytes, of which `read(start, length)` fetches a part."""

    def __init__(self, read: Callable[[int, int], bytes | memoryview], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, target: Any) -> int:
        wanted = min(len(target), self._size - self._at)
        data = self._read(self._at, wanted) if wanted > 0 else b""
        if len(data) < wanted:
            raise EOFError(f"{len(data)} of {wanted} bytes came")
        target[: len(data)] = data
        self._at += len(data)
        return len(data)


def buffered(read: Callable[[int, int], bytes | memoryview], size: int) -> io.BufferedReader:
    """That file, fetched a range ahead of who reads it."""
    return io.BufferedReader(RangeFile(read, size), RANGE)
