"""What every builder of figures starts from: the members of a view and its summary, made where nobody hands them in."""

from __future__ import annotations

import polars as pl

from analysis.store import Store
from analysis.summary import Summary, members_of, summarize_members


def given(view: Store, members: pl.DataFrame | None, summary: Summary | None) -> tuple[pl.DataFrame, Summary]:
    """`members` and `summary`, made from `view` where they are None. Raises ValueError for a view of no sweep."""
    members = members_of(view) if members is None else members
    return members, summarize_members(view, members) if summary is None else summary
