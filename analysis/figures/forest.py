"""Forest plot: each arm's difference to the baseline, with its interval, its seeds and the margins of gates.

Arms that differ by much and by little are in panels with an axis each, one below the other, the widest first.
"""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import polars as pl

from analysis.figures.effects import Effects, axis_around_zero, effects_of, reaches, scale_groups
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.heatmap_text import count
from analysis.figures.style import shortened
from analysis.figures.svg import Rows, Spec, part, to_svg
from analysis.store import Store
from analysis.summary import Summary
from analysis.verdicts import decimals_of, interval_text, signed

_WIDTH, _ROW = 400, 30


def forest_figures(view: Store, members: pl.DataFrame | None = None, summary: Summary | None = None) -> Figures:
    """One forest plot of a sweep's arms; none without a baseline, or where no arm shares a finished seed with it.

    Args:
        view: `open_store(place).sweep(name)`.
        members, summary: of it, where they are at hand.
    """
    _, summary = given(view, members, summary)
    effects = effects_of(summary)
    if effects is None:
        return Figures()
    name, title = "forest", f"{effects.metric} minus {effects.baseline}"
    tables = {f"data/{name}.csv": effects.arms, f"data/{name}_seeds.csv": effects.seeds}
    tables |= {f"data/{name}_margins.csv": effects.margins} if effects.margins.height else {}
    description = describe_forest(effects, next(iter(tables)))
    svg = to_svg(*draw_forest(effects), name=name, title=title, description=description)
    return Figures([Figure(name, title, forest_caption(effects), description, svg, tables)])


def why_no_forest(summary: Summary) -> str:
    """What a page says in place of a forest plot."""
    if summary.baseline is None:
        return "No arm has the role baseline, so there is no difference to draw."
    return f"No arm has finished a seed that {summary.baseline} has finished too, so there is no difference to draw."


def draw_forest(effects: Effects) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a panel for each group of arms that fit one axis, then the arms without a difference."""
    groups = scale_groups(reaches(effects))
    margins = pl.concat([drawn_margins(effects, group) for group in groups])
    bare = effects.arms.filter(pl.col("difference").is_null())["arm"].to_list()
    groups[-1] += bare
    rows = effects.arms.with_columns(text=pl.Series([_text(row) for row in effects.arms.iter_rows(named=True)]))
    data = {
        "arms": rows.to_dicts(),
        "seeds": effects.seeds.to_dicts(),
        "margins": margins.to_dicts(),
        "zero": [{"zero": 0}],
    }
    panels = [_panel(effects, group, is_first=i == 0) for i, group in enumerate(groups)]
    return {"vconcat": panels, "spacing": 24, "resolve": {"scale": {"color": "independent"}}}, data


def drawn_margins(effects: Effects, group: list[str]) -> pl.DataFrame:
    """The margins of a group of arms that are on its axis."""
    low, high = _domain(effects, group)
    return effects.margins.filter(pl.col("arm").is_in(group), pl.col("margin").is_between(low, high))


def _domain(effects: Effects, group: list[str]) -> tuple[float, float]:
    arms = effects.arms.filter(pl.col("arm").is_in(group))
    seeds = effects.seeds.filter(pl.col("arm").is_in(group))["difference"]
    margins = effects.margins.filter(pl.col("arm").is_in(group))["margin"]
    return axis_around_zero([*arms["difference"], *arms["low"], *arms["high"], *seeds], margins)


def _panel(effects: Effects, group: list[str], *, is_first: bool) -> Spec:
    order = [arm for arm in effects.arms["arm"] if arm in group]
    labels = {arm: shortened(arm, 56) for arm in order}
    shown = alt.FieldOneOfPredicate(field="arm", oneOf=order)
    names = alt.Axis(labelExpr=f"{json.dumps(labels)}[datum.label]", labelLimit=500, ticks=False, labelPadding=6)
    y = alt.Y("arm:N", sort=order, title=None, axis=names, scale=alt.Scale(domain=order))
    colours = [effects.styles[arm].colour for arm in order]
    colour = alt.Color("arm:N", scale=alt.Scale(domain=order, range=colours), legend=None)
    scale = alt.Scale(domain=list(_domain(effects, group)), nice=False, zero=False)

    def x(field: str) -> alt.X:
        axis = alt.Axis(tickCount=6, labelFlush=False, labelOverlap=True)
        return alt.X(f"{field}:Q", title=_x_title(effects), scale=scale, axis=axis)

    def of(name: str) -> alt.Chart:
        return alt.Chart(alt.NamedData(name)).transform_filter(shown)

    several = of("arms").transform_filter("datum.low != null")  # a mean of one is its seed
    end: dict[str, Any] = {"align": "left", "baseline": "middle"}
    beside = alt.XValue(_WIDTH + 14)  # type: ignore[no-untyped-call]
    layers = [
        alt.Chart(alt.NamedData("zero")).mark_rule(color="currentColor").encode(x("zero")),
        of("margins").mark_tick(color="currentColor", thickness=2, size=_ROW - 8).encode(x("margin"), y),
        several.mark_rule(strokeWidth=2.5).encode(x("low"), y, colour, x2=alt.X2("high:Q")),
        of("seeds").mark_point(yOffset=8, size=36, strokeWidth=1.4, opacity=1).encode(x("difference"), y, colour),
        several.mark_point(shape="diamond", filled=True, size=130, opacity=1).encode(x("difference"), y, colour),
        of("arms").mark_text(**end).encode(y, text=alt.Text("text:N"), x=beside),
    ]
    if is_first:
        heading = "difference [95 % interval], seeds, verdict"
        head = alt.Chart(alt.NamedData("zero")).mark_text(**end, fontWeight=600, text=heading)
        layers.append(head.encode(x=beside, y=alt.YValue(-10)))  # type: ignore[no-untyped-call]
    return {"layer": [part(layer) for layer in layers], "width": _WIDTH, "height": _ROW * len(order)}


def forest_caption(effects: Effects) -> str:
    """What the marks are."""
    better = "left" if effects.goal == "min" else "right"
    text = (
        f"{effects.metric} minus that of {effects.baseline}; {better} of the line at 0 is better. Diamonds are means "
        "over seeds, lines 95 % Student t intervals of them, circles single seeds."
    )
    if len(scale_groups(reaches(effects))) > 1:
        text += " Panels have scales of their own."
    return text + _margins_text(effects)


def describe_forest(effects: Effects, file: str) -> str:
    """Kind and axis, then every arm's difference, interval, n and verdict, and where the values are."""
    return " ".join(
        [
            f"Forest plot of {effects.metric} minus {effects.baseline} ({effects.unit}), "
            f"{count(effects.arms.height, 'arm')}.",
            *(f"{row['arm']}: {_text(row)}." for row in effects.arms.iter_rows(named=True)),
            f"Values: {file}.",
        ]
    )


