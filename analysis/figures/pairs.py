"""Two seeds, or any two runs, side by side on one scale: what of a heatmap is the optimizer's, and what the seed's."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from analysis.figures.cells import all_with_values, cells_by_metric
from analysis.figures.figure import Figures
from analysis.figures.given import given
from analysis.figures.heatmap import heatmap_figure, listed
from analysis.figures.heatmap_text import count
from analysis.figures.panels import Shown, heatmaps
from analysis.store import Store
from analysis.summary import Summary

METRICS = ("effective_rank",)


def seed_pair(members: pl.DataFrame, with_values: set[str]) -> tuple[int, int] | None:
    """The two seeds at which most arms have values, of equals the first listed; None if there are not two."""
    present = members.filter(pl.col("run_id").is_in(with_values)).drop_nulls("seed")
    counts = present.group_by("seed", maintain_order=True).agg(pl.col("arm").n_unique())
    first = counts.with_row_index("place").sort("arm", "place", descending=[True, False]).head(2).sort("place")
    return (int(first["seed"][0]), int(first["seed"][1])) if first.height == 2 else None


def pair_figures(
    view: Store,
    members: pl.DataFrame | None = None,
    summary: Summary | None = None,
    metrics: Sequence[str] = METRICS,
    pair: tuple[int, int] | tuple[str, str] | None = None,
    projections: Sequence[str] = (),
) -> Figures:
    """A figure for each of `metrics` and each projection: a row of two panels for each arm, all on one scale.

    Args:
        pair: two seeds, whose runs of every arm that has both are shown; or the run_id of two runs. None takes the two
            seeds at which most arms have values.
    Returns: none where there are not two seeds.
    Raises: ValueError for an unknown metric, a seed that no arm has or a run that is not in the sweep.
    """
    members, summary = given(view, members, summary)
    with_values = all_with_values(view, members, metrics)
    pair = seed_pair(members, with_values) if pair is None else pair
    if pair is None:
        return Figures()
    who = _pairs(members, pair)
    found = cells_by_metric(view, listed(members, who), metrics)
    first, second = pair
    is_seeds = isinstance(first, int)
    shown = f"seeds {first} and {second}" if is_seeds else f"{first} and {second}"
    counted = f"{count(len(who) // 2, 'arm')} at seeds {first} and {second}" if is_seeds else "2 runs side by side"
    infos = [
        info
        for metric in metrics
        for info in heatmaps(found[metric], metric, who, shown=shown, counted=counted, per_row=2)
        if not projections or info.projection in projections
    ]
    return Figures(heatmap_figure(info, f"{info.metric}_pairs_{info.projection}") for info in infos)


def why_no_pairs(members: pl.DataFrame) -> str:
    """What a page says in place of pairs."""
    seeds = members["seed"].drop_nulls().n_unique()
    return "No two seeds have measured layers." if seeds > 1 else "There are no two seeds to lay side by side."


def _pairs(members: pl.DataFrame, pair: tuple[int, int] | tuple[str, str]) -> list[Shown]:
    """Whom to show, two by two."""
    who = []
    if isinstance(pair[0], str):
        for run in pair:
            found = members.filter(pl.col("run_id") == run)
            if found.is_empty():
                raise ValueError(f"no run {run!r} in the sweep; its runs are {', '.join(members['run_id'].unique())}")
            row = found.row(0, named=True)
            seed = row["seed"]
            who.append(Shown(row["arm"], run, seed, "no seed" if seed is None else f"seed {seed}"))
        return who
    by_place = {(arm, seed): run for arm, seed, run in members.select("arm", "seed", "run_id").iter_rows()}
    for seed in pair:
        if seed not in set(members["seed"]):
            known = ", ".join(str(seed) for seed in members["seed"].drop_nulls().unique(maintain_order=True))
            raise ValueError(f"no run of the sweep has seed {seed}; its seeds are {known}")
    for arm in members["arm"].unique(maintain_order=True):
        runs = [by_place.get((arm, seed)) for seed in pair]
        if any(runs):
            who += [Shown(arm, run, seed, f"seed {seed}") for run, seed in zip(runs, pair, strict=True)]
    return who
