"""Layer x step heatmaps of one projection, a panel for each arm, all on one colour scale.

Panels are compared with each other, so they share seed, layers, steps and scale. The scale runs from the 1st to the
99th percentile, else a single outlier would leave all other cells one colour; the share beyond it is stated. A panel is
a small image under Vega's axes, one pixel a cell: as vector rectangles, a figure of many runs is megabytes.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass

import altair as alt
import numpy as np
import numpy.typing as npt
import polars as pl

from analysis import queries
from analysis.figures.png import data_url, encode_indexed
from analysis.figures.style import MISSING_COLOUR, VIRIDIS_ANCHORS, hex_colour, viridis
from analysis.figures.svg import Rows, Spec
from muon_core.tables import PROJECTIONS

MAX_COLUMNS = 320  # twice a panel's width in CSS pixels: beyond it a screen drops columns, so they are binned here
_WIDTH, _PER_ROW = 160, 4
_MISSING = (153, 153, 153)


@dataclass(frozen=True, slots=True)
class Panel:
    """One arm's cells; `run_id` is None where the arm has no rows at the figure's seed."""

    arm: str
    run_id: str | None
    cells: npt.NDArray[np.float64]
    """Shape (layers, columns), layer 0 first; NaN where nothing finite was measured."""


@dataclass(frozen=True, slots=True)
class Heatmap:
    """The data of one figure: every panel on the same layers, steps and scale."""

    metric: str
    projection: str
    seed: int | None
    """None where no run tells its seed: an arm is then shown by its first run with values."""
    panels: tuple[Panel, ...]
    layers: tuple[int, ...]
    steps: tuple[int, ...]
    """Steps with rows in any panel, ascending."""
    bin_size: int
    """Steps a column stands for: their maximum for a peak, else their mean; 1 is unbinned."""
    low: float
    high: float
    """Scale of all panels, 1st and 99th percentile. Projections differ in shape, and so in range: each has its own."""
    clipped: float
    """Share of the finite cells beyond the scale; they take its end colours."""
    rows: pl.DataFrame
    """What was measured: `arm`, `run_id`, `seed`, `projection`, `layer`, `step`, `value`."""

    @property
    def whose(self) -> str:
        """`seed 42`, or that there is none."""
        return "no seed" if self.seed is None else f"seed {self.seed}"


def choose_seed(members: pl.DataFrame, run_ids: set[str]) -> int | None:
    """The seed at which most arms have values (`run_ids`), the first listed of equals; None if no run of a seed has."""
    present = members.filter(pl.col("run_id").is_in(run_ids)).drop_nulls("seed")
    counts = present.group_by("seed", maintain_order=True).agg(pl.col("arm").n_unique())
    seeds = counts.sort("arm", descending=True, maintain_order=True)["seed"]
    return int(seeds[0]) if len(seeds) else None


def heatmaps_info(layers: pl.LazyFrame, members: pl.DataFrame, metric: str, seed: int | None = None) -> list[Heatmap]:
    """A heatmap for each projection that has a finite value. Raises ValueError for an unknown metric.

    Args:
        members: rows of `sweep_members`; every arm gets a panel.
        seed: whose runs to show; None takes the one at which most arms have values. An arm of which no run tells its
            seed is shown by the first that has values.
    """
    queries.check_layer_metric(metric)
    measured = queries.layer_cells(layers, members["run_id"].to_list(), metric).filter(pl.col("value").is_finite())
    with_values = set(measured.select(pl.col("run_id").unique()).collect()["run_id"])
    chosen = choose_seed(members, with_values) if seed is None else seed
    runs = _shown(members, with_values, chosen)
    cells = queries.layer_cells(layers, runs["run_id"].to_list(), metric).collect()
    rows = runs.select("arm", "run_id", "seed").join(cells, on="run_id", maintain_order="left_right")
    arms = members["arm"].unique(maintain_order=True).to_list()
    projections = rows.filter(pl.col("value").is_finite())["projection"].unique()
    return [
        _heatmap(rows.filter(pl.col("projection") == name), name, arms, metric, chosen)
        for name in sorted(projections, key=_projection_order)
    ]


def _shown(members: pl.DataFrame, with_values: set[str], seed: int | None) -> pl.DataFrame:
    """The run that an arm is shown by, of the arms that have one."""
    of_seed = members.clear() if seed is None else members.filter(pl.col("seed") == seed)
    seedless = members.filter(pl.col("seed").is_null().all().over("arm"), pl.col("run_id").is_in(with_values))
    return pl.concat([of_seed, seedless]).unique("arm", keep="first", maintain_order=True)


def _heatmap(rows: pl.DataFrame, projection: str, arms: list[str], metric: str, seed: int | None) -> Heatmap:
    scale = queries.shared_scale(rows.lazy()).collect().row(0, named=True)
    layers, steps = rows["layer"].unique().sort().to_list(), rows["step"].unique().sort().to_list()
    bin_size = -(-len(steps) // MAX_COLUMNS)
    by_arm = {str(arm): frame for (arm,), frame in rows.group_by("arm")}
    panels = []
    for arm in arms:
        frame = by_arm.get(arm)
        cells = np.full((len(layers), -(-len(steps) // bin_size)), np.nan)
        if frame is not None:
            _fill(cells, frame, layers, steps, bin_size, peak=metric.endswith("_peak"))
        panels.append(Panel(arm, None if frame is None else frame["run_id"][0], cells))
    return Heatmap(
        metric=metric,
        projection=projection,
        seed=seed,
        panels=tuple(panels),
        layers=tuple(layers),
        steps=tuple(steps),
        bin_size=bin_size,
        low=scale["low"],
        high=scale["high"],
        clipped=scale["clipped"],
        rows=rows,
    )


def _fill(
    cells: npt.NDArray[np.float64],
    frame: pl.DataFrame,
    layers: list[int],
    steps: list[int],
    bin_size: int,
    *,
    peak: bool,
) -> None:
    """Write a panel's finite values into `cells`, binned over steps."""
    column = pl.col("step").replace_strict(steps, range(len(steps)), return_dtype=pl.Int64) // bin_size
    row = pl.col("layer").replace_strict(layers, range(len(layers)), return_dtype=pl.Int64)
    value = pl.col("value").max() if peak else pl.col("value").mean()
    binned = frame.filter(pl.col("value").is_finite()).group_by(row=row, column=column).agg(value)
    cells[binned["row"].to_numpy(), binned["column"].to_numpy()] = binned["value"].to_numpy()


