"""How long what is under way and what is to come will take."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


def time_left(under_way: Sequence[float], to_come: Iterable[float]) -> float:
    """Seconds until all have ended, if each that ends makes room for the next to come.

    >>> time_left([10, 30], [15, 10])
    35

    Args:
        under_way: seconds each still takes, at least one.
        to_come: seconds each will take, in their order.
    """
    ends = list(under_way)
    heapq.heapify(ends)
    for seconds in to_come:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)
