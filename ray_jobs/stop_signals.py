"""What stops a command (Ctrl-C, SIGTERM, a closed terminal), and when it is heard.

Clusters, `timeout`, containers and spot notices send SIGTERM, a terminal that closes SIGHUP: all mean what Ctrl-C does.
Where a run trains in this process they are a wish that it follows at its next step; elsewhere they interrupt, except
while something runs that must not be.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
def interrupting() -> Iterator[None]:
    """Each of them interrupts, as Ctrl-C does by itself."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """None interrupts before the block is left, which ends with KeyboardInterrupt if one came."""
    received: list[int] = []
    try:
        with _handled(lambda number, _: received.append(number)):
            yield
    except SystemExit as left:  # `ray.init` has SIGTERM call sys.exit
        if left.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from None
    if received:
        raise KeyboardInterrupt


def never_alarmed() -> None:
    """Have this process, and the threads and processes it starts from now on, never hear SIGALRM.

    While Ray connects, it writes a trace at SIGTERM, passes the signal on to whoever heard it before, and has itself
    aborted by an alarm three seconds later, however orderly the end it gets.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Have signals to stop call `handler`, but for those that whoever started this process had it ignore (nohup)."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        handler(number, frame)

    heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _leave_terminal() -> None:
    """Drop what is printed to a terminal from now on: it is closed, and to write there is an error."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
