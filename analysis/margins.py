"""Tests whether a mean difference lies in a region: below a margin, above one, or between two.

Two hypotheses are tested: that the true mean lies outside, whose rejection shows that it is inside, and that it lies
inside, whose rejection shows that it is not. Both are rejected falsely in 5 % of repeats at most, most often where the
truth is the region's edge. For a region between two margins the first is the TOST of Schuirmann 1987.
"""

from __future__ import annotations

from math import inf, log1p

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from analysis.statistics import Goal

Region = tuple[float, float]
"""Between these, either of which may be infinite."""
P = NDArray[np.float64]
_ALL_OF_IT = -700.0  # log ratio to what is less by 100 % or more: no positive float is that much less than another
_NO_ERROR = 1e-30  # stands for a standard error of 0: what does not scatter is as far from an edge as can be


def region(kind: str, size: float | str | None, goal: Goal) -> Region:
    """Where the difference of a candidate to what it is compared with must lie.

    Args:
        kind: non_inferior, superior or equivalent.
        size: a difference; or a share such as `5%`, and the region is one of log ratios; None for any difference.
    """
    if isinstance(size, str):
        share = float(size.removesuffix("%")) / 100
        down, up = log1p(-share) if share < 1 else _ALL_OF_IT, log1p(share)
    else:
        down, up = -(size or 0.0), size or 0.0
    if kind == "equivalent":
        return down, up
    if kind == "superior":
        return (-inf, down) if goal == "min" else (up, inf)
    return (-inf, up) if goal == "min" else (down, inf)


def beyond(region: Region, mean: ArrayLike) -> P:
    """How far `mean` lies outside of `region`; negative inside, by the distance to the nearest edge."""
    low, high = region
    return np.maximum(np.asarray(mean) - high, low - np.asarray(mean))


def inside_and_outside(region: Region, mean: ArrayLike, error: ArrayLike, df: int) -> tuple[P, P]:
    """One-sided p that the true mean is outside of `region`, and p that it is inside.

    Args:
        mean, error: estimates and their standard errors, in one shape.
    """
    error = np.maximum(error, _NO_ERROR)
    away, width = beyond(region, mean) / error, (region[1] - region[0]) / error
    return stdtr(df, away), stdtr(df, -away) + stdtr(df, -(away + width))


def better_and_not(region: Region, mean: ArrayLike, error: ArrayLike, df: int) -> tuple[P, P]:
    """Two-sided p that there is no difference, 1 where the estimate is outside of `region`; and p that it is inside."""
    error = np.maximum(error, _NO_ERROR)
    none = 2 * stdtr(df, -np.abs(mean) / error)
    away = beyond(region, mean) / error
    return np.where(away <= 0, none, 1.0), np.minimum(1.0, 2 * stdtr(df, -away))
