"""Waiting for what happens on hosts, and telling who follows the test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cluster.local_cluster import Followed

USUAL_S = 300.0  # on two cores that others use too


def say(text: str) -> None:
    """For who follows the test, with a clock."""
    print(f"\n{time.strftime('%H:%M:%S')}  {text}", end="", flush=True)


def until(what: str, condition: Callable[[], Any], timeout_s: float = USUAL_S, sweep: Followed | None = None) -> Any:
    """What `condition` returns, once that is true; `sweep` must go on meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert sweep is None or sweep.is_going, f"the sweep ended before {what}:\n{sweep.text}"
        assert time.monotonic() < deadline, f"waited in vain until {what}\n{sweep.text if sweep else ''}"
        time.sleep(0.1)
    return found
