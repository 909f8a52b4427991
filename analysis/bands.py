"""The band of a stored baseline, and whether another run stays in it: point by point, then as one result.

At a point (an evaluation, or a matrix at a tracked step) the band is the range of the baseline's runs, widened by a
margin to either side. A run like them leaves a bare range often, at one point in two with three seeds, so the margin
says what does not matter, and what lies beyond it fails only where seeds do not explain it: beyond the prediction
interval for one more run, Student t over the baseline's. Points of a run move together. So nothing is assumed of that:
if at each point one like run in a hundred is beyond, then by Markov's inequality at most one in twenty is so at a fifth
of its points. With a single baseline run nothing is known of seeds, and they are assumed to do up to three margins.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import polars as pl

from analysis.gates import Result
from analysis.statistics import LEVEL, t_quantile

MANY = 0.2
"""Share of the points beyond what seeds explain from which on a run fails."""
FEW = 0.05
"""Share of the points outside the band up to which it passes."""
ASSUMED = 3
"""Margins that seeds are assumed to make out, where the baseline is one run."""
PLACE = ("step", "tokens", "projection", "layer")


@dataclass(frozen=True, slots=True)
class Departure:
    """A point where a run is outside the band."""

    step: int
    tokens: int
    projection: str | None
    layer: int | None
    """Of what is measured by matrix; else both are None."""
    value: float | None
    """None where it is not finite."""
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Check:
    """One quantity of a run against the band."""

    what: str
    """`final val_loss`, `val_loss` (its curve), `effective_rank` (all of its matrices)."""
    result: Result
    points: int
    """That were compared."""
    outside: int
    """Outside the band."""
    beyond: int
    """Of those, beyond what the baseline's seeds explain."""
    first: Departure | None
    """The first point outside."""
    is_assumed: bool
    """Whether it is assumed what seeds explain, ASSUMED margins, for the baseline is one run."""
    reason: str = ""
    """Why nothing was compared, or what keeps the run from passing; empty where the counts say it."""


def curve_points(own: pl.DataFrame, golden: pl.DataFrame) -> pl.DataFrame:
    """The points of a run's curve, with what the baseline's runs have at the same tokens.

    Between evaluations they are interpolated, linearly in tokens; points that not all of them reach are left out.

    Args:
        own: `step`, `tokens`, `value` of the run; golden: `run_id`, `tokens`, `value` of the baseline's.

    Returns: PLACE, `value`, and of the baseline `least`, `most`, `mean`, `sd` (null for one run).
    """
    own = own.sort("tokens")
    at = own["tokens"].to_numpy().astype(float)
    others = []
    for _, run in golden.filter(pl.col("value").is_finite()).sort("tokens").group_by("run_id"):
        tokens, values = run["tokens"].to_numpy().astype(float), run["value"].to_numpy()
        others.append(np.interp(at, tokens, values, left=np.nan, right=np.nan))
    known = np.array(others) if others else np.full((1, len(at)), np.nan)
    reached = ~np.isnan(known).any(axis=0)
    known = known[:, reached]
    sd = known.std(axis=0, ddof=1) if len(known) > 1 else np.full(known.shape[1], np.nan)
    points = own.filter(pl.Series(reached, dtype=pl.Boolean)).with_columns(
        projection=pl.lit(None, pl.String),
        layer=pl.lit(None, pl.Int32),
        least=pl.Series(known.min(axis=0)),
        most=pl.Series(known.max(axis=0)),
        mean=pl.Series(known.mean(axis=0)),
        sd=pl.Series(sd, nan_to_null=True) if len(sd) else pl.Series([], dtype=pl.Float64),
    )
    return points.select(*PLACE, "value", "least", "most", "mean", "sd")


def cell_points(own: pl.DataFrame, golden: pl.DataFrame) -> pl.DataFrame:
    """The same of matrices, at tracked steps of equal tokens.

    Args:
        own: PLACE and `value` of the run; golden: `tokens`, `projection`, `layer`, `least`, `most`, `mean`, `sd`, as
            `golden_cells` gives them.
    """
    joined = own.join(golden, on=["tokens", "projection", "layer"])
    return joined.sort("tokens", "layer", "projection").select(*PLACE, "value", "least", "most", "mean", "sd")


def golden_cells(rows: pl.DataFrame) -> pl.DataFrame:
    """What the baseline's runs have at each cell that all of them measured. `rows` has `run_id`, PLACE and `value`."""
    value = pl.col("value")
    cells = rows.filter(value.is_finite()).group_by("tokens", "projection", "layer")
    found = cells.agg(n=pl.len(), least=value.min(), most=value.max(), mean=value.mean(), sd=value.std())
    return found.filter(pl.col("n") == rows["run_id"].n_unique()).drop("n")


def check_points(what: str, points: pl.DataFrame, runs: int, margin: float) -> Check:
    """Whether a run stays in the band of `runs` baseline runs, at all of `points` together.

    Args:
        margin: by which the range is widened, a share of the baseline's mean.
    """
    if points.is_empty():
        return Check(
            what, "INCONCLUSIVE", 0, 0, 0, None, runs < 2, "nothing was measured at tokens that the baseline reached"
        )
    room = margin * pl.col("mean").abs()
    points = points.with_columns(low=pl.col("least") - room, high=pl.col("most") + room)
    value = pl.col("value")
    is_inside = value.is_finite() & (value >= pl.col("low")) & (value <= pl.col("high"))
    is_explained = value.is_finite() & ((value - pl.col("mean")).abs() <= _half_width(points.height, runs, room))
    marked = points.with_columns(outside=~is_inside, beyond=~is_inside & ~is_explained)
    left = marked.filter("outside")
    outside, beyond = left.height, int(marked["beyond"].sum())
    reason = ""
    if beyond >= MANY * points.height:
        result: Result = "FAIL"
    elif outside > FEW * points.height:
        result = "INCONCLUSIVE"
    else:
        reason = _lone_matrix(marked)
        result = "INCONCLUSIVE" if reason else "PASS"
    return Check(what, result, points.height, outside, beyond, _departure(left), runs < 2, reason)


def _half_width(points: int, runs: int, room: pl.Expr) -> pl.Expr:
    """Of the prediction interval for one more run, or of what is assumed in its place."""
    if runs < 2:
        return ASSUMED * room
    level = LEVEL if points == 1 else 1 - MANY * (1 - LEVEL)
    return t_quantile(runs - 1, level) * sqrt(1 + 1 / runs) * pl.col("sd")


def _lone_matrix(marked: pl.DataFrame) -> str:
    """The matrix that is outside at half of its steps or more, where a share of all cells hides it; empty for none."""
    by_matrix = marked.drop_nulls("layer").group_by("projection", "layer").agg(pl.col("outside").mean())
    lone = by_matrix.filter(pl.col("outside") >= 0.5).sort(
        "outside", "projection", "layer", descending=[True, False, False]
    )
    if lone.is_empty():
        return ""
    row = lone.row(0, named=True)
    more = f", and {lone.height - 1} more matrices" if lone.height > 1 else ""
    return f"layer {row['layer']} of {row['projection']} is outside at {100 * row['outside']:.0f} % of its steps{more}"


def _departure(left: pl.DataFrame) -> Departure | None:
    if left.is_empty():
        return None
    row = left.with_columns(pl.when(pl.col("value").is_finite()).then("value")).row(0, named=True)
    return Departure(**{name: row[name] for name in Departure.__dataclass_fields__})
