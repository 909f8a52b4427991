"""How spread between seeds is distributed over the cells of each arm, a panel for each projection.

A bar is drawn from quantiles of the cells, every one of which is a deviation between seeds of one matrix at one step:
no average over layers or steps comes before it. All panels share one scale.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.style import ArmStyle, arm_styles
from analysis.figures.svg import Rows, Spec, to_svg
from analysis.store import Store
from analysis.summary import Summary
from analysis.volatility import METRICS, Volatility, table, volatilities
from analysis.volatility_texts import SHOWN, seeds_text, sentences, spread_name, spread_text, why_none

_WIDTH, _PER_ROW = 160, 3
_NAME, _LINE = 24, 13  # characters in a line of an arm's name, and pixels between two of its lines
_BARE = {"labelLimit": 0, "grid": False, "ticks": False, "domain": False}


@dataclass(frozen=True, slots=True)
class Spreads:
    """The data of one figure."""

    info: Volatility
    baseline: str | None
    bars: pl.DataFrame
    """A row an arm and projection with a spread, as `analysis.volatility.table` gives it."""
    arms: tuple[str, ...]
    """In the sweep's order, those with bars."""
    projections: tuple[str, ...]
    styles: dict[str, ArmStyle]
    is_log: bool
    """Whether the scale is logarithmic: where no bar reaches down to 0."""


def spreads_info(info: Volatility, members: pl.DataFrame, baseline: str | None) -> Spreads:
    """Data of the figure of `info`; `bars` is empty where no arm has two seeds."""
    bars = table(info, "projection", "arm").filter(pl.col("median").is_not_null()).sort("projection", "arm")
    bars = bars.with_columns(pl.col("arm", "projection").cast(pl.String))
    pairs = members.select("arm", "optimizer").drop_nulls("optimizer").unique("arm", keep="first", maintain_order=True)
    return Spreads(
        info=info,
        baseline=baseline,
        bars=bars,
        arms=tuple(arm for arm in info.arms if arm in set(bars["arm"])),
        projections=tuple(bars["projection"].unique(maintain_order=True)),
        styles=arm_styles(sorted(pairs.iter_rows(), key=lambda pair: pair[0] != baseline)),
        is_log=bool((bars["q10"] > 0).all()),
    )


def draw_spreads(info: Spreads) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: thin from the 10th to the 90th percentile, thick the middle half, a tick the median.

    Written by hand: Altair takes as long to check it as Vega to draw it.
    """
    columns = ("arm", "projection", "q10", "q25", "median", "q75", "q90")
    factor = 100 if info.info.is_relative else 1
    rows = info.bars.select(*columns).with_columns(pl.col(columns[2:]) * factor)
    scale = _scale(float(rows["q10"].min()), float(rows["q90"].max()), is_log=info.is_log)  # type: ignore[arg-type]
    panels = [_panel(info, name, scale, is_first=i % _PER_ROW == 0) for i, name in enumerate(info.projections)]
    lines = [{"hconcat": panels[i : i + _PER_ROW], "spacing": 20} for i in range(0, len(panels), _PER_ROW)]
    return {"data": {"name": "bars"}, "vconcat": lines, "spacing": 26}, {"bars": rows.to_dicts()}


def _scale(low: float, high: float, *, is_log: bool) -> Spec:
    domain = [low / 1.15, high * 1.15] if is_log else [0.0, high * 1.04 or 1.0]
    return {"type": "log" if is_log else "linear", "domain": domain, "nice": False}


def _panel(info: Spreads, projection: str, scale: Spec, *, is_first: bool) -> Spec:
    """The bars of one projection; the first of a row has the arms' names."""
    names = {arm: textwrap.wrap(arm, _NAME) for arm in info.arms}
    y = {
        "field": "arm",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(info.arms)},
        "axis": {"labelExpr": f"{json.dumps(names)}[datum.value]", "labelLineHeight": _LINE, **_BARE}
        if is_first
        else None,
    }
    colours = {"domain": list(info.arms), "range": [info.styles[arm].colour for arm in info.arms]}
    colour = {"color": {"field": "arm", "type": "nominal", "scale": colours, "legend": None}}
    title = f"{spread_name(info.info)} between seeds{', %' if info.info.is_relative else ''}"
    axis = {"grid": True, "tickCount": 4, "format": "~g", "labelOverlap": True}

    def x(field: str) -> Spec:
        return {"x": {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}}

    return {
        "title": {"text": f"{projection} projection", "frame": "group"},
        "width": _WIDTH,
        "height": (_LINE * max(map(len, names.values())) + 8) * len(names) + 8,
        "transform": [{"filter": {"field": "projection", "equal": projection}}],
        "encoding": {"y": y},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": x("q10") | {"x2": {"field": "q90"}} | colour},
            {"mark": {"type": "bar", "height": 8}, "encoding": x("q25") | {"x2": {"field": "q75"}} | colour},
            {"mark": {"type": "tick", "color": "currentColor", "thickness": 2, "size": 14}, "encoding": x("median")},
        ],
    }


