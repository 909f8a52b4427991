"""Draws curves: rows of two panels, left all of training, right its last half on a scale of its own."""

from __future__ import annotations

import json

import altair as alt
import polars as pl

from analysis.figures.curves import Curves, axis_range, last_x, lone_rows, rows_of_arms, runs_text
from analysis.figures.style import shortened
from analysis.figures.svg import Rows, Spec, part

_WIDTH, _HEIGHT = 330, 230
_THICK, _SINGLE, _THIN = 2.5, 1.5, 0.8  # a mean, the mean of one run, a seed


def draw_curves(info: Curves) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data. `info` must have rows."""
    rows = [_row(info, arms) for arms in rows_of_arms(info)]
    own = dict.fromkeys(("color", "stroke", "strokeDash"), "independent")
    return {"vconcat": rows, "resolve": {"scale": own}}, _data(info)


def time_unit(info: Curves) -> tuple[str, float]:
    """Unit of the x axis and how many of the column's it is: tokens, or the seconds, minutes or hours that fit."""
    if info.over == "tokens":
        return "tokens", 1.0
    units = (("seconds", 1.0, 300), ("minutes", 60.0, 18_000), ("hours", 3600.0, float("inf")))
    return next((name, size) for name, size, limit in units if last_x(info) < limit)


def _data(info: Curves) -> dict[str, Rows]:
    """What is drawn: one in `info.stride` steps and the last of each line; one run is drawn once, as its arm's mean."""
    x = pl.col(info.over) / time_unit(info)[1]
    rank = pl.col("step").rank("dense") - 1
    last = pl.col("step") == pl.col("step").max()
    seeds = info.seeds.filter((rank % info.stride == 0) | last.over("run_id"))
    means = info.means.filter((rank % info.stride == 0) | last.over("arm"))
    single = info.seeds.group_by("arm").agg(pl.col("run_id").n_unique()).filter(run_id=1)["arm"]
    has_mean = pl.col("arm").is_in(single.implode()) & pl.col("arm").is_in(info.means["arm"].unique().implode())
    return {
        "seeds": seeds.filter(~has_mean).select("arm", "run_id", "value", x=x).to_dicts(),
        "means": means.select("arm", "mean", "low", "high", "n", x=x).to_dicts(),
        "lone": lone_rows(info).select("arm", "run_id", "value", x=x).to_dicts(),
        "margins": info.margins.to_dicts(),
        "zero": [{"zero": 0}],
    }


def _row(info: Curves, arms: list[str]) -> Spec:
    whole = _panel(info, arms, 0.0, "all of training")
    late = _panel(info, arms, last_x(info) / 2, "last half, own scale")
    return {"hconcat": [whole, late], "spacing": 95, "bounds": "flush"}


def _panel(info: Curves, arms: list[str], start: float, title: str) -> Spec:
    shown = alt.FieldOneOfPredicate(field="arm", oneOf=arms)
    n = dict(info.means.select("arm", "n").iter_rows())
    colours = alt.Scale(domain=arms, range=[info.styles[arm].colour for arm in arms])
    dashes = alt.Scale(domain=arms, range=[_dash(info.styles[arm].dash, n.get(arm)) for arm in arms])
    colour = alt.Color("arm:N", scale=colours, legend=_legend(arms, n))
    dash = alt.StrokeDash("arm:N", scale=dashes)
    unit, size = time_unit(info)
    axis = alt.Axis(
        format="~s", labelExpr="datum.value ? replace(datum.label, 'G', 'B') : '0'", tickCount=5, grid=False
    )
    lone = lone_rows(info)
    padding = 6 if lone.height else 0  # a dot on the edge stays whole
    domain = alt.Scale(domain=[start / size, last_x(info) / size], nice=False, padding=padding)
    x_title = "training tokens" if unit == "tokens" else f"{unit} since the run's start"
    x = alt.X("x:Q", title=x_title, scale=domain, axis=axis)
    low, high = axis_range(info, start, arms)
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=_y_title(info), scale=scale, axis=alt.Axis(tickCount=6))

    def of(name: str) -> alt.Chart:
        return alt.Chart(alt.NamedData(name)).transform_filter(shown)

    means = of("means")
    layers = [
        of("seeds")
        .mark_line(clip=True, strokeWidth=_THIN)
        .encode(x, y("value"), colour, detail=alt.Detail("run_id:N")),
        means.transform_filter("datum.n > 1")
        .mark_line(clip=True, strokeWidth=_THICK)
        .encode(x, y("mean"), colour, dash),
        means.transform_filter("datum.n == 1")
        .mark_line(clip=True, strokeWidth=_SINGLE)
        .encode(x, y("mean"), colour, dash),
    ]
    if info.is_difference:
        edge = alt.Stroke("arm:N", scale=colours, legend=None)
        band = means.transform_filter("datum.low != null").mark_area(clip=True, fillOpacity=0.15, strokeWidth=0.6)
        zero = alt.Chart(alt.NamedData("zero")).mark_rule(color="currentColor", strokeWidth=1).encode(y("zero"))
        near = of("margins").transform_filter(f"datum.margin > {low} && datum.margin < {high}")
        margin = near.mark_rule(color="currentColor", strokeWidth=1.2, strokeDash=[6, 3]).encode(y("margin"))
        layers = [band.encode(x, y("low"), colour, edge, y2=alt.Y2("high:Q")), zero, margin, *layers]
    if lone.height:
        dots = of("lone").mark_point(clip=True, filled=True, size=40, opacity=1)
        layers.append(dots.encode(x, y("value"), colour))
    return {"layer": [part(layer) for layer in layers], "width": _WIDTH, "height": _HEIGHT, "title": title}


def _dash(own: tuple[int, ...], n: int | None) -> list[int]:
    """The arm's; what is a single run is dashed at any rate."""
    return [4, 2] if n == 1 and own == (1, 0) else list(own)


def _legend(arms: list[str], n: dict[str, int]) -> alt.Legend:
    """Below the panels, each arm with the number of seeds its mean is over."""
    labels = {arm: f"{shortened(arm, 48)} ({runs_text(n[arm]) if arm in n else 'no mean'})" for arm in arms}
    longest = max(map(len, labels.values()), default=0)
    return alt.Legend(
        title=None,
        orient="bottom",
        columns=4 if longest <= 22 else 2 if longest <= 44 else 1,
        labelExpr=f"{json.dumps(labels)}[datum.label]",
        labelLimit=600,
        symbolType="stroke",
        symbolSize=900,
        symbolStrokeWidth=_THICK,
        symbolOpacity=1,
    )


def _y_title(info: Curves) -> str:
    if info.is_difference:
        return f"{info.metric} minus {shortened(info.baseline or '', 24)}"
    return f"{info.metric} ({info.unit})" if len(info.unit) < 24 else info.metric
