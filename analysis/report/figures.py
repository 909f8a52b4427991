"""The figures of a report: drawn, described, and with the data they show."""

from __future__ import annotations

import polars as pl

from analysis import queries
from analysis.figures.describe import describe_heatmap, heatmap_caption
from analysis.figures.figure import Figure
from analysis.figures.heatmap import Heatmap, draw_heatmap, heatmaps_info
from analysis.figures.svg import to_svg
from analysis.store import Store


def heatmap_figures(view: Store, members: pl.DataFrame, metric: str) -> list[Figure]:
    """One figure for each projection that has a finite value."""
    return [_heatmap_figure(info) for info in heatmaps_info(view.layers, members, metric)]


def why_no_heatmaps(view: Store, members: pl.DataFrame, metric: str) -> str:
    """What the page says in place of heatmaps."""
    cells = queries.layer_cells(view.layers, members["run_id"].to_list(), metric)
    return _not_finite(cells, metric) or "No layer has been measured yet."


def _not_finite(values: pl.LazyFrame, metric: str) -> str:
    measured = int(values.select(pl.col("value").count()).collect().item())
    return f"{metric} was measured {measured:,} times, with no finite value." if measured else ""


def _heatmap_figure(info: Heatmap) -> Figure:
    name, title = f"{info.metric}_{info.projection}", f"{info.projection} projection, {info.whose}"
    file = f"data/{name}_{'no_seed' if info.seed is None else f's{info.seed}'}.csv"
    description = describe_heatmap(info, file)
    svg = to_svg(*draw_heatmap(info), name=name, title=f"{info.metric}, {title}", description=description)
    return Figure(name, title, heatmap_caption(info), description, svg, {file: info.rows})