def spreads_caption(info: Spreads) -> str:
    """What the bars are."""
    n = seeds_text(*_seeds(info))
    scale = "logarithmic" if info.is_log else "linear"
    left_out = int(info.info.cells["ill_posed"].sum())
    gone = f" {left_out:,} ill-posed values are left out." if left_out else ""
    return (
        f"Spread of {info.info.metric} between the seeds of an arm ({n}), taken at every layer and tracked step and "
        f"only then summed up: the tick is the median over these cells, thick the middle half, thin the 10th to 90th "
        f"percentile; {scale} scale, the same in all panels.{gone} Cells of one run move together, so no test goes "
        "with it."
    )


def describe_spreads(info: Spreads, file: str) -> str:
    """Kind and axes, what is said of the arms, each panel's medians, and where the values are."""
    kind = "sample deviation over mean" if info.info.is_relative else "sample deviation"
    parts = [
        f"Range bars of the {kind} of {info.info.metric} between seeds, over layers and tracked steps, an arm a bar, "
        f"{len(info.projections)} projection{'s' if len(info.projections) > 1 else ''}.",
        *sentences(info.info, info.baseline, SHOWN),
    ]
    few = info.bars.filter(pl.col("arm").is_in(info.arms[:SHOWN]))
    for (name,), rows in few.group_by("projection", maintain_order=True):
        medians = ", ".join(
            f"{arm} {spread_text(info.info, value)}" for arm, value in rows.select("arm", "median").rows()
        )
        parts.append(f"{name}: median {medians}.")
    return " ".join([*parts, f"Values: {file}."])


def _seeds(info: Spreads) -> tuple[int, int]:
    return int(info.bars["n_min"].min()), int(info.bars["n_max"].max())  # type: ignore[arg-type]


def volatility_figures(
    view: Store,
    members: pl.DataFrame | None = None,
    summary: Summary | None = None,
    metrics: Sequence[str] = METRICS,
) -> Figures:
    """A figure for each of `metrics` that some arm has at two seeds. Arms of the same runs are shown once.

    Raises ValueError for an unknown metric.
    """
    members, summary = given(view, members, summary)
    members = members.filter(~pl.col("arm").is_in([arm.arm for arm in summary.arms if arm.copy_of]))
    infos = [spreads_info(info, members, summary.baseline) for info in volatilities(view, members, metrics)]
    return Figures(_figure(info) for info in infos if info.bars.height)


def why_no_volatility(view: Store, members: pl.DataFrame, metrics: Sequence[str] = METRICS) -> str:
    """What the page says of the metrics that have no figure; empty where all have one."""
    return " ".join(filter(None, map(why_none, volatilities(view, members, metrics))))


def _figure(info: Spreads) -> Figure:
    name, title = f"volatility_{info.info.metric}", f"{info.info.metric}: spread between seeds"
    files = {f"data/{name}.csv": info.bars}
    description = describe_spreads(info, next(iter(files)))
    svg = to_svg(*draw_spreads(info), name=name, title=title, description=description)
    return Figure(name, title, spreads_caption(info), description, svg, files)
