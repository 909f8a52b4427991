"""Requests to stop a sweep, left in the store for whoever runs it: `muon sweep stop` writes one, from anywhere.

    stops/<sweep>/<id>.json

Every call that runs the sweep looks for them every few seconds and heeds what was written after it began. It removes a
request when it ends, but not before all others have had the time to see it too.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from muon_core.store.keys import next_id, parse_stops, stop_key
from muon_core.store.storage import Storage, StoreError
from ray_jobs.elsewhere import look_every

UNHEEDED_S = 3600.0  # a request that nobody heeded for so long goes when the sweep is next run


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Somebody's wish that a sweep ends."""

    user: str
    host: str
    now: bool
    """Whether runs under way save themselves at once; else they go to their end, and no other begins."""

    def __str__(self) -> str:
        return f"{self.user} on {self.host}"


class SweepStopped(Exception):
    """A sweep ended before all its runs had, because somebody asked for it."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        super().__init__(f"stopped by {request} (muon sweep stop)")


def request_stop(storage: Storage, sweep: str, *, now: bool) -> StopRequest:
    """Ask whoever runs `sweep` to stop. Raises StoreError if nothing can be written."""
    request = StopRequest(user_name(), socket.gethostname(), now)
    fields = {"user": request.user, "host": request.host, "now": now}
    ids = parse_stops(key for key, _ in storage.list(f"stops/{sweep}/")).values()
    storage.put(stop_key(sweep, next_id(ids)), json.dumps(fields).encode())
    return request


class StopWatch:
    """Looks for requests from a thread while the block is entered; one that asks for more replaces the one before.

    Args:
        heed: called with every request, from that thread.
    """

    def __init__(self, storage: Storage, sweep: str, heed: Callable[[StopRequest], None]) -> None:
        self.request: StopRequest | None = None
        self._storage, self._sweep, self._heed = storage, sweep, heed
        self._known: set[str] = set()
        self._heeded: dict[str, float] = {}
        """Key to when it was seen, by a clock that nobody sets."""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._look_now_and_then, name="stop requests", daemon=True)

    def __enter__(self) -> Self:
        for item in self._storage.stat(f"stops/{self._sweep}/"):
            self._known.add(item.key)  # of before this call
            if time.time() - item.modified > UNHEEDED_S:
                self._storage.delete([item.key])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(look_every(self._storage))  # not for ever, where the store is away
        for key, seen in self._heeded.items():
            time.sleep(max(0.0, seen + 2 * look_every(self._storage) - time.monotonic()))
            with contextlib.suppress(StoreError):
                self._storage.delete([key])

    def _look_now_and_then(self) -> None:
        while not self._left.wait(look_every(self._storage)):
            with contextlib.suppress(StoreError, FileNotFoundError):  # the next look finds it, or nobody needs it
                self._look()

    def _look(self) -> None:
        for key in parse_stops(key for key, _ in self._storage.list(f"stops/{self._sweep}/")):
            if key in self._known:
                continue
            request = _decode(self._storage.get(key))
            self._known.add(key)
            self._heeded[key] = time.monotonic()
            self.request = request
            self._heed(request)


def _decode(data: bytes) -> StopRequest:
    """What a request says; one that is damaged, or of another release, is a wish to stop all the same."""
    try:
        fields = dict(json.loads(data))
    except ValueError:
        fields = {}
    return StopRequest(str(fields.get("user", "someone")), str(fields.get("host", "unknown")), bool(fields.get("now")))


def user_name() -> str:
    """Of whoever started this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name is known for it, as in many containers
        return f"user {os.getuid()}"
