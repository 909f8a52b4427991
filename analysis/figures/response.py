"""Response to a setting: each arm's difference to the baseline over alpha, rank threshold or whatever else was varied.

A figure for each setting, a panel for each row of arms that differ in it alone, so for instance one for each annealing.
The best of several arms is the best partly by luck, and at the edge of the grid it may not be the best there is: both
are said.
"""

from __future__ import annotations

from dataclasses import dataclass

import altair as alt
import polars as pl

from analysis.figures.effects import Effects, axis_around_zero, effects_of
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.settings import AxisRow, axis_rows
from analysis.figures.small_multiples import copies, in_rows
from analysis.figures.svg import Rows, Spec, part, to_svg
from analysis.store import Store
from analysis.summary import Summary
from analysis.verdicts import signed

_WIDTH, _HEIGHT, _PER_ROW = 215, 170, 3
_FOLD = 20  # between the ends of an axis, from which on it is logarithmic


@dataclass(frozen=True, slots=True)
class Response:
    """The data of one figure: rows along one setting.

    `points` has a row per arm (`row`, `arm`, `x`, `n`, `difference`, `low`, `high`), `seeds` one per arm and seed
    (`row`, `arm`, `x`, `seed`, `difference`), in the metric's unit.
    """

    axis: str
    effects: Effects
    rows: tuple[AxisRow, ...]
    points: pl.DataFrame
    seeds: pl.DataFrame

    @property
    def is_log(self) -> bool:
        """Whether the setting spans so much that its axis is logarithmic."""
        values = self.points["x"].to_list()
        return min(values) > 0 and (self.axis == "alpha" or max(values) >= _FOLD * min(values))


def response_figures(view: Store, members: pl.DataFrame | None = None, summary: Summary | None = None) -> Figures:
    """A figure for each number that varies within a block of the sweep; none without a baseline.

    Args:
        view: `open_store(place).sweep(name)`.
        members, summary: of it, where they are at hand.
    """
    members, summary = given(view, members, summary)
    effects = effects_of(summary)
    if effects is None or view.record is None:
        return Figures()
    infos = responses(effects, axis_rows(members, view.record.spec))
    return Figures(_figure(info) for info in infos)


def why_no_response(summary: Summary) -> str:
    """What a page says in place of responses."""
    if effects_of(summary) is None:
        return "No arm has a difference to a baseline yet, so there is no response to draw."
    return "No number varies within a block of this sweep, so there is no response to draw."


def responses(effects: Effects, rows: list[AxisRow]) -> list[Response]:
    """The data of every figure: of rows with two arms or more that have a difference."""
    found = []
    known = effects.arms.drop_nulls("difference")
    for axis in dict.fromkeys(row.axis for row in rows):
        own = [row for row in rows if row.axis == axis]
        places = pl.DataFrame(
            [(row.name, arm, x) for row in own for arm, x in zip(row.arms, row.values, strict=True)],
            {"row": pl.String, "arm": pl.String, "x": pl.Float64},
            orient="row",
        )
        points = places.join(known.drop("optimizer", "verdict"), on="arm", maintain_order="left")
        points = points.filter(pl.col("x").n_unique().over("row") > 1)
        drawn = tuple(row for row in own if row.name in set(points["row"]))
        if drawn:
            seeds = places.join(effects.seeds, on="arm", maintain_order="left").filter(
                pl.col("row").is_in(points["row"].unique().implode())
            )
            found.append(Response(axis, effects, drawn, points, seeds))
    return found


def best(info: Response, row: str) -> tuple[str, float, str | None]:
    """Arm and value of the best mean in a row, and, of three values or more, which end of the grid that is."""
    points = info.points.filter(pl.col("row") == row).sort("difference", descending=info.effects.goal == "max")
    arm, x = points["arm"][0], float(points["x"][0])
    values = points["x"].unique()
    ends = {min(values): "smallest", max(values): "largest"} if len(values) > 2 else {}
    return arm, x, ends.get(x)