def _margins_text(effects: Effects) -> str:
    """The margins of gates, and which of them lie beyond the axes."""
    if effects.margins.is_empty():
        return ""
    groups = scale_groups(reaches(effects))
    shown = pl.concat([drawn_margins(effects, group) for group in groups])
    hidden = effects.margins.join(shown, on=shown.columns, how="anti", maintain_order="left")
    named = [f"{gate} at {values}" for gate, values in _gate_values(shown)]
    beyond = [f"{gate} at {values}" for gate, values in _gate_values(hidden)]
    text = f" Upright ticks are margins of gates: {', '.join(named)}." if named else ""
    return text + (f" Margins beyond the axis: {', '.join(beyond)}." if beyond else "")


def _gate_values(margins: pl.DataFrame) -> list[tuple[str, str]]:
    """Each gate's name, and its margins: one that is a share of the baseline differs from arm to arm by seeds."""
    texts = margins.with_columns(text=pl.Series([signed(value, 4) for value in margins["margin"]], dtype=pl.String))
    by_gate = texts.group_by("gate", maintain_order=True).agg(pl.col("text").unique(maintain_order=True))
    return [(gate, " and ".join(values)) for gate, values in by_gate.iter_rows()]


def _text(row: dict[str, Any]) -> str:
    """`−0.0582 [−0.0907 to −0.0256], n = 3, lower`."""
    if row["difference"] is None:
        return str(row["verdict"])
    ends = None if row["low"] is None else (row["low"], row["high"])
    decimals = decimals_of(ends)
    interval = f" [{interval_text(ends, decimals)}]" if ends else ""
    over = "one pair" if row["n"] == 1 else f"n = {row['n']}"
    return f"{signed(row['difference'], decimals)}{interval}, {over}, {row['verdict']}"


def _x_title(effects: Effects) -> str:
    return f"{effects.metric} minus {effects.baseline}" + (f" ({effects.unit})" if len(effects.unit) < 24 else "")
