"""Keeps what a run prints beside its results: every few seconds while it trains, and once more however it ends.

In a worker of a slot the whole process is the run's, so its descriptors 1 and 2 lead to a file in memory, which has
what Python and C++ write in the order they wrote it. A thread reads it every second. A pipe would do as well, but for a
library that fills it while it holds Python's lock: it would wait for ever. In a process with a terminal Python's
streams are doubled instead: what goes to the terminal still does.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

import muon_core
from muon_core.config.optimizers import OddSetting
from muon_core.store.run_log import RunLog
from muon_core.store.storage import Storage

FLUSH_EVERY_S = 5.0
DRAIN_EVERY_S = 1.0
FILE_BYTES = 1 << 20  # of output before another file in memory takes the place of one that was read
STREAMS = "stdout", "stderr"
OURS = Path(muon_core.__path__[0])


@contextlib.contextmanager
def run_output(
    storage: Storage, run_id: str, start: str, *, rank: int = 0, whole_process: bool = False
) -> Iterator[None]:
    """Keep what is printed in the block, and the traceback it ends with, as the log of a run.

    Args:
        start: `next_start()`, the same for all ranks.
        whole_process: keep what any code writes to the descriptors 1 and 2, else what Python does to its streams.
    """
    kept = RunLog(storage, run_id, start, rank)
    # File systems in memory have names only on Linux.
    source = _Descriptors(kept) if whole_process and hasattr(os, "memfd_create") else _Streams(kept)
    # Leaving `catch_warnings`, Python forgets which it has shown: the next run of this process has its own.
    with warnings.catch_warnings(), _flushed(kept, source):
        warnings.showwarning = partial(_show_warning, kept, source)
        try:
            with source.diverted():
                yield
        except Exception:
            kept.write(traceback.format_exc().encode(errors="replace"))
            raise


def _show_warning(
    kept: RunLog,
    source: _Source,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A line for a warning, with its place if it is in code of others. What a plan says is in each run's log only."""
    text = " ".join(str(message).split())
    if issubclass(category, OddSetting):
        source.drain()
        kept.write(f"odd: {text}\n".encode(errors="replace"))
        return
    place = "" if Path(filename).is_relative_to(OURS) else f" ({category.__name__}, {filename}:{lineno})"
    print(f"warning: {text}{place}", file=file or sys.stderr)


class _Source(Protocol):
    """Where a log comes from."""

    def diverted(self) -> contextlib.AbstractContextManager[None]:
        """What is printed in the block goes to the log."""

    def drain(self) -> None:
        """Hand over what was printed so far."""


@contextlib.contextmanager
def _flushed(kept: RunLog, source: _Source) -> Iterator[None]:
    """Store the log every few seconds from a thread, and when the block is left."""
    left = threading.Event()

    def beat() -> None:
        flushed = time.monotonic()
        while not left.wait(DRAIN_EVERY_S):
            source.drain()
            if time.monotonic() - flushed >= FLUSH_EVERY_S:
                kept.flush()
                flushed = time.monotonic()

    thread = threading.Thread(target=beat, name="run-output", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
        kept.flush()


class _Descriptors:
    """What the process writes to its descriptors 1 and 2; it still reaches where 2 led to."""

    def __init__(self, kept: RunLog) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._file: int | None = None
        self._read = 0
        self._before = 2

    @contextlib.contextmanager
    def diverted(self) -> Iterator[None]:
        _flush_buffers()
        before = os.dup(1), os.dup(2)
        self._before = before[1]
        self._divert()
        try:
            yield
        finally:
            self.drain()
            with self._lock:
                os.dup2(before[0], 1)
                os.dup2(before[1], 2)
                self._take()
                if self._file is not None:
                    os.close(self._file)
                self._file = None
            for descriptor in before:
                os.close(descriptor)

    def drain(self) -> None:
        _flush_buffers()
        with self._lock:
            if self._file is None:
                return
            self._take()
            if self._read > FILE_BYTES:
                old = self._file
                self._divert(after=old)

    def _divert(self, after: int | None = None) -> None:
        """Lead the descriptors to a new file; of the one `after` which it comes, take what is left and let it go."""
        new = os.memfd_create("run-output")
        for descriptor in (1, 2):
            os.dup2(new, descriptor)
        if after is not None:
            self._take()
            os.close(after)
        self._file, self._read = new, 0

    def _take(self) -> None:
        """Hand over what the file has beyond what was read of it."""
        while self._file is not None and (data := os.pread(self._file, FILE_BYTES, self._read)):
            self._read += len(data)
            self._kept.write(data)
            with contextlib.suppress(OSError):  # no room there is no fault of the run
                os.write(self._before, data)


def _flush_buffers() -> None:
    """Write out what Python and C hold back of standard output."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError, ValueError):  # a C library that calls it otherwise
        libc = ctypes.CDLL(None)
        libc.fflush(ctypes.c_void_p.in_dll(libc, "stdout"))


class _Streams:
    """What Python prints, and what it logs to a stream."""

    def __init__(self, kept: RunLog) -> None:
        self._kept = kept

    @contextlib.contextmanager
    def diverted(self) -> Iterator[None]:
        shown = {name: getattr(sys, name) for name in STREAMS}
        streams = [*shown.values(), sys.__stdout__, sys.__stderr__]
        handlers = [
            (handler, handler.stream)
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams
        ]  # they hold the stream there was when they were made
        for name, stream in shown.items():
            setattr(sys, name, _Doubled(stream, self._kept))
        for handler, stream in handlers:
            handler.setStream(_Doubled(stream, self._kept))
        try:
            yield
        finally:
            for name, stream in shown.items():
                setattr(sys, name, stream)
            for handler, stream in handlers:
                handler.setStream(stream)

    def drain(self) -> None:
        pass  # it is handed over as it comes


class _Doubled:
    """A text stream whose text goes to a log as well."""

    def __init__(self, stream: TextIO, kept: RunLog) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        self._kept.write(text.encode(errors="replace"))
        return self._stream.write(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
