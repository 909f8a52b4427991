"""Values of hidden matrices as arrays over runs, projections, layers and steps, from which figures take what they show.

A sweep measures each matrix at hundreds of steps by a dozen metrics: millions of rows. So a table is read once for all
metrics of a figure set, and what is done per panel is arithmetic on arrays.

An alignment needs two more numbers to be read. Unrelated subspaces are not at 0, so each value has a chance level and
a standard deviation around it; and where a matrix has no top five directions the value means nothing, it is ill-posed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis import queries
from analysis.store import Store
from muon_core.tables import projection_order

Values = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


class Beside(NamedTuple):
    """Columns that an alignment is read with."""

    chance: str
    size: str
    """Dimension of the space that the subspaces lie in."""
    flag: str
    """Whether it is ill-posed."""


_OF_UPDATE, _OF_MOMENTUM = "ill_posed", "momentum_ill_posed"
ALIGNMENTS = {
    "left_alignment": Beside("alignment_chance", "rows", _OF_UPDATE),
    "update_alignment": Beside("alignment_chance", "rows", _OF_UPDATE),
    "right_alignment": Beside("right_alignment_chance", "cols", _OF_UPDATE),
    "momentum_left_alignment": Beside("alignment_chance", "rows", _OF_MOMENTUM),
    "momentum_right_alignment": Beside("right_alignment_chance", "cols", _OF_MOMENTUM),
}
IN_PLACE_OF_ILL_POSED = {
    "left_alignment": "momentum_left_alignment",
    "update_alignment": "momentum_left_alignment",
    "right_alignment": "momentum_right_alignment",
}


class Chance(NamedTuple):
    """Alignment of unrelated subspaces."""

    level: float
    sd: float


@dataclass(frozen=True, slots=True)
class Cells:
    """What one table holds of some runs; arrays have the shape (runs, projections, layers, steps)."""

    runs: tuple[str, ...]
    """run_id of those with rows, in the order of the sweep."""
    projections: tuple[str, ...]
    layers: tuple[int, ...]
    steps: tuple[int, ...]
    """Steps with rows of any run, ascending."""
    measured: Flags
    """Whether there is a row."""
    values: dict[str, Values]
    """By metric; NaN where nothing finite was measured."""
    ill_posed: dict[str, Flags]
    """By alignment, of those whose tables tell it."""
    chances: dict[str, dict[tuple[str, str], Chance]]
    """By alignment, then run_id and projection, where a chance level was recorded."""

    def finite_projections(self, metric: str) -> list[str]:
        """Those with a finite value of `metric`."""
        is_finite = np.isfinite(self.values[metric])
        return [name for p, name in enumerate(self.projections) if is_finite[:, p].any()]


def chance_sd(size: int) -> float:
    """Standard deviation of the alignment of two random 5-dimensional subspaces of R^size; NaN below size 10.

    As the mean, that of a Gaussian corner over sqrt(size); fitted, within 2 % of Monte Carlo over 20,000 draws.
    """
    return 0.2815 * (1 - 3 / size) / size**0.5 if size >= 10 else float("nan")


def read_cells(table: pl.LazyFrame, members: pl.DataFrame, metrics: Sequence[str]) -> Cells:
    """`metrics` of the runs in `members`, all in one reading of `table`, which must hold them all."""
    known = table.collect_schema().names()
    beside = [name for metric in metrics if metric in ALIGNMENTS for name in ALIGNMENTS[metric] if name in known]
    names = list(dict.fromkeys([*metrics, *beside]))
    rows = queries.layer_cells(table, members, names).collect()
    present = set(rows["run_id"].unique())
    runs = tuple(run for run in dict.fromkeys(members["run_id"]) if run in present)
    projections = tuple(sorted(rows["projection"].unique(), key=projection_order))
    layers, steps = rows["layer"].unique().sort(), rows["step"].unique().sort()
    shape = (len(runs), len(projections), len(layers), len(steps))
    places = (
        np.ravel_multi_index(
            (
                _positions(rows["run_id"], runs),
                _positions(rows["projection"], projections),
                np.searchsorted(layers.to_numpy(), rows["layer"].to_numpy()),
                np.searchsorted(steps.to_numpy(), rows["step"].to_numpy()),
            ),
            shape,
        )
        if rows.height
        else np.zeros(0, np.int64)
    )
    alignments = {metric: ALIGNMENTS[metric] for metric in metrics if metric in ALIGNMENTS}
    flags = {name.flag for name in alignments.values() if name.flag in known and rows[name.flag].count()}
    known_flags = {flag: _spread(rows[flag].fill_null(False).to_numpy(), places, shape, False) for flag in flags}
    return Cells(
        runs=runs,
        projections=projections,
        layers=tuple(layers),
        steps=tuple(steps),
        measured=_spread(np.ones(rows.height, np.bool_), places, shape, False),
        values={metric: _spread(_finite(rows[metric]), places, shape, np.nan) for metric in metrics},
        ill_posed={metric: known_flags[name.flag] for metric, name in alignments.items() if name.flag in known_flags},
        chances={metric: _chances(rows, name) for metric, name in alignments.items()},
    )


def runs_with_values(table: pl.LazyFrame, members: pl.DataFrame, metrics: Sequence[str]) -> set[str]:
    """run_id of those of `members` with a finite value of any of `metrics`."""
    is_finite = pl.any_horizontal(pl.col(metric).cast(pl.Float32).is_finite() for metric in metrics)
    cells = queries.layer_cells(table, members, metrics).filter(is_finite)
    return set(cells.select(pl.col("run_id").unique()).collect()["run_id"])


def cells_by_metric(view: Store, members: pl.DataFrame, metrics: Sequence[str]) -> dict[str, Cells]:
    """For each of `metrics` the cells that hold it, of the runs in `members`: each table that has some is read once.

    Raises ValueError for an unknown metric.
    """
    read = {table: read_cells(view.table(table), members, names) for table, names in _by_table(metrics).items()}
    return {metric: read[table] for table, names in _by_table(metrics).items() for metric in names}


def all_with_values(view: Store, members: pl.DataFrame, metrics: Sequence[str]) -> set[str]:
    """`runs_with_values` over the tables that hold `metrics`. Raises ValueError for an unknown one."""
    found = (runs_with_values(view.table(table), members, names) for table, names in _by_table(metrics).items())
    return set().union(*found)


def _by_table(metrics: Sequence[str]) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    for metric in metrics:
        tables.setdefault(queries.layer_table(metric), []).append(metric)
    return tables


def _positions(names: pl.Series, order: Sequence[str]) -> npt.NDArray[np.uint32]:
    return names.cast(pl.Enum(order)).to_physical().to_numpy()


def _finite(column: pl.Series) -> Values:
    values = column.cast(pl.Float32).fill_null(np.nan).to_numpy()
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _spread(
    values: npt.NDArray[Any], places: npt.NDArray[np.int64], shape: tuple[int, ...], missing: float
) -> npt.NDArray[Any]:
    cells = np.full(int(np.prod(shape)), missing, values.dtype)
    cells[places] = values
    return cells.reshape(shape)


def _chances(rows: pl.DataFrame, columns: Beside) -> dict[tuple[str, str], Chance]:
    """Of each run and projection; empty where the table does not tell them."""
    if not {columns.chance, columns.size} <= set(rows.columns):
        return {}
    first = rows.group_by("run_id", "projection").agg(
        pl.col(name).drop_nulls().first() for name in (columns.chance, columns.size)
    )
    return {
        (run, projection): Chance(level, chance_sd(size))
        for run, projection, level, size in first.drop_nulls().iter_rows()
    }
