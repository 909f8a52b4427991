"""The processes a test has started, through whatever processes lie between: Ray's are grandchildren and further."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def ask_family(question: Callable[[psutil.Process], T]) -> list[T]:
    """The answers of this process and all below it; some end while they are asked."""
    answers = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            answers.append(question(process))
    return answers


def find_family(title: str) -> list[int]:
    """Ids of those whose command line holds `title`."""
    return [pid for pid, command in ask_family(lambda p: (p.pid, " ".join(p.cmdline()))) if title in command]


def wildcard_listeners() -> list[str]:
    """Command lines of those that listen on more than loopback, one entry a socket; somebody must listen."""
    asked = ask_family(lambda p: (" ".join(p.cmdline()), p.net_connections(kind="tcp")))
    sockets = [(command, c) for command, found in asked for c in found if c.status == psutil.CONN_LISTEN]
    assert sockets
    return [command for command, c in sockets if c.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]
