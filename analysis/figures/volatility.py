"""How spread between seeds is distributed over the cells of each arm, a panel for each projection.

A bar is drawn from quantiles of the cells, every one of which is a deviation between seeds of one matrix at one step:
no average over layers or steps comes before it. All panels share one scale.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import polars as pl

from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.style import ArmStyle, arm_styles
from analysis.figures.svg import Rows, Spec, part, to_svg
from analysis.store import Store
from analysis.summary import Summary
from analysis.volatility import METRICS, Volatility, table, volatilities
from analysis.volatility_texts import SHOWN, seeds_text, sentences, spread_name, spread_text, why_none

_WIDTH, _PER_ROW = 190, 3
_NAME, _LINE = 34, 13  # characters in a line of an arm's name, and pixels between two of its lines


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
    """Specification and data: thin from the 10th to the 90th percentile, thick the middle half, a tick the median."""
    columns = ("arm", "projection", "q10", "q25", "median", "q75", "q90")
    factor = 100 if info.info.is_relative else 1
    rows = info.bars.select(*columns).with_columns(pl.col(columns[2:]) * factor)
    rows_of = [info.projections[i : i + _PER_ROW] for i in range(0, len(info.projections), _PER_ROW)]
    low, high = float(rows["q10"].min()), float(rows["q90"].max())  # type: ignore[arg-type]
    domain = _domain(low, high, is_log=info.is_log)
    lines = [
        {"hconcat": [_panel(info, name, domain, is_first=not i) for i, name in enumerate(names)], "spacing": 22}
        for names in rows_of
    ]
    return {"vconcat": lines, "spacing": 26}, {"bars": rows.to_dicts()}


def _domain(low: float, high: float, *, is_log: bool) -> tuple[float, float]:
    if not is_log:
        return 0.0, high * 1.04 or 1.0
    return (low / 1.15, high * 1.15)


def _panel(info: Spreads, projection: str, domain: tuple[float, float], *, is_first: bool) -> Spec:
    arms = list(info.arms)
    scale = alt.Scale(type="log" if info.is_log else "linear", domain=list(domain), nice=False)
    unit = ", %" if info.info.is_relative else ""
    axis = alt.Axis(grid=True, tickCount=4, format="~g", labelOverlap=True)
    names = {arm: textwrap.wrap(arm, _NAME) for arm in arms}
    label = alt.Axis(
        labelExpr=f"{json.dumps(names)}[datum.value]",
        labelLimit=0,
        labelLineHeight=_LINE,
        grid=False,
        ticks=False,
        domain=False,
    )
    lines = max(map(len, names.values()))
    colour = alt.Color(
        "arm:N", scale=alt.Scale(domain=arms, range=[info.styles[arm].colour for arm in arms]), legend=None
    )
    y = alt.Y("arm:N", title=None, sort=arms, scale=alt.Scale(domain=arms), axis=label if is_first else None)
    chart = alt.Chart(alt.NamedData("bars")).transform_filter(
        alt.FieldEqualPredicate(field="projection", equal=projection)
    )

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title=f"{spread_name(info.info)} between seeds{unit}", scale=scale, axis=axis)

    layers = (
        chart.mark_rule(strokeWidth=2).encode(x("q10"), y, colour, x2="q90:Q"),
        chart.mark_bar(height=8).encode(x("q25"), y, colour, x2="q75:Q"),
        chart.mark_tick(color="currentColor", thickness=2, size=14).encode(x("median"), y),
    )
    return {
        "layer": [part(layer) for layer in layers],
        "width": _WIDTH,
        "height": (_LINE * lines + 8) * len(arms) + 8,
        "title": f"{projection} projection",
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
