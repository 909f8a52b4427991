"""Layer x step heatmaps of one projection, a panel for each arm, all on one colour scale.

Panels are compared with each other, so they share seed, layers, steps and scale. The scale runs from the 1st to the
99th percentile, else a single outlier would leave all other cells one colour; the share beyond it is stated.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from analysis import queries
from analysis.figures.cells import Cells, all_with_values, cells_by_metric, read_cells, runs_with_values
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.heatmap_drawing import draw_heatmap
from analysis.figures.heatmap_text import count, describe_heatmap, heatmap_caption
from analysis.figures.panels import Heatmap, Shown, heatmaps
from analysis.figures.svg import to_svg
from analysis.store import Store
from analysis.summary import Summary

METRICS = (
    "entropy",
    "effective_rank",
    "left_alignment",
    "right_alignment",
    "momentum_left_alignment",
    "weight_norm_peak",
    "grad_norm_peak",
    "gradient_agreement",
)
"""What is shown where nothing else is asked for: spectra, where updates go, norms, and health of the momentum."""


def choose_seed(members: pl.DataFrame, run_ids: set[str]) -> int | None:
    """The seed at which most arms have values (`run_ids`), the first listed of equals; None if no run of a seed has."""
    present = members.filter(pl.col("run_id").is_in(run_ids)).drop_nulls("seed")
    counts = present.group_by("seed", maintain_order=True).agg(pl.col("arm").n_unique())
    seeds = counts.sort("arm", descending=True, maintain_order=True)["seed"]
    return int(seeds[0]) if len(seeds) else None


def heatmaps_info(table: pl.LazyFrame, members: pl.DataFrame, *metrics: str, seed: int | None = None) -> list[Heatmap]:
    """A heatmap for each of `metrics` and each projection that has a finite value of it.

    Args:
        table: the one that holds all of `metrics`, `layers` or `health`.
        members: rows of `sweep_members`; every arm gets a panel.
        seed: whose runs to show; None takes the one at which most arms have values. An arm of which no run tells its
            seed is shown by the first that has values.
    Raises: ValueError for an unknown metric.
    """
    for metric in metrics:
        queries.check_layer_metric(metric)
    with_values = runs_with_values(table, members, metrics)
    chosen = choose_seed(members, with_values) if seed is None else seed
    who = shown_arms(members, with_values, chosen)
    cells = read_cells(table, listed(members, who), metrics)
    return [info for metric in metrics for info in _infos(cells, who, metric, chosen)]


def heatmap_figures(
    view: Store,
    members: pl.DataFrame | None = None,
    summary: Summary | None = None,
    metrics: Sequence[str] = METRICS,
    seed: int | None = None,
    projections: Sequence[str] = (),
) -> Figures:
    """A figure for each of `metrics` and each projection that has a finite value of it, by metric, all at one seed.

    Raises ValueError for an unknown metric.
    """
    members, summary = given(view, members, summary)
    with_values = all_with_values(view, members, metrics)
    chosen = choose_seed(members, with_values) if seed is None else seed
    who = shown_arms(members, with_values, chosen)
    found = cells_by_metric(view, listed(members, who), metrics)
    infos = [info for metric in metrics for info in _infos(found[metric], who, metric, chosen)]
    infos = [info for info in infos if not projections or info.projection in projections]
    end = "no_seed" if chosen is None else f"s{chosen}"
    return Figures(heatmap_figure(info, f"{info.metric}_{info.projection}", end) for info in infos)


def why_no_heatmaps(view: Store, members: pl.DataFrame, metrics: Sequence[str] = METRICS) -> str:
    """What a page says in place of heatmaps, where no projection has a finite value of any of `metrics`."""
    told = [_why_not(view, members, metric) for metric in metrics]
    return " ".join(text for text in told if text) or "No layer has been measured yet."


def heatmap_figure(info: Heatmap, name: str, end: str = "") -> Figure:
    """The figure of `info`; `end` is what the name of its data has beside its own."""
    title, file = f"{info.projection} projection, {info.shown}", f"data/{name}{'_' if end else ''}{end}.csv"
    description = describe_heatmap(info, file)
    what = info.metric if info.minus is None else f"{info.metric} minus {info.minus}"
    svg = to_svg(*draw_heatmap(info), name=name, title=f"{what}, {title}", description=description)
    return Figure(name, title, heatmap_caption(info), description, svg, {file: info.rows})


def shown_arms(members: pl.DataFrame, with_values: set[str], seed: int | None) -> list[Shown]:
    """Every arm, and the run it is shown by: that of `seed`; of an arm that tells no seed the first with values."""
    of_seed = members.clear() if seed is None else members.filter(pl.col("seed") == seed)
    seedless = members.filter(pl.col("seed").is_null().all().over("arm"), pl.col("run_id").is_in(with_values))
    runs = pl.concat([of_seed, seedless]).unique("arm", keep="first", maintain_order=True)
    by_arm = dict(zip(runs["arm"], runs["run_id"], strict=True))
    seeds = dict(zip(runs["arm"], runs["seed"], strict=True))
    return [Shown(arm, by_arm.get(arm), seeds.get(arm)) for arm in members["arm"].unique(maintain_order=True)]


def listed(members: pl.DataFrame, who: Sequence[Shown]) -> pl.DataFrame:
    """The rows of `members` that are shown."""
    return members.filter(pl.col("run_id").is_in([one.run_id for one in who if one.run_id is not None]))


def _infos(cells: Cells, who: Sequence[Shown], metric: str, seed: int | None) -> list[Heatmap]:
    shown = "no seed" if seed is None else f"seed {seed}"
    at = "without a seed" if seed is None else f"at seed {seed}"
    return heatmaps(cells, metric, who, shown=shown, counted=f"{count(len(who), 'arm')} {at}")


def _why_not(view: Store, members: pl.DataFrame, metric: str) -> str:
    cells = queries.layer_cells(view.table(queries.layer_table(metric)), members, [metric])
    measured = int(cells.select(pl.col(metric).count()).collect().item())
    return f"{metric} was measured {measured:,} times, with no finite value." if measured else ""
