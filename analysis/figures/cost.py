"""What each arm took: what its runs used, what of it was in vain, and what all runs that were asked for should take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from analysis.costs import attempts_with_costs
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.style import ArmStyle, arm_styles, shortened
from analysis.figures.svg import Rows, Spec, part, to_svg
from analysis.store import Store
from analysis.summary import Summary
from muon_core.spelling import counted

_WIDTH, _ROW = 400, 26
_IN_VAIN = "#7F7F7F"
UNITS = {"usd": "USD", "gpu_hours": "GPU hours", "hours": "hours"}
"""What costs may be counted in, the first that is known of all attempts and not 0 of all."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The data of the figure, in `unit`.

    `arms` has a row per arm: `arm`, `optimizer`, `attempts`, `kept`, `lost`, `runs`, `done`, and `planned`: what `runs`
    runs take at the mean of the arm's done runs, null where none is.
    """

    unit: str
    budget_usd: float | None
    arms: pl.DataFrame
    styles: dict[str, ArmStyle]


def cost_figures(view: Store, members: pl.DataFrame | None = None, summary: Summary | None = None) -> Figures:
    """One figure of a sweep's costs by arm; none if the ledger knows no attempt, as of imported runs.

    Args:
        view: `open_store(place).sweep(name)`.
        members, summary: of it, where they are at hand.
    """
    members, _ = given(view, members, summary)
    info = cost_info(view, members)
    if info is None:
        return Figures()
    name, title = "cost", "Cost by arm"
    tables = {f"data/{name}.csv": info.arms}
    description = describe_cost(info, next(iter(tables)))
    svg = to_svg(*draw_cost(info), name=name, title=title, description=description)
    return Figures([Figure(name, title, cost_caption(info), description, svg, tables)])


def why_no_cost() -> str:
    """What a page says in place of costs."""
    return "The ledger has no attempt of these runs, so nobody knows what they took."


def cost_info(view: Store, members: pl.DataFrame) -> Cost | None:
    """What the arms of `members` took; None without an attempt."""
    attempts = attempts_with_costs(view)
    if attempts.is_empty():
        return None
    unit = next((u for u in UNITS if attempts[u].null_count() == 0 and attempts[u].sum() > 0), "hours")
    lost = pl.col("lost_usd") if unit == "usd" else pl.col(unit) * pl.col("lost_hours") / pl.col("hours")
    keys = ["run_id", "block"]
    by_run = attempts.group_by(keys).agg(attempts=pl.len(), used=pl.col(unit).sum(), lost=lost.fill_nan(0.0).sum())
    runs = members.select(*keys, "arm", "optimizer", "status").join(by_run, on=keys, how="left", maintain_order="left")
    is_done = pl.col("status") == "done"
    arms = runs.group_by("arm", maintain_order=True).agg(
        pl.col("optimizer").drop_nulls().first(),
        pl.col("attempts").sum(),
        kept=(pl.col("used") - pl.col("lost")).sum(),
        lost=pl.col("lost").sum(),
        runs=pl.len(),
        done=is_done.sum(),
        planned=(pl.col("used") - pl.col("lost")).filter(is_done).mean() * pl.len(),
    )
    started: list[tuple[str, str | None]] = list(arms.select("arm", "optimizer").iter_rows())
    budget = (view.record.spec.get("budget") or {}).get("usd") if view.record else None
    return Cost(unit, budget, arms, arm_styles(started))


def draw_cost(info: Cost) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a bar an arm, what was in vain behind what was kept, and a tick where it was planned."""
    order = info.arms["arm"].to_list()
    labels = {arm: shortened(arm, 56) for arm in order}
    rows = info.arms.with_columns(
        used=pl.col("kept") + pl.col("lost"), text=pl.Series([_text(info, row) for row in _rows(info)], dtype=pl.String)
    )
    names = alt.Axis(labelExpr=f"{json.dumps(labels)}[datum.label]", labelLimit=500, ticks=False, labelPadding=6)
    y = alt.Y("arm:N", sort=order, title=None, axis=names, scale=alt.Scale(domain=order))
    top = max(float(value) for value in [*rows["used"], *rows["planned"].drop_nulls()]) or 1.0
    scale = alt.Scale(domain=[0, 1.04 * top], nice=False)
    colour = alt.Color(
        "arm:N", scale=alt.Scale(domain=order, range=[info.styles[arm].colour for arm in order]), legend=None
    )

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title=UNITS[info.unit], scale=scale, axis=alt.Axis(tickCount=6, labelFlush=False))

    arms = alt.Chart(alt.NamedData("arms"))
    beside = alt.XValue(_WIDTH + 14)  # type: ignore[no-untyped-call]
    layers = [
        arms.mark_bar(height=12).encode(x("kept"), y, colour),
        arms.mark_bar(height=12, color=_IN_VAIN).encode(x("kept"), y, x2=alt.X2("used:Q")),
        arms.transform_filter("datum.planned != null")
        .mark_tick(color="currentColor", thickness=2, size=20)
        .encode(x("planned"), y),
        arms.mark_text(align="left", baseline="middle").encode(y, text=alt.Text("text:N"), x=beside),
    ]
    layered: Spec = {"layer": [part(layer) for layer in layers], "width": _WIDTH, "height": _ROW * len(order)}
    return layered, {"arms": rows.to_dicts()}


def cost_caption(info: Cost) -> str:
    """What bars and ticks are."""
    budget = "" if info.budget_usd is None else f" The budget of the sweep is {info.budget_usd:g} USD."
    return (
        f"What the attempts at each arm's runs took, in {UNITS[info.unit]}. Grey was in vain: attempts that failed, "
        "and steps that a later attempt did again. Upright ticks are what all runs asked for take at the mean of the "
        f"arm's done runs. A run of several blocks counts in each.{budget}"
    )


def describe_cost(info: Cost, file: str) -> str:
    """Kind and axis, totals, then each arm, and where the values are."""
    total, lost = float((info.arms["kept"] + info.arms["lost"]).sum()), float(info.arms["lost"].sum())
    return " ".join(
        [
            f"Bar chart of {UNITS[info.unit]} by arm; together {total:.3g}, {lost:.3g} of it in vain.",
            *(f"{row['arm']}: {_text(info, row)}." for row in _rows(info)),
            f"Values: {file}.",
        ]
    )


def _rows(info: Cost) -> list[dict[str, Any]]:
    return info.arms.to_dicts()


def _text(info: Cost, row: dict[str, Any]) -> str:
    """`12.3 USD, 1.2 in vain, 15 planned; 4 of 5 runs done`."""
    lost = f", {row['lost']:.3g} in vain" if row["lost"] else ""
    planned = "" if row["planned"] is None else f", {row['planned']:.3g} planned"
    runs = f"{row['done']} of {counted(row['runs'], 'run')} done"
    return f"{row['kept'] + row['lost']:.3g} {UNITS[info.unit]}{lost}{planned}; {runs}"
