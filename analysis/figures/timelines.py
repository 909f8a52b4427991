"""Gates and noise over training: how many matrices were perturbed at a step, and by how much of their momentum.

A NOLAH gate is of one matrix and step. Here a step has the share of a run's hidden matrices whose gate was open, and
the median and the 10th to 90th percentile, over those matrices, of what noise added. A panel an arm, all on one scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import altair as alt
import polars as pl

from analysis import queries
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.small_multiples import copies, in_rows
from analysis.figures.style import ArmStyle, arm_styles
from analysis.figures.svg import Rows, Spec, part, to_svg
from analysis.store import Store
from analysis.summary import Summary

_WIDTH, _HEIGHT, _PER_ROW = 165, 110, 4
TITLES = {"gate_open": "Matrices perturbed", "noise_ratio": "Size of the noise"}
"""Columns of `health` that are drawn."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The data of one figure.

    `seeds` has a row per run and step (`arm`, `run_id`, `seed`, `step`, `value`): the share of open gates, or the
    median noise over matrices, then with `low` and `high`, its percentiles. `means` has one per arm and step that all
    of its runs measured (`arm`, `step`, `value`, `low`, `high`, `n`).
    """

    column: str
    arms: tuple[str, ...]
    styles: dict[str, ArmStyle]
    seeds: pl.DataFrame
    means: pl.DataFrame


def timeline_figures(view: Store, members: pl.DataFrame | None = None, summary: Summary | None = None) -> Figures:
    """Open gates and size of the noise, of the arms that have either; without a run that does, none.

    Args:
        view: `open_store(place).sweep(name)`.
        members, summary: of it, where they are at hand.
    """
    members, _ = given(view, members, summary)
    infos = [timeline_info(view.table("health"), members, column) for column in TITLES]
    return Figures(_figure(info) for info in infos if info.arms)


def why_no_timelines() -> str:
    """What a page says in place of timelines."""
    return "No run of this sweep perturbs its momentum, or none has measured it yet."


def timeline_info(health: pl.LazyFrame, members: pl.DataFrame, column: str) -> Timeline:
    """Data of one of the columns of TITLES; without arms if none has it."""
    who = members.lazy().unique("run_id", keep="first", maintain_order=True).select("run_id", "arm", "seed")
    cells = queries.layer_cells(health, members, [column, "alpha"])
    cells = cells.filter(pl.col("alpha").is_not_null())  # others have gates that are never open
    cells = cells.select("run_id", "step", value=pl.col(column).cast(pl.Float64))
    finite = cells.filter(pl.col("value").is_finite())
    value, steps = pl.col("value"), finite.group_by("run_id", "step")
    measured = steps.agg(
        value=value.mean() if column == "gate_open" else value.median(),
        low=value.quantile(0.1, "linear"),
        high=value.quantile(0.9, "linear"),
    )
    seeds = who.join(measured, on="run_id", how="inner").sort("arm", "seed", "run_id", "step").collect()
    if column == "gate_open":
        seeds = seeds.drop("low", "high")
    runs = seeds.group_by("arm").agg(runs=pl.col("run_id").n_unique())
    means = seeds.group_by("arm", "step").agg(pl.col("^(value|low|high)$").mean(), n=pl.len()).join(runs, on="arm")
    pairs = members.select("arm", "optimizer").drop_nulls("optimizer").unique("arm", keep="first", maintain_order=True)
    return Timeline(
        column=column,
        arms=tuple(arm for arm in members["arm"].unique(maintain_order=True) if arm in set(seeds["arm"])),
        styles=arm_styles(list(pairs.iter_rows())),
        seeds=seeds,
        means=means.filter(pl.col("n") == pl.col("runs")).drop("runs").sort("arm", "step"),
    )


def draw_timeline(info: Timeline) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a panel an arm, all on the same scales."""
    data: dict[str, Rows] = {}
    words = []
    for i, arm in enumerate(info.arms):
        data[f"seeds{i}"] = _thinned(info.seeds.filter(arm=arm)).drop("arm").to_dicts()
        data[f"means{i}"] = _thinned(info.means.filter(arm=arm)).drop("arm").to_dicts()
        words.append({"@seeds": f"seeds{i}", "@means": f"means{i}", "@colour": info.styles[arm].colour})
    return in_rows(copies(_panel(info), words), list(info.arms), _PER_ROW, 24), data


