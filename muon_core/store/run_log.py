"""What a run printed, kept beside its rows: the beginning and the newest of it, 1 MiB a rank and start.

The text is cut into segments of 64 KiB, each an object. The one that is being filled is written again under a longer
name whenever there is something new, and then its shorter version goes. Of a run that prints more than there is room
for, the first eight segments stay and the last eight; those between are removed as new ones come. A key tells which
bytes the object holds, so a reader sees how many are missing. A run that prints nothing leaves nothing.

A log is a help and no result. A store that does not take it is asked again at the next flush, and no run fails of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from muon_core.store.keys import LogPart, parse_logs
from muon_core.store.reader import list_keys, relisting
from muon_core.store.storage import Storage, StoreError

SEGMENT_BYTES = 64 << 10
HEAD, TAIL = 8, 8  # segments


@dataclass(slots=True)
class _Segment:
    """Bytes from `lo` on; `data` is let go once the segment is full and stored."""

    lo: int
    data: bytearray = field(default_factory=bytearray)
    stored: LogPart | None = None

    @property
    def hi(self) -> int:
        return max(self.lo + len(self.data), self.stored.hi if self.stored else 0)


class RunLog:
    """What one rank of a run prints from `start` on. Any thread may `write`, one at a time `flush`."""

    def __init__(self, storage: Storage, run: str, start: str, rank: int) -> None:
        self._storage, self._run, self._start, self._rank = storage, run, start, rank
        self._lock = threading.Lock()
        self._size = 0
        self._segments: dict[int, _Segment] = {}
        self._obsolete: list[LogPart] = []

    def write(self, data: bytes) -> None:
        """Add to the text, in memory."""
        with self._lock:
            view = memoryview(data)
            while view:
                number, filled = divmod(self._size, SEGMENT_BYTES)
                if number not in self._segments:
                    self._begin(number)
                piece = view[: SEGMENT_BYTES - filled]
                self._segments[number].data += piece
                self._size += len(piece)
                view = view[len(piece) :]

    def flush(self) -> None:
        """Store what is new. Gives up while the store is away or full; the next call tries again."""
        with self._lock:
            news = [(n, s, bytes(s.data)) for n, s in self._segments.items() if s.stored is None or s.stored.hi < s.hi]
        with contextlib.suppress(StoreError):
            for number, segment, data in news:
                part = LogPart(self._run, self._start, self._rank, segment.lo, segment.lo + len(data))
                self._storage.put(part.key, data)
                self._replace(number, segment, part)
            gone = [part.key for part in self._obsolete]
            self._storage.delete(gone)
            with self._lock:
                del self._obsolete[: len(gone)]

    def _begin(self, number: int) -> None:
        """Make room for a segment; the lock is held."""
        self._segments[number] = _Segment(number * SEGMENT_BYTES)
        left_out = self._segments.pop(number - TAIL, None) if number - TAIL >= HEAD else None
        if left_out and left_out.stored:
            self._obsolete.append(left_out.stored)

    def _replace(self, number: int, segment: _Segment, part: LogPart) -> None:
        with self._lock:
            if number not in self._segments:  # left out while it was on its way
                self._obsolete.append(part)
                return
            if segment.stored:
                self._obsolete.append(segment.stored)
            segment.stored = part
            if part.hi - part.lo == SEGMENT_BYTES:
                segment.data = bytearray()


class Piece(NamedTuple):
    """Some of what a rank printed since `start`; `left_out` bytes before it are not kept."""

    start: str
    rank: int
    left_out: int
    data: bytes


class LogReader:
    """Reads the log of a run, each byte once: a call of `read` returns what came since the last."""

    def __init__(self, storage: Storage, run: str, rank: int | None = None) -> None:
        self._storage, self._run, self._rank = storage, run, rank
        self._read: dict[tuple[str, int], int] = defaultdict(int)

    def read(self) -> list[Piece]:
        """What is new of each start and rank, in order. Raises StoreError if the store cannot be read."""
        return relisting(self._news)

    def _news(self) -> list[Piece]:
        parts = parse_logs(list_keys(self._storage, f"logs/{self._run}/"))
        newest = {(part.start, part.rank, part.lo): part for part in parts}  # the longest of each segment comes last
        wanted = [
            part
            for part in newest.values()
            if part.hi > self._read[part.start, part.rank] and self._rank in (None, part.rank)
        ]
        read, pieces = self._read.copy(), []
        for part, data in zip(wanted, self._storage.get_many(part.key for part in wanted), strict=True):
            begin = max(part.lo, read[part.start, part.rank])
            left_out = begin - read[part.start, part.rank]
            pieces.append(Piece(part.start, part.rank, left_out, data[begin - part.lo :]))
            read[part.start, part.rank] = part.hi
        self._read = read
        return pieces
