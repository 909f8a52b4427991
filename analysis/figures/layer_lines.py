"""Lines of a metric over training, one for each layer, in a panel for each projection: one arm against another.

Muon moves every direction of a matrix alike and AdamW does not, so the two differ by layer and projection long before
they differ in loss. A thin line is a layer's mean over the seeds of an arm, at steps where each of them has a value;
the thick line is the median over layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis import queries
from analysis.figures.cells import ALIGNMENTS, Cells, Chance, all_with_values, cells_by_metric
from analysis.figures.curves import runs_text
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.heatmap_text import chance_text, count, number
from analysis.figures.panels import bin_steps
from analysis.figures.style import ArmStyle, arm_styles
from analysis.figures.svg import Rows, Spec, to_svg
from analysis.store import Store
from analysis.summary import Summary

METRICS = ("effective_rank", "momentum_left_alignment", "weight_norm", "grad_norm")
MAX_POINTS = 40  # of a line: a hundred layers and projections of two arms with more are a megabyte
_WIDTH, _HEIGHT, _PER_ROW = 205, 150, 3


@dataclass(frozen=True, slots=True)
class LayerLines:
    """The data of one figure."""

    metric: str
    arms: tuple[str, ...]
    n: dict[str, int]
    """Seeds that each arm's lines are means over."""
    styles: dict[str, ArmStyle]
    projections: tuple[str, ...]
    steps: tuple[int, ...]
    bin_size: int
    """Steps that a point stands for."""
    rows: pl.DataFrame
    """`arm`, `projection`, `layer`, `step`, `value`, `n`."""
    chances: dict[str, tuple[Chance, ...]]
    """By projection, of an alignment."""
    num_ill_posed: int
    """Values that are not in any mean, of all runs."""

    @property
    def medians(self) -> pl.DataFrame:
        """Over layers: `arm`, `projection`, `step`, `median`, `low`, `high`."""
        value, keys = pl.col("value"), ("arm", "projection", "step")
        found = self.rows.group_by(keys).agg(median=value.median(), low=value.min(), high=value.max())
        return found.sort(keys)


def two_arms(members: pl.DataFrame, with_values: set[str], baseline: str | None) -> tuple[str, ...]:
    """The baseline and the first arm of another optimizer, Muon or AdamW if one is; fewer if there are not two."""
    known = members.filter(pl.col("run_id").is_in(with_values)).unique("arm", keep="first", maintain_order=True)
    pairs = list(known.select("arm", "optimizer").iter_rows())
    pairs.sort(key=lambda pair: pair[0] != baseline)
    if not pairs:
        return ()
    others = sorted(pairs[1:], key=lambda pair: (pair[1] == pairs[0][1], pair[1] not in ("muon", "adamw")))
    return tuple(arm for arm, _ in (pairs[0], *others[:1]))


def layer_lines_info(cells: Cells, members: pl.DataFrame, metric: str, arms: Sequence[str]) -> LayerLines | None:
    """Data of the lines of `arms`; None where none of them has a step at which all of its seeds have a value."""
    bin_size = max(1, -(-len(cells.steps) // MAX_POINTS))
    steps = cells.steps[::bin_size]
    frames, n, num_ill_posed = [], {}, 0
    chances: dict[str, set[Chance]] = {name: set() for name in cells.projections}
    for arm in arms:
        counted = members.filter(pl.col("arm") == arm, pl.col("status").is_in(queries.COUNTED))
        places = [i for i, run in enumerate(cells.runs) if run in set(counted["run_id"])]
        if not places:
            continue
        n[arm] = len(places)
        values = cells.values[metric][places]
        if metric in cells.ill_posed:
            flags = cells.ill_posed[metric][places]
            num_ill_posed += int(flags.sum())
            values = np.where(flags, np.float32(np.nan), values)
        means = values.mean(axis=0)
        for p, projection in enumerate(cells.projections):
            drawn = bin_steps(means[p], bin_size, peak=metric.endswith("_peak"))
            frames.append(_frame(arm, projection, cells.layers, steps, drawn, len(places)))
            known = cells.chances.get(metric, {})
            chances[projection] |= {known[run, projection] for run in counted["run_id"] if (run, projection) in known}
    rows = pl.concat(frames).filter(pl.col("value").is_not_nan()) if frames else pl.DataFrame()
    if rows.is_empty():
        return None
    present = set(rows["projection"])
    named = members.select("arm", "optimizer").unique("arm", keep="first", maintain_order=True)
    return LayerLines(
        metric=metric,
        arms=tuple(arm for arm in arms if arm in set(rows["arm"])),
        n=n,
        styles=arm_styles(sorted(named.iter_rows(), key=lambda pair: pair[0] != arms[0])),
        projections=tuple(name for name in cells.projections if name in present),
        steps=cells.steps,
        bin_size=bin_size,
        rows=rows,
        chances={name: tuple(sorted(found)) for name, found in chances.items()},
        num_ill_posed=num_ill_posed,
    )


def _frame(
    arm: str, projection: str, layers: Sequence[int], steps: Sequence[int], values: np.ndarray, n: int
) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "layer": np.repeat(np.array(layers, np.int32), len(steps)),
            "step": np.tile(np.array(steps, np.int64), len(layers)),
            "value": values.ravel(),
        }
    )
    who = (pl.lit(arm).alias("arm"), pl.lit(projection).alias("projection"))
    return frame.select(*who, pl.all(), pl.lit(n).alias("n"))


