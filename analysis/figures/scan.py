"""A quick scan: one metric of every run of a sweep, each a small picture, to find the run that is unlike the others.

A picture has a band for each projection, layer 0 at the bottom of its band, and steps from left to right. Projections
differ in range, so a colour says where a cell lies between the 1st and the 99th percentile of its projection over all
runs. Layers, steps and colours are coarser than in a heatmap: two hundred pictures are half a megabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.figures.cells import ALIGNMENTS, Cells, Chance, Flags, Values, cells_by_metric
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.heatmap_drawing import LINES, MISSING, PAPER, notes_legend
from analysis.figures.heatmap_text import chance_text, count, number
from analysis.figures.panels import bin_steps, scale_of
from analysis.figures.picture_grid import Layout, Picture, draw_grid, wrapped
from analysis.figures.png import data_url, encode_indexed
from analysis.figures.style import RGB, VIRIDIS_ANCHORS, hex_colour, viridis
from analysis.figures.svg import Rows, Spec, to_svg
from analysis.store import Store
from analysis.summary import Summary

METRICS = ("effective_rank",)
_COLUMNS, _BAND, _COLOURS = 48, 12, 32
"""Of a picture: columns and layers of a band at most, and colours; a quick look needs no more."""
_WIDTH, _HEIGHT, _GAP, _PER_ROW, _LEFT = 84, 72, 12, 8, 46
"""CSS pixels of a picture, the height about, and between two; pictures in a row; room for names of bands."""
_PALETTE: list[RGB] = [(0, 0, 0), MISSING, PAPER, LINES, *viridis(_COLOURS)]
"""Between bands (transparent), missing, ill-posed and its hatch, and values."""


@dataclass(frozen=True, slots=True)
class ScannedRun:
    """One run's picture, in as many bands as there are projections."""

    arm: str
    run_id: str
    seed: int | None
    bands: tuple[Values, ...]
    """Of each projection, shape (rows, columns), layer 0 first; NaN without a value."""
    chances: tuple[Chance | None, ...]
    """Of an alignment, where it was recorded."""
    ill_posed: tuple[Flags, ...]
    """Cells of which all that was measured is ill-posed."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The data of one figure."""

    metric: str
    projections: tuple[str, ...]
    scales: tuple[tuple[float, float], ...]
    """1st and 99th percentile of each projection, over all runs."""
    clipped: float
    """Share of the cells beyond their scale."""
    runs: tuple[ScannedRun, ...]
    num_layers: int
    steps: tuple[int, ...]
    bin_size: int
    """Steps a column stands for."""
    band_size: int
    """Layers a row stands for."""

    @property
    def rows(self) -> pl.DataFrame:
        """A row for each run and projection: `median`, `lowest`, `highest`, `z` of the median of an alignment above its
        chance level, and how many cells are `missing` and `ill_posed`."""
        return pl.DataFrame(
            [_row(run, p, name) for run in self.runs for p, name in enumerate(self.projections)],
            schema=_ROW,
            orient="row",
        )


_ROW = {
    "arm": pl.String,
    "run_id": pl.String,
    "seed": pl.Int64,
    "projection": pl.String,
    "median": pl.Float64,
    "lowest": pl.Float64,
    "highest": pl.Float64,
    "z": pl.Float64,
    "missing": pl.Int64,
    "ill_posed": pl.Int64,
}


