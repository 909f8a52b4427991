"""What stops a command (Ctrl-C, SIGTERM, a closed terminal), and when it is heard.

Clusters, `timeout`, containers and spot notices send SIGTERM, a terminal that closes SIGHUP: all mean what Ctrl-C does.
Where a run trains in this process they are a wish that it follows at its next step; elsewhere they interrupt, except
while something runs that must not be. Some send one wish twice, to a process and to its group, as `timeout` and shells
do; so what comes right after another of its kind is no second one.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE_WISH_S = 2.0  # within which two of a kind are one, also on a machine that is very busy
_heard: dict[int, float] = {}
"""When each signal was heard last, by a clock that nobody sets."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Signals to stop, as they come: after the first the run saves itself at its next step, the second interrupts."""
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    with _handled(receive):
        yield received


@contextmanager
def interrupting(then: signal.Handlers | None = None) -> Iterator[None]:
    """Each of them interrupts, as Ctrl-C does by itself; afterwards they do what they did before, or `then`."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, then):
        yield


def interrupt_main() -> None:
    """Interrupt the main thread from another, which has found out what it cannot know."""
    _heard.clear()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextmanager
def deferred() -> Iterator[None]:
    """None interrupts before the block is left, which ends with KeyboardInterrupt if one came."""
    received: list[int] = []
    with _handled(lambda number, _: received.append(number)):
        yield
    if received:
        raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any], then: signal.Handlers | None = None) -> Iterator[None]:
    """Have signals to stop call `handler`, but for those that whoever started this process had it ignore (nohup)."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        before, _heard[number] = _heard.get(number), time.monotonic()
        if before is not None and _heard[number] - before < ONE_WISH_S:
            return
        if number == signal.SIGHUP:
            _leave_terminal()
        handler(number, frame)

    heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier if then is None else then)


def _leave_terminal() -> None:
    """Drop what is printed to a terminal from now on: it is closed, and to write there is an error."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
