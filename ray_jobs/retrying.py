"""How often a run is tried again: `retries` of the sweep file, counted against what ended its starts so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from muon_core.failures import Kind
from search_spaces.limits import Retries

# What each field of `retries` counts, and what is said of it.
_COUNTED: dict[str, dict[Kind, str]] = {
    "preemption": {"preemption": "its node was taken back"},
    "infrastructure": {"infrastructure": "a worker died", "hang": "it hung"},
    "program": {"program": "it failed", "out_of_memory": "it ran out of memory"},
}


class Hang(Exception):
    """A run makes no progress; its workers are given up."""


class Preempted(Exception):
    """The node of a run's workers is taken back; others take over elsewhere."""


def exhausted(retries: Retries, failures: Sequence[Kind]) -> str | None:
    """Why a run that ended by `failures` so far is not tried again; None if it is."""
    for field, words in _COUNTED.items():
        allowed, found = getattr(retries, field), Counter(kind for kind in failures if kind in words)
        if allowed != "unlimited" and found.total() > allowed:
            told = " and ".join(f"{words[kind]} {_times(count)}" for kind, count in found.items())
            return f"{told} in this run; `retries.{field}` allows {allowed}"
    return None


def in_words(failure: Kind) -> str:
    """What happened to a run that ended so: `a worker died`."""
    return next(words[failure] for words in _COUNTED.values() if failure in words)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