def draw_layer_lines(info: LayerLines) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a panel for each projection, thin lines for layers, thick ones for their median."""
    data: dict[str, Rows] = {}
    panels = []
    for projection in info.projections:
        own = pl.col("projection") == projection
        data[f"layers_{projection}"] = info.rows.filter(own).select("arm", "layer", "step", "value").to_dicts()
        data[f"medians_{projection}"] = info.medians.filter(own).select("arm", "step", "median").to_dicts()
        levels = {chance.level for chance in info.chances[projection]}
        data[f"chance_{projection}"] = [{"level": level} for level in sorted(levels)]
        panels.append(_panel(info, projection))
    spec = {"concat": panels, "columns": _PER_ROW, "spacing": {"row": 24, "column": 30}}
    return spec | {"resolve": {"scale": {"y": "independent"}}}, data


def _panel(info: LayerLines, projection: str) -> Spec:
    """By hand: Altair would take longer to check the panels of a page than Vega to draw them."""
    steps = {"domain": [info.steps[0], max(info.steps[-1], info.steps[0] + 1)], "nice": False}
    x = _encoding("step", steps, {"title": "step", "format": "~s", "tickCount": 4, "grid": False})
    values = {"domain": list(axis_range(info, projection)), "nice": False, "zero": False}
    y = {field: _encoding(field, values, {"title": None, "tickCount": 4, "format": "~g"}) for field in _VALUES}
    arms, styles = list(info.arms), [info.styles[arm] for arm in info.arms]
    colours, dashes = [style.colour for style in styles], [list(style.dash) for style in styles]
    named = {"field": "arm", "type": "nominal"}
    colour = named | {"scale": {"domain": arms, "range": colours}, "legend": _legend(info)}
    dash = named | {"scale": {"domain": arms, "range": dashes}}
    line, dot = {"type": "line", "clip": True}, {"type": "point", "filled": True, "size": 30, "opacity": 0.8}
    thin = {"x": x, "y": y["value"], "color": colour, "detail": {"field": "layer", "type": "nominal"}}
    thick = {"x": x, "y": y["median"], "color": colour, "strokeDash": dash}
    layers = [
        _layer(f"layers_{projection}", line | {"strokeWidth": 0.7, "opacity": 0.45}, thin),
        _layer(f"medians_{projection}", line | {"strokeWidth": 2.5}, thick),
    ]
    if info.chances[projection]:
        rule = {"type": "rule", "color": "currentColor", "strokeDash": [2, 3]}
        layers.append(_layer(f"chance_{projection}", rule, {"y": y["level"]}))
    if len(info.steps) == 1:
        layers.append(_layer(f"layers_{projection}", dot, thin))
    return {"width": _WIDTH, "height": _HEIGHT, "title": f"{projection} projection", "layer": layers}


_VALUES = ("value", "median", "level")


def _encoding(field: str, scale: Spec, axis: Spec) -> Spec:
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}


def _layer(data: str, mark: Spec, encoding: Spec) -> Spec:
    return {"data": {"name": data}, "mark": mark, "encoding": encoding}


def _legend(info: LayerLines) -> Spec:
    """Below the panels, each arm with the seeds its lines are means over."""
    labels = {arm: f"{arm} ({runs_text(info.n[arm])})" for arm in info.arms}
    return {
        "title": None,
        "orient": "bottom",
        "columns": 2 if max(map(len, labels.values())) < 40 else 1,
        "labelExpr": f"{json.dumps(labels)}[datum.label]",
        "symbolType": "stroke",
        "symbolSize": 900,
        "symbolStrokeWidth": 2.5,
        "symbolOpacity": 1,
    }


def axis_range(info: LayerLines, projection: str) -> tuple[float, float]:
    """1st to 99th percentile of the panel's lines, and their chance level, with a margin."""
    values = info.rows.filter(pl.col("projection") == projection)["value"]
    bounds = [values.quantile(q, "nearest") for q in (0.01, 0.99)]
    bounds += [chance.level for chance in info.chances[projection]]
    low, high = min(bounds), max(bounds)  # type: ignore[type-var]
    margin = 0.04 * (high - low) or 0.01 * abs(high) or 0.01  # type: ignore[operator,arg-type]
    return low - margin, high + margin  # type: ignore[operator]


