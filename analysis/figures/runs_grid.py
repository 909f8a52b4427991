"""Every run at a glance: one small loss curve a run, all on one scale, so that the odd one is seen among hundreds.

The panels are laid out here, in one chart: Vega would take long for hundreds of charts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from analysis import queries
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.style import ArmStyle, arm_styles, laid_out, shortened
from analysis.figures.svg import Rows, Spec, part, to_svg
from analysis.store import Store
from analysis.summary import Summary
from muon_core.statuses import counts_text

PER_ROW = 8
_WIDTH, _HEIGHT = 102, 46  # of a panel
_COLUMN, _LINE = _WIDTH + 14, 13
_ROW = _HEIGHT + 2 * _LINE + 14
_EARLY = 0.1  # of the tokens: losses before are not what the scale is for
_POINTS = 60
_CHARACTERS = 17  # that fit above a panel


@dataclass(frozen=True, slots=True)
class RunsGrid:
    """The data of the figure.

    `runs` has a row per run, those of an arm together, in the sweep's order: `run_id`, `arm`, `optimizer`, `seed`,
    `status`, and `last`, its newest finite value, null where there is none. `curves` has a row per run and step:
    `run_id`, `step`, `tokens`, `value`.
    """

    metric: str
    unit: str
    runs: pl.DataFrame
    curves: pl.DataFrame
    styles: dict[str, ArmStyle]
    low: float
    high: float
    """Scale of all panels: the finite values after the first tenth of the tokens, of runs that are done if any is."""


def runs_grid_figures(
    view: Store, members: pl.DataFrame | None = None, summary: Summary | None = None, metric: str = "val_loss"
) -> Figures:
    """One figure with a panel for every run that the sweep lists; none before anything is measured.

    Args:
        view: `open_store(place).sweep(name)`.
        members, summary: of it, where they are at hand.
        metric: a column of `val` or `train`.
    """
    members, _ = given(view, members, summary)
    info = runs_grid_info(view.table(queries.metric_table(metric)), members, metric)
    if info.curves.is_empty():
        return Figures()
    name, title = f"runs_{metric}", f"{metric} of every run"
    tables = {f"data/{name}.csv": info.curves, f"data/{name}_runs.csv": info.runs}
    description = describe_runs_grid(info, next(iter(tables)))
    svg = to_svg(*draw_runs_grid(info), name=name, title=title, description=description)
    return Figures([Figure(name, title, runs_grid_caption(info), description, svg, tables)])


def runs_grid_info(series: pl.LazyFrame, members: pl.DataFrame, metric: str) -> RunsGrid:
    """Data of all runs of `members`; `curves` is empty if nothing finite was measured."""
    order = {arm: i for i, arm in enumerate(members["arm"].unique(maintain_order=True))}
    runs = members.unique("run_id", keep="first", maintain_order=True)
    runs = runs.sort(pl.col("arm").replace_strict(order), maintain_order=True)
    rows = queries.curves(series, runs.lazy(), metric).collect().filter(pl.col("value").is_finite())
    last = rows.sort("step").group_by("run_id").agg(last=pl.col("value").last())
    pairs = members.select("arm", "optimizer").drop_nulls("optimizer").unique("arm", keep="first", maintain_order=True)
    low, high = _scale(rows)
    return RunsGrid(
        metric=metric,
        unit=queries.metric_unit(metric),
        runs=runs.select("run_id", "arm", "optimizer", "seed", "status").join(
            last, on="run_id", how="left", maintain_order="left"
        ),
        curves=rows.select("run_id", "step", "tokens", "value"),
        styles=arm_styles(list(pairs.iter_rows())),
        low=low,
        high=high,
    )


def _scale(rows: pl.DataFrame) -> tuple[float, float]:
    if rows.is_empty():
        return 0.0, 1.0
    late = rows.filter(pl.col("tokens") >= _EARLY * pl.col("tokens").max())
    counted = late.filter(pl.col("status").is_in(queries.COUNTED))
    values = next(frame for frame in (counted, late, rows) if frame.height)["value"]
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def draw_runs_grid(info: RunsGrid) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: lines, texts and base lines at places computed here, in CSS pixels."""
    places = info.runs.with_row_index("place").with_columns(
        left=(pl.col("place") % PER_ROW) * _COLUMN, top=(pl.col("place") // PER_ROW) * _ROW + 2 * _LINE
    )
    height = max(places["top"]) + _HEIGHT + 4
    most = float(info.curves["tokens"].max()) or 1.0  # type: ignore[arg-type]
    share = ((info.high - pl.col("value")) / (info.high - info.low)).clip(0, 1)
    rank = pl.col("step").rank("dense") - 1
    stride = -(-info.curves["step"].n_unique() // _POINTS)
    drawn = info.curves.filter((rank % stride == 0) | (pl.col("step") == pl.col("step").max()).over("run_id"))
    lines = drawn.join(places.select("run_id", "arm", "left", "top"), on="run_id").select(
        "run_id",
        "arm",
        x=(pl.col("left") + pl.col("tokens") / most * _WIDTH).round(1),
        y=(pl.col("top") + share * _HEIGHT).round(1),
    )
    ends = lines.group_by("run_id", maintain_order=True).last()
    frames = places.select(x="left", x2=pl.col("left") + _WIDTH, y=pl.col("top") + _HEIGHT)
    names = [
        *({"x": row["left"], "y": row["top"] - _LINE - 8, "text": row["name"]} for row in _names(places)),
        *({"x": row["left"], "y": row["top"] - 8, "text": _whose(row)} for row in places.iter_rows(named=True)),
    ]
    data = {
        "lines": lines.sort("run_id", "x", maintain_order=True).to_dicts(),
        "ends": ends.to_dicts(),
        "frames": frames.to_dicts(),
        "names": names,
    }
    arms = [arm for arm in info.styles if arm in set(lines["arm"])]
    colours = alt.Scale(domain=arms, range=[info.styles[arm].colour for arm in arms])
    colour = alt.Color("arm:N", scale=colours, legend=None)
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, PER_ROW * _COLUMN], nice=False), axis=None)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[height, 0], nice=False), axis=None)
    bases = alt.Chart(alt.NamedData("frames")).mark_rule(color="currentColor", strokeWidth=1)
    curves = alt.Chart(alt.NamedData("lines")).mark_line(strokeWidth=1.5)
    dots = alt.Chart(alt.NamedData("ends")).mark_point(filled=True, size=22, opacity=1)
    texts = alt.Chart(alt.NamedData("names")).mark_text(align="left", baseline="middle", fontSize=laid_out(9))
    layers = [
        bases.encode(x, y, x2=alt.X2("x2:Q")),
        curves.encode(x, y, colour, detail=alt.Detail("run_id:N")),
        dots.encode(x, y, colour),
        texts.encode(x, y, text=alt.Text("text:N")),
    ]
    return {"layer": [part(layer) for layer in layers], "width": PER_ROW * _COLUMN, "height": height}, data


