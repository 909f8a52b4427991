"""Singular values of weights over time: a panel for each arm and a first, middle and last layer, a line for each step.

Every metric of a spectrum is one number; two spectra of one entropy may still differ in a few large values, or in a
tail that died. So the values themselves are drawn, on a logarithmic scale, over their place in the order.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.heatmap import choose_seed, listed, shown_arms
from analysis.figures.heatmap_text import count, number
from analysis.figures.layer_lines import two_arms
from analysis.figures.svg import Rows, Spec, to_svg
from analysis.store import Store
from analysis.summary import Summary
from muon_core.tables import projection_order

MAX_STEPS, MAX_POINTS = 6, 48
_FLOOR = 1e-4  # of the largest value: what is smaller is drawn at the edge, else one zero would flatten all others
_WIDTH, _HEIGHT = 205, 150
STEP_COLOURS = ("#0072B2", "#8D59DC", "#D55E00")
"""From the first step to the last: lines need a contrast of 3 with the paper of either theme, which viridis has not."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The data of one projection's figure."""

    projection: str
    shown: str
    arms: tuple[str, ...]
    num_arms: int
    """Arms with spectra at that seed, of which those are drawn."""
    layers: tuple[int, ...]
    steps: tuple[int, ...]
    rows: pl.DataFrame
    """`arm`, `run_id`, `seed`, `layer`, `step`, `place` (1 is the largest) and `value`."""
    is_sampled: bool
    """Whether imported rows may hold only some of the singular values."""


def spectra_info(
    spectra: pl.LazyFrame,
    members: pl.DataFrame,
    baseline: str | None,
    seed: int | None = None,
    arms: Sequence[str] | None = None,
) -> list[Spectrum]:
    """A figure's data for each projection with spectra, of some arms at one seed.

    Args:
        arms: None takes the baseline and the first arm of another optimizer, Muon or AdamW if one is.
        seed: None takes the one at which most arms have spectra.
    """
    known = spectra.select("run_id").unique().collect()["run_id"]
    present = set(known) & set(members["run_id"])
    chosen = choose_seed(members, present) if seed is None else seed
    who = [one for one in shown_arms(members, present, chosen) if one.run_id in present]
    num_arms = len(who)
    drawn = two_arms(listed(members, who), present, baseline) if arms is None else tuple(arms)
    who = sorted((one for one in who if one.arm in drawn), key=lambda one: drawn.index(one.arm))
    shown = "no seed" if chosen is None else f"seed {chosen}"
    runs = listed(members, who).unique("run_id", keep="first", maintain_order=True)
    names = pl.DataFrame(
        {"run_id": [one.run_id for one in who], "arm": [one.arm for one in who]},
        schema={"run_id": pl.String, "arm": pl.String},
    ).join(runs.select("run_id", "seed"), on="run_id", how="left", maintain_order="left")
    own = spectra.filter(pl.col("run_id").is_in(runs["run_id"].implode()))
    places = own.select("projection", "layer", "step").unique().collect()
    projections = sorted(places["projection"].unique(), key=projection_order)
    return [
        info
        for name in projections
        if (info := _info(own, names, places.filter(pl.col("projection") == name), name, shown, num_arms)) is not None
    ]


def _info(
    spectra: pl.LazyFrame, names: pl.DataFrame, places: pl.DataFrame, projection: str, shown: str, num_arms: int
) -> Spectrum | None:
    layers = _ends_and_between(places["layer"].unique().sort().to_list(), 3)
    steps = _ends_and_between(places["step"].unique().sort().to_list(), MAX_STEPS)
    rows = spectra.filter(
        pl.col("projection") == projection, pl.col("layer").is_in(layers), pl.col("step").is_in(steps)
    ).select("run_id", "layer", "step", "sampled", value="singular_values")
    lists = rows.unique(["run_id", "layer", "step"]).with_columns(
        place=pl.int_ranges(1, pl.col("value").list.len() + 1)
    )
    values = lists.explode("value", "place", empty_as_null=False).collect()
    told = names.join(values, on="run_id", maintain_order="left")
    finite = told.filter(pl.col("value").is_finite())
    if finite.is_empty():
        return None
    return Spectrum(
        projection=projection,
        shown=shown,
        arms=tuple(finite["arm"].unique(maintain_order=True)),
        num_arms=num_arms,
        layers=tuple(layers),
        steps=tuple(steps),
        rows=finite.select("arm", "run_id", "seed", "layer", "step", "place", "value").sort(
            pl.col("arm").cast(pl.Enum(names["arm"])), "layer", "step", "place"
        ),
        is_sampled=bool(finite["sampled"].fill_null(False).any()),
    )