def draw_response(info: Response) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a panel a row of arms; rows of one block share their vertical scale."""
    data: dict[str, Rows] = {"zero": [{"zero": 0}]}
    panels = []
    for i, row in enumerate(info.rows):
        data[f"points{i}"] = info.points.filter(pl.col("row") == row.name).to_dicts()
        data[f"seeds{i}"] = info.seeds.filter(pl.col("row") == row.name).to_dicts()
        words = {"@points": f"points{i}", "@seeds": f"seeds{i}", "@colour": info.effects.styles[row.arms[0]].colour}
        panels += copies(_panel(info, row), [words])
    return in_rows(panels, [row.name for row in info.rows], _PER_ROW, 32, gap=76), data


def _panel(info: Response, row: AxisRow) -> Spec:
    xs = info.points["x"].unique().sort().to_list()
    scale = alt.Scale(
        type="log" if info.is_log else "linear", domain=[xs[0], xs[-1]], nice=False, zero=False, padding=12
    )
    axis = alt.Axis(values=xs, format="~g", labelOverlap=True, grid=False)
    x = alt.X("x:Q", title=info.axis, scale=scale, axis=axis)
    own = alt.Scale(domain=list(_domain(info, row)), nice=False, zero=False)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=f"minus {info.effects.baseline}", scale=own, axis=alt.Axis(tickCount=5))

    zero = alt.Chart(alt.NamedData("zero")).mark_rule(color="currentColor").encode(y("zero"))
    points, seeds = alt.Chart(alt.NamedData("@points")), alt.Chart(alt.NamedData("@seeds"))
    intervals = points.transform_filter("datum.low != null").mark_rule(color="@colour", strokeWidth=2)
    layers = [
        zero,
        intervals.encode(x, y("low"), y2=alt.Y2("high:Q")),
        points.mark_line(color="@colour", strokeWidth=1.2).encode(x, y("difference")),
        seeds.mark_point(color="@colour", size=34, strokeWidth=1.3, opacity=1, xOffset=7).encode(x, y("difference")),
        points.mark_point(color="@colour", shape="diamond", filled=True, size=110, opacity=1).encode(
            x, y("difference")
        ),
    ]
    layered: Spec = {"layer": [part(layer) for layer in layers], "width": _WIDTH, "height": _HEIGHT}
    return layered


def _domain(info: Response, row: AxisRow) -> tuple[float, float]:
    block = [other.name for other in info.rows if other.name.split(",")[0] == row.name.split(",")[0]]
    points = info.points.filter(pl.col("row").is_in(block))
    seeds = info.seeds.filter(pl.col("row").is_in(block))["difference"]
    return axis_around_zero([*points["difference"], *points["low"], *points["high"], *seeds])


def response_caption(info: Response) -> str:
    """What the marks are, and which bests lie at an edge."""
    log = ", on a logarithmic axis" if info.is_log else ""
    better = "below" if info.effects.goal == "min" else "above"
    return " ".join(
        [
            f"{info.effects.metric} minus that of {info.effects.baseline} against {info.axis}{log}; {better} the line "
            "at 0 is better. Diamonds are means, lines 95 % Student t intervals, circles single seeds; panels of one "
            "block share a scale. The best of several is partly luck: not confirmed until it is run on fresh seeds.",
            *_edges(info),
        ]
    )


def describe_response(info: Response, file: str) -> str:
    """Kind and axes, then each row's best value and range, edges, and where the values are."""
    effects, parts = info.effects, []
    for row in info.rows:
        arm, x, _ = best(info, row.name)
        points = info.points.filter(pl.col("row") == row.name)
        low, high = (signed(end(points["difference"]), 4) for end in (min, max))
        told = f"{len(points)} values of {info.axis} from {min(points['x']):g} to {max(points['x']):g}"
        parts.append(f"{row.name}: {told}, means {low} to {high}, best at {x:g} ({arm}).")
    kind = f"Response of {effects.metric} minus {effects.baseline} ({effects.unit}) to {info.axis}"
    return " ".join([f"{kind}, one panel a row of arms.", *parts, *_edges(info), f"Values: {file}."])


def _edges(info: Response) -> list[str]:
    found = [(row.name, *best(info, row.name)[1:]) for row in info.rows]
    return [
        f"Edge of the grid: {name} is best at {info.axis} = {x:g}, the {end} tried, so a better one may lie beyond."
        for name, x, end in found
        if end
    ]


def _figure(info: Response) -> Figure:
    name, title = f"response_{info.axis.replace('.', '_')}", f"Response to {info.axis}"
    tables = {f"data/{name}.csv": info.points, f"data/{name}_seeds.csv": info.seeds}
    description = describe_response(info, next(iter(tables)))
    svg = to_svg(*draw_response(info), name=name, title=title, description=description)
    return Figure(name, title, response_caption(info), description, svg, tables)
