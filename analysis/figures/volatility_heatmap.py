"""Where seeds part: the spread between the seeds of each arm by layer and step, drawn as other heatmaps are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from analysis.figures.cells import Cells
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.heatmap import heatmap_figure
from analysis.figures.heatmap_text import count
from analysis.figures.panels import Heatmap, Shown, heatmaps
from analysis.store import Store
from analysis.summary import Summary
from analysis.volatility import Volatility, volatilities
from analysis.volatility_texts import seeds_text, spread_name

METRICS = ("update_alignment", "effective_rank")


def volatility_heatmap_figures(
    view: Store,
    members: pl.DataFrame | None = None,
    summary: Summary | None = None,
    metrics: Sequence[str] = METRICS,
    projections: Sequence[str] = (),
) -> Figures:
    """A figure for each of `metrics` and `projections` (all, if none is named) that some arm has at two seeds.

    Arms of the same runs are shown once. Raises ValueError for an unknown metric.
    """
    members, summary = given(view, members, summary)
    members = members.filter(~pl.col("arm").is_in([arm.arm for arm in summary.arms if arm.copy_of]))
    arms = members["arm"].unique(maintain_order=True).to_list()
    return Figures(
        _figure(info, found)
        for info in volatilities(view, members, metrics)
        for found in spread_heatmaps(info, arms)
        if not projections or found.projection in projections
    )


def spread_heatmaps(info: Volatility, arms: Sequence[str]) -> list[Heatmap]:
    """A heatmap of the spread for each projection that has one, a panel for each of `arms`."""
    who = [Shown(arm, arm, None) for arm in arms]
    name = f"{spread_name(info)} of {info.metric}"
    return heatmaps(_as_cells(info, name), name, who, shown="all seeds", counted=count(len(arms), "arm"))


def _as_cells(info: Volatility, name: str) -> Cells:
    """The spread as arrays, arms in the place of runs; cells that ill-posed values leave without one are flagged."""
    rows = info.cells
    kinds = {column: rows[column].unique().sort().cast(pl.String) for column in ("arm", "projection")}
    axes = {column: rows[column].unique().sort() for column in ("layer", "step")}
    shape = (*map(len, kinds.values()), *map(len, axes.values()))
    places = (
        *(
            rows[column].cast(pl.String).cast(pl.Enum(names)).to_physical().to_numpy()
            for column, names in kinds.items()
        ),
        *(np.searchsorted(values.to_numpy(), rows[column].to_numpy()) for column, values in axes.items()),
    )
    values, measured, ill_posed = (
        np.full(shape, np.nan, np.float32),
        np.zeros(shape, np.bool_),
        np.zeros(shape, np.bool_),
    )
    values[places] = rows["spread"].cast(pl.Float32).fill_null(np.nan).to_numpy()
    measured[places] = True
    ill_posed[places] = (rows["sd"].is_null() & (rows["ill_posed"] > 0)).to_numpy()
    return Cells(
        runs=tuple(kinds["arm"]),
        projections=tuple(kinds["projection"]),
        layers=tuple(axes["layer"]),
        steps=tuple(axes["step"]),
        measured=measured,
        values={name: values},
        ill_posed={name: ill_posed} if ill_posed.any() else {},
        chances={},
    )


def _figure(info: Volatility, found: Heatmap) -> Figure:
    figure = heatmap_figure(found, f"volatility_{info.metric}_{found.projection}")
    n = info.cells.filter(pl.col("sd").is_not_null())["n"]
    seeds = seeds_text(int(n.min()), int(n.max()))  # type: ignore[arg-type]
    hatched = sum(panel.num_ill_posed for panel in found.panels)
    left = f" {count(hatched, 'cell')} are hatched: ill-posed values leave no two seeds there." if hatched else ""
    caption = f"{figure.caption} A cell is taken over the seeds of an arm, {seeds}.{left}"
    return replace(figure, caption=caption, tables={figure.file: found.rows.drop("run_id", "seed")})