def draw_spectrum(info: Spectrum) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a row of panels for each arm, a column for each layer; lines coloured by step."""
    most = int(info.rows["place"].max())  # type: ignore[arg-type]
    drawn = info.rows.filter(pl.col("place").is_in(shown_places(most)))
    ends = axis_range(info)
    data: dict[str, Rows] = {}
    panels: list[Spec] = []
    for arm in info.arms:
        for layer in info.layers:
            own = drawn.filter(pl.col("arm") == arm, pl.col("layer") == layer)
            name = f"lines{len(panels)}"
            data[name] = own.select("step", "place", pl.col("value").clip(lower_bound=ends[0])).to_dicts()
            x, y = _axes(most, ends, is_lowest=arm == info.arms[-1], is_left=layer == info.layers[0])
            encoding = {"x": x, "y": y, "color": _colour(info), "detail": {"field": "step", "type": "nominal"}}
            panels.append(
                {
                    "width": _WIDTH,
                    "height": _HEIGHT,
                    "title": {"text": [*textwrap.wrap(arm, 24), f"layer {layer}"], "fontWeight": "normal"},
                    "data": {"name": name},
                    "mark": {"type": "line", "clip": True, "strokeWidth": 1.4},
                    "encoding": encoding,
                }
            )
    spec = {"concat": panels, "columns": len(info.layers), "spacing": {"row": 20, "column": 24}}
    return spec | {"resolve": {"scale": {"color": "shared"}}}, data


def _axes(most: int, ends: tuple[float, float], *, is_lowest: bool, is_left: bool) -> tuple[Spec, Spec]:
    """Of places and, with its powers of ten, of values; panels in the middle have ticks without titles."""
    places = {"domain": [1, max(2, most)], "nice": False}
    values = {"type": "log", "domain": list(ends), "nice": False}
    low, high = (float(np.log10(end)) for end in ends)
    tens = [10.0**power for power in range(int(np.ceil(low)), int(np.floor(high)) + 1)] or list(ends)
    below = {"title": "place" if is_lowest else None, "tickCount": 4, "grid": False}
    beside = {"title": "singular value" if is_left else None, "values": tens, "format": "~g", "gridOpacity": 0.15}
    return (
        {"field": "place", "type": "quantitative", "scale": places, "axis": below},
        {"field": "value", "type": "quantitative", "scale": values, "axis": beside},
    )


def _colour(info: Spectrum) -> Spec:
    first, last = info.steps[0], info.steps[-1]
    legend = {"title": "step", "values": list(info.steps), "gradientLength": 120, "format": "~s"}
    scale = {"domain": [first, max(last, first + 1)], "range": list(STEP_COLOURS), "interpolate": "rgb"}
    return {"field": "step", "type": "quantitative", "scale": scale, "legend": legend if first < last else None}


def shown_places(most: int) -> list[int]:
    """Places of which the values are drawn: the first eight, then evenly to the last."""
    evenly = np.rint(np.linspace(1, most, MAX_POINTS - 8)).astype(int)
    return sorted({*range(1, min(8, most) + 1), *evenly.tolist()})


def axis_range(info: Spectrum) -> tuple[float, float]:
    """From the smallest value that is drawn as it is to the largest."""
    values = info.rows["value"]
    high = float(values.max())  # type: ignore[arg-type]
    if high <= 0:
        return 0.1, 1.0
    low = max(float(values.min()), _FLOOR * high)  # type: ignore[arg-type]
    return (low, high) if low < high else (0.9 * high, 1.1 * high)


def describe_spectrum(info: Spectrum, file: str) -> str:
    """Kind and axes, the largest and median value of each panel at first and last step, and where they are."""
    parts = [
        f"Line charts of the singular values of the {info.projection} weights, largest first, at "
        f"{_steps(info)}, logarithmic scale, "
        f"{count(len(info.arms), 'arm')}, {info.shown}, layers {', '.join(map(str, info.layers))}."
    ]
    value = pl.col("value")
    ends = info.rows.group_by("arm", "layer", "step", maintain_order=True).agg(
        largest=value.max(), median=value.median(), smallest=value.min()
    )
    for (arm, layer), own in ends.group_by("arm", "layer", maintain_order=True):
        texts = [
            f"at step {row['step']:,} {number(row['largest'])}, median {number(row['median'])}, smallest "
            f"{number(row['smallest'])}"
            for row in (own.row(0, named=True), own.row(-1, named=True))
        ]
        parts.append(f"{arm}, layer {layer}: largest {'; '.join(texts[: own.height])}.")
    if lowest := _num_at_the_edge(info):
        parts.append(f"{count(lowest, 'value')} below the scale, drawn at its edge.")
    return " ".join([*parts, f"Values: {file}."])


def spectrum_caption(info: Spectrum) -> str:
    """What the lines are."""
    arms = "" if info.num_arms == len(info.arms) else f" {len(info.arms)} of {info.num_arms} arms with spectra."
    sampled = " Imported spectra may hold only some of the values." if info.is_sampled else ""
    edge = _num_at_the_edge(info)
    below = f" {count(edge, 'value')} below {_FLOOR:g} of the largest lie at the edge." if edge else ""
    return (
        f"Singular values of the {info.projection} weights by their place in the order, {info.shown}, at "
        f"{_steps(info)}, a line for each. One scale for all panels.{below}{arms}{sampled}"
    )


def _steps(info: Spectrum) -> str:
    first, last = f"{info.steps[0]:,}", f"{info.steps[-1]:,}"
    return f"step {first}" if len(info.steps) == 1 else f"{len(info.steps)} steps from {first} to {last}"


def _num_at_the_edge(info: Spectrum) -> int:
    return int((info.rows["value"] < axis_range(info)[0]).sum())


def spectrum_figures(
    view: Store,
    members: pl.DataFrame | None = None,
    summary: Summary | None = None,
    seed: int | None = None,
    projections: Sequence[str] = (),
    arms: Sequence[str] | None = None,
) -> Figures:
    """A figure for each projection with spectra, of `arms` at one seed.

    Args:
        arms: None takes the baseline and the first arm of another optimizer, Muon or AdamW if one is.
    """
    members, summary = given(view, members, summary)
    infos = spectra_info(view.table("spectra"), members, summary.baseline, seed, arms)
    return Figures(_figure(info) for info in infos if not projections or info.projection in projections)


def why_no_spectra() -> str:
    """What a page says in place of spectra."""
    return "No run has recorded singular values; they are written at checkpoints and at the last step."


def _figure(info: Spectrum) -> Figure:
    name, title = f"spectrum_{info.projection}", f"Singular values of the {info.projection} projection, {info.shown}"
    file = f"data/{name}.csv"
    description = describe_spectrum(info, file)
    svg = to_svg(*draw_spectrum(info), name=name, title=title, description=description)
    return Figure(name, title, spectrum_caption(info), description, svg, {file: info.rows})


def _ends_and_between(values: list[int], most: int) -> list[int]:
    """At most so many of `values`, the first and the last among them, equally far apart in their order."""
    places = np.rint(np.linspace(0, len(values) - 1, min(most, len(values)))).astype(int)
    return [values[place] for place in dict.fromkeys(places.tolist())]
