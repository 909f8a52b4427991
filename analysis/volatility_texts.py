"""Says what the spread between seeds shows, and what it cannot: ratios with their medians, seeds and cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf, log
from typing import Any

import polars as pl

from analysis.volatility import Volatility, compare, table
from muon_core.spelling import counted

_EQUAL = "as much"
SHOWN = 4
"""Arms that a description tells of; the table has all."""


def sentences(info: Volatility, baseline: str | None, limit: int | None = None) -> list[str]:
    """What the cells say, an arm a sentence, of more than `limit` those that differ most; then what they do not say."""
    found = compare(info, baseline) if baseline in info.arms else None
    rows = {} if found is None else found.partition_by("arm", as_dict=True, maintain_order=True)
    frames = list(rows.values())
    if limit is not None and len(frames) > limit:
        frames = sorted(frames, key=lambda frame: -_departure(frame))[:limit]
    told = [_sentence(info, frame.to_dicts(), str(baseline)) for frame in frames]
    more = len(rows) - len(frames)
    told += [f"{more} arms more depart from {baseline} by less."] if more else []
    compared = {str(arm) for (arm,) in rows} | ({str(baseline)} if rows else set())
    return [*told, *_alone(info, compared)[:limit], *_left_out(info)[:limit]]


def _departure(frame: pl.DataFrame) -> float:
    """By how much an arm's spread departs from the baseline's where it does most, as a logarithm."""
    ratios = frame["ratio"].drop_nulls()
    return max((abs(log(ratio)) if 0 < ratio < inf else inf for ratio in ratios), default=0.0)


def why_none(info: Volatility) -> str:
    """What stands in place of an answer where no cell has a spread; empty where one has."""
    if info.arms:
        return ""
    if info.cells.is_empty():
        return f"{info.metric} was measured in no run that is done or running, so there is no spread between seeds."
    notes = " ".join(_left_out(info))
    return f"No arm has two seeds with {info.metric} at one cell, so there is no spread between seeds. {notes}".strip()


def _sentence(info: Volatility, rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """`update_alignment varies more between seeds under muon than under adamw in 6 of 6 projections: ...`."""
    arm = rows[0]["arm"]
    known = sorted((row for row in rows if row["ratio"] is not None), key=lambda row: -row["ratio"])
    if not known:
        return f"{info.metric} does not vary between seeds, neither under {arm} nor under {baseline}."
    more = sum(row["ratio"] > 1 for row in known)
    is_more = 2 * more >= len(known)
    known = known if is_more else known[::-1]
    most = max(row["cells"] for row in known)
    told = [row for row in known if 2 * row["cells"] >= most]  # a ratio of a few cells is noise
    ends = told if len(told) == 1 else [told[0], told[-1]]
    if all(_ratio_text(row["ratio"]) == _EQUAL for row in told):
        return f"{info.metric} varies as much between seeds under {arm} as under {baseline}: {_fold(info, told[0])}."
    number = more if is_more else sum(row["ratio"] < 1 for row in known)
    return (
        f"{info.metric} varies {'more' if is_more else 'less'} between seeds under {arm} than under {baseline} in "
        f"{number} of {len(rows)} projection{'s' if len(rows) > 1 else ''}: "
        f"{'; '.join(_fold(info, row) for row in ends)}."
    )


def _fold(info: Volatility, row: dict[str, Any]) -> str:
    """`8.7-fold more in q (median sd 0.26 against 0.03, n = 3, 8,800 cells, larger in 97 % of them)`."""
    n = seeds_text(row["n"], row["n_max"])
    if row["n"] != row["baseline_n"]:
        n += f" against {row['baseline_n']} (fewer seeds look steadier than they are)"
    return (
        f"{_ratio_text(row['ratio'])} in {row['projection']} (median {spread_name(info)} "
        f"{spread_text(info, row['median'])} against {spread_text(info, row['baseline_median'])}, {n}, "
        f"{counted(row['cells'], 'cell')}, larger in {100 * row['share']:.0f} % of them)"
    )


def _ratio_text(ratio: float) -> str:
    """`8.7-fold more`, `2-fold less`."""
    if ratio in (0, inf):
        return "only one of them varies"
    fold = f"{max(ratio, 1 / ratio):.2g}-fold"
    return _EQUAL if fold == "1-fold" else f"{fold} {'more' if ratio > 1 else 'less'}"


def _alone(info: Volatility, compared: Collection[str]) -> list[str]:
    """The arms that have a spread, and nothing to compare it with."""
    rows = table(info, "arm").filter(pl.col("cells") > 0, ~pl.col("arm").cast(pl.String).is_in(list(compared)))
    return [
        f"{row['arm']}: median {spread_name(info)} of {info.metric} between seeds {spread_text(info, row['median'])} "
        f"over {counted(row['cells'], 'cell')}, {seeds_text(row['n_min'], row['n_max'])}."
        for row in rows.iter_rows(named=True)
    ]


def _left_out(info: Volatility) -> list[str]:
    """What is missing, by arm."""
    notes = [_missing(row) for row in table(info, "arm").iter_rows(named=True)]
    if info.untold:
        notes.append(f"Whether a value is ill-posed is not recorded for {', '.join(info.untold)}; all are taken.")
    return [note for note in notes if note]


def _missing(row: dict[str, Any]) -> str:
    """`muon: 9 values ill-posed; 3 of 6 cells have no two seeds left.`; empty where all count, or none could."""
    kinds = {"ill_posed": "ill-posed", "not_finite": "not finite"}
    why = [f"{counted(row[kind], 'value')} {words}" for kind, words in kinds.items() if row[kind]]
    gone = row["cells_left_out"]
    if not why and not (gone and row["cells"]):
        return ""
    left = f"{gone:,} of {gone + row['cells']:,} cells have no two seeds left" if gone else "every cell keeps two seeds"
    return f"{row['arm']}: {', '.join([*why, left])}."


def spread_name(info: Volatility) -> str:
    """`sd`, or what it is a share of."""
    return "sd / mean" if info.is_relative else "sd"


def spread_text(info: Volatility, value: float) -> str:
    """`0.031`, or `1.2 %`."""
    return f"{100 * value:.2g} %" if info.is_relative else f"{value:.2g}"


def seeds_text(fewest: int, most: int) -> str:
    """`n = 3`, or `n = 2 to 3`."""
    return f"n = {fewest}" if fewest == most else f"n = {fewest} to {most}"
