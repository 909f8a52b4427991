"""Heatmaps of a candidate minus the baseline at the same seed, layer and step: blue is below it, orange above.

The scale is symmetric about 0, so that no difference is the light middle colour in every figure. A cell that either run
has not, or has ill-posed, is that here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from analysis.figures.cells import Cells, Chance, all_with_values, cells_by_metric
from analysis.figures.figure import Figures
from analysis.figures.given import given
from analysis.figures.heatmap import choose_seed, heatmap_figure, listed, shown_arms
from analysis.figures.heatmap_text import count
from analysis.figures.panels import Heatmap, Shown, heatmaps
from analysis.store import Store
from analysis.summary import Summary

METRICS = ("effective_rank",)


def minus_run(cells: Cells, run: str) -> Cells:
    """`cells` of every run minus those of `run`, which must be one of them."""
    one = cells.runs.index(run)
    chances: dict[str, dict[tuple[str, str], Chance]] = {
        metric: {
            place: Chance(0.0, float(np.hypot(chance.sd, known[run, place[1]].sd)))
            for place, chance in known.items()
            if (run, place[1]) in known
        }
        for metric, known in cells.chances.items()
    }
    return replace(
        cells,
        measured=cells.measured & cells.measured[one],
        values={metric: values - values[one] for metric, values in cells.values.items()},
        ill_posed={metric: flags | flags[one] for metric, flags in cells.ill_posed.items()},
        chances=chances,
    )


def difference_infos(
    cells: Cells, metric: str, who: Sequence[Shown], baseline: Shown, seed: int | None
) -> list[Heatmap]:
    """A heatmap for each projection in which somebody of `who` and the baseline have a finite value at one cell."""
    if baseline.run_id not in cells.runs:
        return []
    shown = "no seed" if seed is None else f"seed {seed}"
    at = "without a seed" if seed is None else f"at seed {seed}"
    counted = f"{count(len(who), 'arm')} {at}, each minus {baseline.arm}"
    return heatmaps(minus_run(cells, baseline.run_id), metric, who, shown=shown, counted=counted, minus=baseline.arm)


def difference_heatmap_figures(
    view: Store,
    members: pl.DataFrame | None = None,
    summary: Summary | None = None,
    metrics: Sequence[str] = METRICS,
    seed: int | None = None,
    projections: Sequence[str] = (),
) -> Figures:
    """A figure for each of `metrics` and each projection, every other arm minus the baseline at one seed.

    Empty without a baseline, or where it has no values. Raises ValueError for an unknown metric.
    """
    members, summary = given(view, members, summary)
    if summary.baseline is None:
        return Figures()
    with_values = all_with_values(view, members, metrics)
    of_baseline = members.filter(pl.col("arm") == summary.baseline)
    chosen = (
        choose_seed(members, with_values & _same_seeds(members, of_baseline, with_values)) if seed is None else seed
    )
    who = shown_arms(members, with_values, chosen)
    baseline = next((one for one in who if one.arm == summary.baseline), None)
    others = [one for one in who if one.arm != summary.baseline]
    if baseline is None or not others:
        return Figures()
    found = cells_by_metric(view, listed(members, who), metrics)
    infos = [info for metric in metrics for info in difference_infos(found[metric], metric, others, baseline, chosen)]
    infos = [info for info in infos if not projections or info.projection in projections]
    end = "no_seed" if chosen is None else f"s{chosen}"
    return Figures(heatmap_figure(info, f"{info.metric}_minus_baseline_{info.projection}", end) for info in infos)


def why_no_difference_heatmaps(summary: Summary) -> str:
    """What a page says in place of these heatmaps."""
    if summary.baseline is None:
        return "There is no baseline to subtract."
    return f"No arm has layers that were measured at a seed and step at which {summary.baseline}'s were."


def _same_seeds(members: pl.DataFrame, of_baseline: pl.DataFrame, with_values: set[str]) -> set[str]:
    """run_id of those at seeds at which the baseline has values."""
    seeds = of_baseline.filter(pl.col("run_id").is_in(with_values))["seed"].drop_nulls()
    return set(members.filter(pl.col("seed").is_in(seeds.implode()))["run_id"])
