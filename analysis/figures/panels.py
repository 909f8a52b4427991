"""Panels of layers and steps on one colour scale: the data that every kind of heatmap draws and describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis import queries
from analysis.figures.cells import Cells, Chance, Flags, Values

MAX_COLUMNS = 320  # twice a panel's width in CSS pixels: beyond it a screen drops columns, so they are binned here
_FEW = 8  # panels: more of them are smaller, and have fewer columns, else a page of them has many megabytes


class Shown(NamedTuple):
    """Whom a panel is to show; `run_id` is None where there is no such run."""

    arm: str
    run_id: str | None
    seed: int | None
    note: str = ""
    """What tells panels of one arm apart."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One run's cells, as they are drawn; `run_id` is None where no run has rows to show."""

    arm: str
    run_id: str | None
    cells: Values
    """Shape (layers, columns), layer 0 first; NaN where nothing finite was measured, or what was is ill-posed."""
    seed: int | None = None
    note: str = ""
    ill_posed: Flags | None = None
    """Cells of which all that was measured is ill-posed; None where the metric cannot be, or nobody recorded it."""
    num_ill_posed: int = 0
    """Values that are: more than cells, where a column stands for several steps."""
    chance: Chance | None = None
    """Of an alignment, where it was recorded."""

    @property
    def label(self) -> str:
        """What stands above it."""
        return f"{self.arm}, {self.note}" if self.note else self.arm

    @property
    def missing(self) -> int:
        """Cells without a value."""
        empty = np.isnan(self.cells)
        return int((empty if self.ill_posed is None else empty & ~self.ill_posed).sum())


@dataclass(frozen=True, slots=True)
class Heatmap:
    """The data of one figure: every panel on the same layers, steps and scale."""

    metric: str
    projection: str
    shown: str
    """Whose, for titles: `seed 42`."""
    counted: str
    """How many of what, for texts: `3 arms at seed 42`."""
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
    minus: str | None = None
    """What was subtracted, if the cells are differences; the scale is then symmetric about 0."""
    per_row: int = 4
    """Panels side by side."""

    @property
    def columns(self) -> tuple[int, ...]:
        """The first step of each column."""
        return self.steps[:: self.bin_size]

    @property
    def chances(self) -> list[Chance]:
        """The chance levels of the panels, each once, ascending; empty where none was recorded."""
        return sorted({panel.chance for panel in self.panels if panel.chance is not None})

    @property
    def rows(self) -> pl.DataFrame:
        """What is drawn: `arm`, `run_id`, `seed`, `layer`, `step`, `value` and, where it can be, `ill_posed`."""
        return pl.concat([self._rows(panel) for panel in self.panels])

    def _rows(self, panel: Panel) -> pl.DataFrame:
        layers, columns = panel.cells.shape
        frame = pl.DataFrame(
            {
                "layer": np.repeat(np.array(self.layers, np.int32), columns),
                "step": np.tile(np.array(self.columns, np.int64), layers),
                "value": panel.cells.ravel(),
            }
        )
        who = {
            "arm": pl.lit(panel.arm),
            "run_id": pl.lit(panel.run_id, pl.String),
            "seed": pl.lit(panel.seed, pl.Int64),
        }
        frame = frame.select(**who, **{name: pl.col(name) for name in frame.columns})
        if any(one.ill_posed is not None for one in self.panels):
            flags = np.zeros(layers * columns, np.bool_) if panel.ill_posed is None else panel.ill_posed.ravel()
            frame = frame.with_columns(ill_posed=flags)
            return frame.filter(pl.col("value").is_not_nan() | pl.col("ill_posed")).with_columns(
                pl.col("value").fill_nan(None)
            )
        return frame.filter(pl.col("value").is_not_nan())


