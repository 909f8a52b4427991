"""Words in messages: the one that was probably meant, and one or many."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """` (did you mean 'x'?)`, or nothing if no word is near.

    >>> did_you_mean("colum", ["text", "column"]), did_you_mean("body", ["text"])
    (" (did you mean 'column'?)", '')
    """
    near = nearest(word, known, likeness)
    return f" (did you mean {near[0]!r}?)" if near else ""


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """The one of the `known` names that `word` is most like, whatever the case; empty if it is like none.

    Args:
        likeness: the least that counts, from 0 to 1 (difflib's ratio).
    """
    folded = {name.casefold(): name for name in known}
    return [folded[near] for near in difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=likeness)]


def counted(number: int, noun: str) -> str:
    """`1 run`, `1,200 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