def describe_layer_lines(info: LayerLines, file: str) -> str:
    """Kind and axes, each projection's medians and range of layers at the first and last step, and where values are."""
    parts = [
        f"Line charts of {info.metric} against steps, {info.steps[0]:,} to {info.steps[-1]:,}, a panel for each "
        f"projection, a thin line for each of {count(info.rows['layer'].n_unique(), 'layer')}, the median over "
        "layers thick: "
        f"{' against '.join(f'{arm} ({runs_text(info.n[arm])})' for arm in info.arms)}."
    ]
    if info.metric in ALIGNMENTS:
        parts.append(chance_text(sorted({chance for found in info.chances.values() for chance in found})))
    if info.num_ill_posed:
        parts.append(f"{count(info.num_ill_posed, 'value')} ill-posed, and in no line.")
    for projection in info.projections:
        parts += [text for arm in info.arms if (text := _arm_text(info, projection, arm))]
    return " ".join([*parts, f"Values: {file}."])


def layer_lines_caption(info: LayerLines) -> str:
    """What the lines are."""
    kind = "maximum" if info.metric.endswith("_peak") else "mean"
    point = "" if info.bin_size == 1 else f" A point is the {kind} of {info.bin_size} measured steps."
    chance = ""
    if info.metric in ALIGNMENTS:
        level = chance_text(sorted({chance for found in info.chances.values() for chance in found}))
        chance = f" {level} It is dotted; {count(info.num_ill_posed, 'ill-posed value')} left out."
    return (
        f"{info.metric} by layer and projection: a thin line is a layer's mean over the arm's runs that are done or "
        f"running, at steps where all of them have a value, the thick line the median over layers.{point} Each panel "
        f"has its own scale, the 1st to 99th percentile of its lines.{chance}"
    )


def _arm_text(info: LayerLines, projection: str, arm: str) -> str:
    own = info.medians.filter(pl.col("projection") == projection, pl.col("arm") == arm)
    if own.is_empty():
        return ""
    texts = [
        f"{number(row['median'])} at step {row['step']:,} (layers {number(row['low'])} to {number(row['high'])})"
        for row in (own.row(0, named=True), own.row(-1, named=True))
    ]
    return f"{projection}, {arm}: median {texts[0]} and {texts[1]}."


def layer_lines_figures(
    view: Store,
    members: pl.DataFrame | None = None,
    summary: Summary | None = None,
    metrics: Sequence[str] = METRICS,
    arms: Sequence[str] | None = None,
) -> Figures:
    """A figure for each of `metrics` that the arms have finite values of.

    Args:
        arms: whose lines, one or two; None takes the baseline and the first arm of another optimizer.
    Raises: ValueError for an unknown metric or arm.
    """
    members, summary = given(view, members, summary)
    known = members["arm"].unique(maintain_order=True).to_list()
    if unknown := [arm for arm in arms or () if arm not in known]:
        raise ValueError(f"no arm {unknown[0]!r} in the sweep; its arms are {', '.join(known)}")
    chosen = two_arms(members, all_with_values(view, members, metrics), summary.baseline) if arms is None else arms
    if not chosen:
        return Figures()
    found = cells_by_metric(view, members.filter(pl.col("arm").is_in(list(chosen))), metrics)
    infos = [layer_lines_info(found[metric], members, metric, chosen) for metric in metrics]
    return Figures(_figure(info) for info in infos if info is not None)


def _figure(info: LayerLines) -> Figure:
    name, title = f"{info.metric}_by_layer", f"{info.metric} by layer and projection, {' against '.join(info.arms)}"
    file = f"data/{name}.csv"
    description = describe_layer_lines(info, file)
    svg = to_svg(*draw_layer_lines(info), name=name, title=title, description=description)
    return Figure(name, title, layer_lines_caption(info), description, svg, {file: info.rows})