def _panel(info: Timeline) -> Spec:
    last = max(info.seeds["step"])
    top = 1.0 if info.column == "gate_open" else 1.05 * max(info.seeds["high"]) or 1.0
    axis = alt.Axis(tickCount=3, grid=False, format="~s", labelExpr="datum.value ? datum.label : '0'")
    x = alt.X("step:Q", scale=alt.Scale(domain=[0, last or 1], nice=False), axis=axis)
    scale = alt.Scale(domain=[0, top], nice=False)
    percent = alt.Axis(tickCount=4, format="%" if info.column == "gate_open" else "~g", title=None)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=scale, axis=percent)

    seeds, means = alt.Chart(alt.NamedData("@seeds")), alt.Chart(alt.NamedData("@means"))
    layers = [
        seeds.mark_line(color="@colour", strokeWidth=0.8).encode(x, y("value"), detail=alt.Detail("run_id:N")),
        means.mark_line(color="@colour", strokeWidth=2.2).encode(x, y("value")),
    ]
    if info.seeds["step"].n_unique() <= 2:  # few to make a line of
        layers.append(seeds.mark_point(color="@colour", size=30, filled=True, opacity=1).encode(x, y("value")))
    if info.column == "noise_ratio":
        layers.insert(0, means.mark_area(color="@colour", fillOpacity=0.2).encode(x, y("low"), y2=alt.Y2("high:Q")))
    layered: Spec = {"layer": [part(layer) for layer in layers], "width": _WIDTH, "height": _HEIGHT}
    return layered


def _thinned(rows: pl.DataFrame) -> pl.DataFrame:
    """One in so many steps that a panel can show them."""
    steps = rows["step"].unique().sort()
    return rows.filter(pl.col("step").is_in(steps.gather_every(-(-len(steps) // _WIDTH) or 1).implode()))


def timeline_caption(info: Timeline) -> str:
    """What the lines are."""
    lines = "Thin lines are single seeds, thick lines their mean; all panels have one scale."
    if info.column == "gate_open":
        return f"Share of the hidden matrices that were perturbed at a step, those whose gate was open. {lines}"
    return (
        "Frobenius norm of what the perturbation added / that of the momentum: the median over hidden matrices, 0 "
        f"where a gate was closed. {lines} Bands are the 10th to 90th percentile over matrices, mean over seeds."
    )


def describe_timeline(info: Timeline, file: str) -> str:
    """Kind and axes, then the first, last, lowest and highest of each arm, and where the values are."""
    what = "share of hidden matrices perturbed" if info.column == "gate_open" else "median relative size of the noise"
    parts = []
    for arm in info.arms:
        rows = info.seeds.filter(arm=arm).sort("step")
        by_step = rows.group_by("step", maintain_order=True).agg(pl.col("value").mean())
        first, last = by_step.row(0), by_step.row(-1)
        runs = rows["run_id"].n_unique()
        parts.append(
            f"{arm}: {first[1]:.3g} at step {first[0]:,}, {last[1]:.3g} at step {last[0]:,}, from "
            f"{min(rows['value']):.3g} to {max(rows['value']):.3g} ({'single run' if runs == 1 else f'{runs} runs'})."
        )
    return " ".join([f"Line charts of the {what} against step, a panel an arm.", *parts, f"Values: {file}."])


def _figure(info: Timeline) -> Figure:
    name, title = info.column, TITLES[info.column]
    tables = {f"data/timeline_{name}.csv": info.seeds, f"data/timeline_{name}_means.csv": info.means}
    description = describe_timeline(info, next(iter(tables)))
    svg = to_svg(*draw_timeline(info), name=f"timeline_{name}", title=title, description=description)
    return Figure(f"timeline_{name}", title, timeline_caption(info), description, svg, tables)
