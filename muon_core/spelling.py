"""Words in messages: the one that was probably meant, and one or many."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """` (did you mean 'x'?)`, or nothing if no word is near.

    >>> did_you_mean("colum", ["text", "column"]), did_you_mean("body", ["text"])
    (" (did you mean 'column'?)", '')
    """
    found = difflib.get_close_matches(word, list(known), 1, likeness)
    return f" (did you mean {found[0]!r}?)" if found else ""


def counted(number: int, noun: str) -> str:
    """`1 run`, `1,200 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