def heatmaps(
    cells: Cells,
    metric: str,
    who: Sequence[Shown],
    *,
    shown: str,
    counted: str,
    minus: str | None = None,
    per_row: int = 4,
) -> list[Heatmap]:
    """A heatmap of `metric` for each projection in which somebody of `who` has a finite value."""
    place = {run: number for number, run in enumerate(cells.runs)}
    numbers = [place[one.run_id] for one in who if one.run_id in place]
    found = []
    for p, projection in enumerate(cells.projections):
        is_finite = np.isfinite(cells.values[metric][numbers, p])
        if not is_finite.any():
            continue
        measured: Flags = np.logical_or.reduce(cells.measured[numbers, p], axis=0)
        layers, steps = np.flatnonzero(measured.any(axis=1)), np.flatnonzero(measured.any(axis=0))
        if len(steps) > 1 and cells.steps[steps[0]] == 0 and not is_finite[..., steps[0]].any():
            steps = steps[1:]  # before the first step there is no update to measure
        bin_size = -(-len(steps) // max_columns(len(who)))
        panels = tuple(
            _panel(cells, metric, p, one, place.get(one.run_id or ""), layers, steps, bin_size) for one in who
        )
        drawn = np.concatenate([panel.cells.ravel() for panel in panels])
        low, high, clipped = _symmetric_scale(drawn) if minus is not None else scale_of(drawn)
        found.append(
            Heatmap(
                metric=metric,
                projection=projection,
                shown=shown,
                counted=counted,
                panels=panels,
                layers=tuple(cells.layers[i] for i in layers),
                steps=tuple(cells.steps[i] for i in steps),
                bin_size=bin_size,
                low=low,
                high=high,
                clipped=clipped,
                minus=minus,
                per_row=per_row,
            )
        )
    return found


def max_columns(panels: int) -> int:
    """Columns that a panel may have beside so many others."""
    return MAX_COLUMNS if panels <= _FEW else MAX_COLUMNS // 4


def _panel(
    cells: Cells,
    metric: str,
    p: int,
    who: Shown,
    number: int | None,
    layers: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    bin_size: int,
) -> Panel:
    if number is None or not cells.measured[number, p].any():
        columns = -(-len(steps) // bin_size)
        return Panel(who.arm, None, np.full((len(layers), columns), np.nan, np.float32), who.seed, who.note)
    window = np.ix_(layers, steps)
    values, flags = cells.values[metric][number, p][window], cells.ill_posed.get(metric)
    ill_posed = None if flags is None else flags[number, p][window]
    if ill_posed is not None:
        values = np.where(ill_posed, np.float32(np.nan), values)
    drawn = bin_steps(values, bin_size, peak=metric.endswith("_peak"))
    return Panel(
        arm=who.arm,
        run_id=who.run_id,
        cells=drawn,
        seed=who.seed,
        note=who.note,
        ill_posed=None if ill_posed is None else _any_of(ill_posed, bin_size) & np.isnan(drawn),
        num_ill_posed=0 if ill_posed is None else int(ill_posed.sum()),
        chance=cells.chances.get(metric, {}).get((who.run_id or "", cells.projections[p])),
    )


def bin_steps(values: Values, size: int, *, peak: bool) -> Values:
    """`values`, shape (layers, steps), over `size` steps each: the maximum of those there are, or their mean."""
    if size == 1:
        return values
    parts = _in_bins(values, size, np.nan)
    if peak:
        return np.fmax.reduce(parts, axis=2)  # type: ignore[no-any-return]
    count = np.isfinite(parts).sum(axis=2)
    total = np.nansum(parts, axis=2)
    return np.where(count > 0, total / np.maximum(count, 1), np.float32(np.nan)).astype(np.float32)


def _any_of(flags: Flags, size: int) -> Flags:
    return np.logical_or.reduce(_in_bins(flags, size, False), axis=2)  # type: ignore[no-any-return]


def _in_bins(values: npt.NDArray[Any], size: int, fill: float) -> npt.NDArray[Any]:
    padding = -values.shape[1] % size
    padded = np.pad(values, ((0, 0), (0, padding)), constant_values=fill)
    return padded.reshape(len(values), -1, size)


def scale_of(drawn: Values) -> tuple[float, float, float]:
    """1st and 99th percentile and the share beyond; 0 to 1 if no cell has a colour."""
    row = queries.shared_scale(pl.LazyFrame({"value": drawn})).collect().row(0)
    return row if row[0] is not None else (0.0, 1.0, 0.0)


def _symmetric_scale(drawn: Values) -> tuple[float, float, float]:
    """The 98th percentile of the distances from 0, to both sides, and the share beyond."""
    finite = np.abs(drawn[np.isfinite(drawn)])
    bound = float(np.quantile(finite, 0.98, method="nearest")) if len(finite) else 1.0
    return -bound, bound, float((finite > bound).mean()) if len(finite) else 0.0