def scan_info(cells: Cells, members: pl.DataFrame, metric: str) -> Scan | None:
    """Data of the scan of `metric` over all runs of `members`; None if there is no finite value."""
    projections = cells.finite_projections(metric)
    if not projections:
        return None
    bin_size, band_size = -(-len(cells.steps) // _COLUMNS), -(-len(cells.layers) // _BAND)
    place = {run: i for i, run in enumerate(cells.runs)}
    where = [cells.projections.index(name) for name in projections]
    runs = []
    for row in members.unique("run_id", keep="first", maintain_order=True).iter_rows(named=True):
        i = place.get(row["run_id"])
        bands = [_band(cells, metric, i, p, bin_size, band_size) for p in where]
        values, ill_posed = zip(*bands, strict=True)
        known = cells.chances.get(metric, {})
        chances = tuple(known.get((row["run_id"], name)) for name in projections)
        runs.append(ScannedRun(row["arm"], row["run_id"], row["seed"], values, chances, ill_posed))
    scales, beyond, total = [], 0.0, 0
    for p in range(len(projections)):
        drawn = np.concatenate([run.bands[p].ravel() for run in runs])
        low, high, clipped = scale_of(drawn)
        finite = int(np.isfinite(drawn).sum())
        scales.append((low, high))
        beyond, total = beyond + clipped * finite, total + finite
    return Scan(
        metric=metric,
        projections=tuple(projections),
        scales=tuple(scales),
        clipped=beyond / max(1, total),
        runs=tuple(runs),
        num_layers=len(cells.layers),
        steps=cells.steps,
        bin_size=bin_size,
        band_size=band_size,
    )


def _band(cells: Cells, metric: str, i: int | None, p: int, bin_size: int, band_size: int) -> tuple[Values, Flags]:
    """One projection of one run, binned over steps and layers."""
    shape = (len(cells.layers), len(cells.steps))
    values = np.full(shape, np.nan, np.float32) if i is None else cells.values[metric][i, p]
    flags = np.zeros(shape, np.bool_) if i is None or metric not in cells.ill_posed else cells.ill_posed[metric][i, p]
    peak = metric.endswith("_peak")
    values = np.where(flags, np.float32(np.nan), values)
    binned = bin_steps(bin_steps(values, bin_size, peak=peak).T, band_size, peak=peak).T
    hidden = bin_steps(bin_steps(flags.astype(np.float32), bin_size, peak=True).T, band_size, peak=True).T > 0
    return binned, hidden & np.isnan(binned)


def draw_scan(info: Scan) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a picture for each run, and the legends."""
    band = _band_height(info)
    layout = Layout(
        per_row=_PER_ROW,
        width=_WIDTH,
        height=len(info.projections) * (band + 1) - 1,
        gap=_GAP,
        left=_LEFT,
        side=[(band / 2 + p * (band + 1), name) for p, name in enumerate(info.projections)],
    )
    pictures = [Picture(_lines(run), [data_url(_picture(info, run, band))]) for run in info.runs]
    spec, data = draw_grid(pictures, layout, _legends(info))
    ends = [{"x": 0, "y": 0, "share": share, "note": note} for share, note in ((0, "missing"), (1, "ill-posed"))]
    return spec, data | {"ends": ends}


def _picture(info: Scan, run: ScannedRun, band: int) -> bytes:
    """PNG bytes of a run's bands, one below the other, with a transparent line between them."""
    parts = []
    for p, (low, high) in enumerate(info.scales):
        values = run.bands[p]
        share = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1) if high > low else values * 0 + 0.5
        indices = np.where(np.isnan(values), 1, 4 + np.nan_to_num(np.rint((_COLOURS - 1) * share)))
        diagonal = np.add.outer(*map(np.arange, values.shape)) % 4 == 0
        indices = np.where(run.ill_posed[p], np.where(diagonal, 3, 2), indices).astype(np.uint8)
        parts += [np.repeat(indices[::-1], band // len(values), axis=0), np.zeros((1, values.shape[1]), np.uint8)]
    return encode_indexed(np.concatenate(parts[:-1]), _PALETTE, transparent=True)


def _band_height(info: Scan) -> int:
    rows = len(info.runs[0].bands[0])
    return rows * max(1, _HEIGHT // (rows * len(info.projections)))


def _lines(run: ScannedRun) -> list[str]:
    """What stands above a picture."""
    return [
        *wrapped(run.arm, _WIDTH + _GAP / 2),
        "no seed" if run.seed is None else f"seed {run.seed}",
    ]


def _legends(info: Scan) -> list[Spec]:
    colours = [hex_colour(colour) for colour in viridis(VIRIDIS_ANCHORS)]
    below = {"orient": "bottom"}
    gradient = below | {
        "title": "percentile of the projection",
        "direction": "horizontal",
        "gradientLength": 220,
        "values": [0, 1],
        "labelExpr": "datum.value ? '99th' : '1st'",
    }
    notes = ["missing", "ill-posed"][: 1 + any(flags.any() for run in info.runs for flags in run.ill_posed)]
    scale = {"domain": [0, 1], "range": colours, "interpolate": "rgb"}
    return [
        {"color": {"field": "share", "type": "quantitative", "scale": scale, "legend": gradient}},
        notes_legend(notes, below),
    ]


def describe_scan(info: Scan, file: str) -> str:
    """Kind and axes, each projection's scale and runs of lowest and highest median, what is missing, and where."""
    rows = info.rows
    parts = [
        f"Quick scan of {info.metric}: {count(len(info.runs), 'run')}, each a picture of "
        f"{count(len(info.projections), 'projection')}, {count(info.num_layers, 'layer')} by "
        f"{count(len(info.steps), 'step')} ({info.steps[0]:,} to {info.steps[-1]:,})."
    ]
    for name, (low, high) in zip(info.projections, info.scales, strict=True):
        of = rows.filter(pl.col("projection") == name).drop_nulls("median").sort("median", maintain_order=True)
        ends = [f"{number(row['median'])} ({_who(row)})" for row in (of.row(0, named=True), of.row(-1, named=True))]
        parts.append(f"{name}: scale {number(low)} to {number(high)}; medians of runs from {ends[0]} to {ends[1]}.")
    if info.metric in ALIGNMENTS:
        parts.append(chance_text(_chances(info)))
    parts.append(f"{100 * info.clipped:.1f} % of the cells lie beyond their scale.")
    counts = rows.group_by("run_id").agg(pl.col("missing", "ill_posed").sum(), empty=pl.col("median").is_null().all())
    for column, word in (("missing", "missing"), ("ill_posed", "ill-posed")):
        total, runs = int(counts[column].sum()), int((counts[column] > 0).sum())
        if total:
            parts.append(f"{count(total, 'cell')} {word}, in {count(runs, 'run')}.")
    if empty := int(counts["empty"].sum()):
        parts.append(f"{count(empty, 'run')} without a value.")
    return " ".join([*parts, f"Values: {file}."])


def scan_caption(info: Scan) -> str:
    """What a picture is, and how it is coloured."""
    kind = "maximum" if info.metric.endswith("_peak") else "mean"
    cell = f" A cell is the {kind} of {count(info.band_size, 'layer')} by {count(info.bin_size, 'step')}."
    is_alignment = info.metric in ALIGNMENTS
    more = f" {chance_text(_chances(info))} Light grey is ill-posed, without meaning." if is_alignment else ""
    return (
        f"{info.metric} of every run: bands are projections, in them layers upwards, steps to the right, "
        f"{info.steps[0]:,} to {info.steps[-1]:,}.{cell} A colour is the place between the 1st and the 99th percentile "
        f"of the projection over all runs; {100 * info.clipped:.1f} % of the cells lie beyond.{more} "
        "Grey is missing."
    )


def scan_figures(
    view: Store, members: pl.DataFrame | None = None, summary: Summary | None = None, metrics: Sequence[str] = METRICS
) -> Figures:
    """A figure of all runs for each of `metrics` with a finite value. Raises ValueError for an unknown metric."""
    members, summary = given(view, members, summary)
    found = cells_by_metric(view, members, metrics)
    infos = [scan_info(found[metric], members, metric) for metric in metrics]
    return Figures(_figure(info) for info in infos if info is not None)


def _figure(info: Scan) -> Figure:
    name, title = f"{info.metric}_scan", f"{info.metric} of every run"
    file = f"data/{name}.csv"
    description = describe_scan(info, file)
    svg = to_svg(*draw_scan(info), name=name, title=title, description=description)
    return Figure(name, title, scan_caption(info), description, svg, {file: info.rows})


def _chances(info: Scan) -> list[Chance]:
    return sorted({chance for run in info.runs for chance in run.chances if chance is not None})


def _row(run: ScannedRun, p: int, projection: str) -> tuple[object, ...]:
    values, ill_posed = run.bands[p], run.ill_posed[p]
    finite = values[np.isfinite(values)]
    ends = (float(np.median(finite)), float(finite.min()), float(finite.max())) if len(finite) else (None,) * 3
    missing = int((np.isnan(values) & ~ill_posed).sum())
    chance = run.chances[p]
    z = None if chance is None or ends[0] is None else (ends[0] - chance.level) / chance.sd
    return (run.arm, run.run_id, run.seed, projection, *ends, z, missing, int(ill_posed.sum()))


def _who(row: dict[str, object]) -> str:
    seed = "no seed" if row["seed"] is None else f"seed {row['seed']}"
    return f"{row['arm']}, {seed}" if row["z"] is None else f"{row['arm']}, {seed}, z {row['z']:.1f}"
