"""Which imported arms trained for another length than the baseline, so that no difference to it means anything.

A sweep file varies lengths on purpose, and its answer says so in a warning. A folder of older runs holds whatever was
tried: a smoke test of 123 steps beside a run of 100,000. Those are told apart, and not compared.
"""

from __future__ import annotations

from typing import Any

import polars as pl

Length = tuple[int | None, int | None]
"""Steps and tokens."""


def of_other_length(members: pl.DataFrame) -> dict[str, str]:
    """Arm -> how its length differs from the baseline's, for those of imported runs where it does.

    With another batch, arms are compared at equal tokens: each may end up to a step beyond what was asked.

    Args:
        members: rows of `sweep_members`.
    """
    done = members.filter(pl.col("status") == "done")
    firsts = done.group_by("arm", maintain_order=True).first().iter_rows(named=True)
    lengths = {row["arm"]: (row["steps"], row["tokens"]) for row in firsts}
    baseline = next((row["arm"] for row in done.iter_rows(named=True) if row["role"] == "baseline"), None)
    if baseline is None:
        return {}
    own = lengths[baseline]
    return {
        arm: f"it trained for {_text(length)}, {baseline} for {_text(own)}"
        for arm, length in lengths.items()
        if not _are_equal(length, own)
    }


def _are_equal(one: Length, other: Length) -> bool:
    """Whether both saw as many tokens, to within a step of either; where one does not tell, took as many steps."""
    (steps, tokens), (other_steps, other_tokens) = one, other
    if tokens is None or other_tokens is None:
        return None in (steps, other_steps) or steps == other_steps
    a_step = max((seen / taken for taken, seen in ((steps, tokens), (other_steps, other_tokens)) if taken), default=0)
    return abs(tokens - other_tokens) <= a_step


def _text(length: Length) -> str:
    """`123 steps (2,015,232 tokens)`."""
    steps, tokens = length
    parts: list[Any] = [] if steps is None else [f"{steps:,} steps"]
    parts += [] if tokens is None else [f"({tokens:,} tokens)" if parts else f"{tokens:,} tokens"]
    return " ".join(parts) or "an unknown time"
