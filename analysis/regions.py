"""Joins cells that stand out into regions: neighbouring layers of a projection over a stretch of tracked steps."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_OF = ("kind", "metric", "run", "projection")
_WORST = ("layer", "step", "value", "normal", "score")
"""What a region tells of the cell with the largest score."""


def regions(hits: pl.DataFrame, min_steps: pl.Expr) -> pl.DataFrame:
    """One row a connected region, the largest score first.

    Two cells touch that differ by one tracked step, or by one layer at stretches of steps that overlap.

    Args:
        hits: as `analysis.departures` gives them.
        min_steps: how many tracked steps in a row a matrix must stand out, by the columns of `hits`.
    Returns: `kind`, `metric`, `run`, `projection`, `layer_from`, `layer_to`, `step_from`, `step_to`, `matrices`,
        `cells`, and of the worst cell `layer`, `step`, `value`, `normal` and `score`.
    """
    stretches = _stretches(hits).filter(pl.col("cells") >= min_steps)
    stretches = stretches.with_columns(region=_connected(stretches))
    worst = pl.col("score").arg_max()
    found = stretches.group_by("region", *_OF).agg(
        layer_from=pl.col("layer").min(),
        layer_to=pl.col("layer").max(),
        step_from=pl.col("step_from").min(),
        step_to=pl.col("step_to").max(),
        matrices=pl.col("layer").n_unique(),
        cells=pl.col("cells").sum(),
        **{name: pl.col(name).get(worst) for name in _WORST},
    )
    order = ["score", "cells", *_OF, "layer_from", "step_from"]
    return found.drop("region").sort(order, descending=[True, True, *[False] * (len(order) - 2)])


def _stretches(hits: pl.DataFrame) -> pl.DataFrame:
    """Hits of one matrix at tracked steps in a row, as one row."""
    matrix = [*_OF, "layer"]
    hits = hits.sort(*matrix, "t", "score", descending=[False] * len(matrix) + [False, True])
    hits = hits.unique([*matrix, "t"], keep="first", maintain_order=True)
    is_new = (pl.struct(matrix) != pl.struct(matrix).shift()) | (pl.col("t") != pl.col("t").shift() + 1)
    hits = hits.with_columns(stretch=is_new.fill_null(True).cum_sum())
    worst = pl.col("score").arg_max()
    return hits.group_by("stretch", *matrix, maintain_order=True).agg(
        start=pl.col("t").first(),
        end=pl.col("t").last(),
        step_from=pl.col("step").first(),
        step_to=pl.col("step").last(),
        cells=pl.len(),
        **{name: pl.col(name).get(worst) for name in _WORST if name != "layer"},
    )


def _connected(stretches: pl.DataFrame) -> pl.Series:
    """Number of the region that each stretch belongs to."""
    ends = stretches.select(*_OF, "layer", "start", "end").with_row_index()
    pairs = ends.join(ends.with_columns(pl.col("layer") - 1), on=[*_OF, "layer"], suffix="_above")
    pairs = pairs.filter(pl.col("start") <= pl.col("end_above"), pl.col("start_above") <= pl.col("end"))
    ones = np.ones(pairs.height)
    graph = coo_array((ones, (pairs["index"], pairs["index_above"])), shape=(ends.height, ends.height))
    return pl.Series(connected_components(graph, directed=False)[1] if ends.height else [], dtype=pl.Int32)