def colour_indices(cells: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Palette index of each cell: 0 is missing, 1 to 255 run from `low` to `high`; values beyond take the ends."""
    low, high = scale_ends(low, high)
    share = np.clip((np.nan_to_num(cells, nan=low) - low) / (high - low), 0, 1)
    return np.where(np.isnan(cells), 0, 1 + np.rint(254 * share)).astype(np.uint8)


def scale_ends(low: float, high: float) -> tuple[float, float]:
    """`low` and `high`, apart: a constant field gets a scale around its value and the colour in the middle."""
    if high > low:
        return low, high
    margin = 0.05 * abs(low) or 1.0
    return low - margin, low + margin


def draw_heatmap(info: Heatmap) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a panel is one image, a cell a pixel, under the axes of an invisible layer of points."""
    palette = [_MISSING, *viridis()]
    data: dict[str, Rows] = {"corners": _corners(info)}
    first, other = (_panel(info, is_first=is_first) for is_first in (True, False))
    titles = [_title(panel) for panel in info.panels]
    panels: list[Spec] = []
    for number, panel in enumerate(info.panels):
        pixels = colour_indices(panel.cells, info.low, info.high)[::-1]  # layer 0 at the bottom, images start on top
        data[f"image{number}"] = [{"url": data_url(encode_indexed(pixels, palette))}]
        # Copies of one template: Altair would take seconds to build and check a panel for every arm.
        picture, points = (other if number % _PER_ROW else first)["layer"]
        picture = picture | {"data": {"name": f"image{number}"}}
        title = {"text": titles[number], "frame": "group"}
        panels.append({"width": _WIDTH, "height": _height(info), "title": title, "layer": [picture, points]})
    return {
        "concat": panels,
        "columns": _PER_ROW,
        "bounds": "flush",
        "spacing": {"row": 46 + 15 * max(map(len, titles)), "column": 22},
        "resolve": {"scale": {"color": "shared", "shape": "shared"}},
    }, data


def _panel(info: Heatmap, *, is_first: bool) -> Spec:
    """Template of a panel; the first of a row has the layer axis."""
    columns = info.panels[0].cells.shape[1]
    ticks, layer_ticks = spread(columns, 5), spread(len(info.layers), 6)
    steps = {str(i): f"{info.steps[i * info.bin_size]:,}" for i in ticks}
    layers = {str(i): str(info.layers[i]) for i in layer_ticks}
    x = alt.X(
        "column:Q",
        title="step",
        scale=alt.Scale(domain=[-0.5, columns - 0.5], nice=False, zero=False),
        axis=alt.Axis(values=ticks, labelExpr=_lookup(steps), grid=False, labelOverlap=True),
    )
    y = alt.Y(
        "row:Q",
        title="layer",
        scale=alt.Scale(domain=[-0.5, len(info.layers) - 0.5], nice=False, zero=False),
        axis=alt.Axis(values=layer_ticks, labelExpr=_lookup(layers), grid=False) if is_first else None,
    )
    picture = alt.Chart(alt.NamedData("image")).mark_image(
        aspect=False, smooth=False, x=0, y=0, align="left", baseline="top", width=_WIDTH, height=_height(info)
    )
    points = alt.Chart(alt.NamedData("corners")).mark_point(opacity=0, filled=True)
    spec: Spec = alt.layer(picture.encode(url="url:N"), points.encode(x, y, _colour(info), _missing())).to_dict()
    return spec


def _title(panel: Panel) -> list[str]:
    """Lines above a panel."""
    return textwrap.wrap(panel.arm, 26) + ([] if panel.run_id else ["no rows at this seed"])


def _colour(info: Heatmap) -> alt.Color:
    """The legend of the pictures: a real scale with the same colours."""
    colours = [hex_colour(colour) for colour in viridis(VIRIDIS_ANCHORS)]
    scale = alt.Scale(domain=list(scale_ends(info.low, info.high)), range=colours, interpolate="rgb")
    legend = alt.Legend(title=info.metric, gradientLength=max(80, _height(info)), tickCount=4)
    return alt.Color("value:Q", scale=scale, legend=legend)


def _missing() -> alt.Shape:
    legend = alt.Legend(
        title=None, symbolFillColor=MISSING_COLOUR, symbolStrokeColor=MISSING_COLOUR, symbolOpacity=1, symbolSize=160
    )
    return alt.Shape("missing:N", scale=alt.Scale(domain=["missing"], range=["square"]), legend=legend)


def _corners(info: Heatmap) -> Rows:
    low, high = scale_ends(info.low, info.high)
    columns = info.panels[0].cells.shape[1]
    ends = ((0, 0, low), (columns - 1, len(info.layers) - 1, high))
    return [{"column": column, "row": row, "value": value, "missing": "missing"} for column, row, value in ends]


def spread(count: int, ticks: int) -> list[int]:
    """At most `ticks` of the indices 0 to count - 1, equally far apart, from 0 on."""
    stride = max(1, -(-(count - 1) // (ticks - 1)))
    return list(range(0, count, stride))


def _height(info: Heatmap) -> int:
    return max(72, min(220, 14 * len(info.layers)))


def _lookup(names: dict[str, str]) -> str:
    return f"{json.dumps(names)}[datum.value]"


def _projection_order(name: str) -> tuple[int, str]:
    return (PROJECTIONS.index(name) if name in PROJECTIONS else len(PROJECTIONS), name)