def _names(places: pl.DataFrame) -> list[dict[str, Any]]:
    """The name of an arm above the first of its panels in a row, as long as these panels are."""
    panels = places.group_by("top", "arm", maintain_order=True).agg(pl.col("left").first(), n=pl.len())
    names = [shortened(arm, _CHARACTERS * n + 2 * (n - 1)) for arm, n in panels.select("arm", "n").iter_rows()]
    return panels.with_columns(name=pl.Series(names)).to_dicts()


def runs_grid_caption(info: RunsGrid) -> str:
    """What a panel is, and the scale of all."""
    return (
        f"{info.metric} over tokens, a panel a run; a dot ends each. One scale for all, {info.low:.4g} to "
        f"{info.high:.4g}, of what counted runs have after the first tenth of the tokens; what is beyond it lies on "
        "its edge. Of a run that is not done, its status stands beside the seed."
    )


def describe_runs_grid(info: RunsGrid, file: str) -> str:
    """Kind, how runs ended, the lowest and highest last values, and where the values are."""
    counts = {status: info.runs["status"].to_list().count(status) for status in info.runs["status"].unique()}
    known = info.runs.drop_nulls("last").sort("last")
    ends = [f"{row['last']:.4f} ({row['arm']}, {_whose(row)})" for row in (known.row(i, named=True) for i in (0, -1))]
    runs = info.runs.height
    return (
        f"Small line charts of {info.metric} ({info.unit}) against tokens, one for each of {runs} "
        f"{'run' if runs == 1 else 'runs'}: {counts_text(counts)}. Newest values from {ends[0]} to {ends[1]}. "
        f"Values: {file}."
    )


def _whose(row: dict[str, Any]) -> str:
    """`seed 42`, and what the run is where it is not done."""
    seed = [f"seed {row['seed']}"] if row["seed"] is not None else []
    return ", ".join([*seed, *([] if row["status"] == "done" else [row["status"]])]) or "no seed"
