"""Compares two arms whose runs have no seeds to be paired by: Welch's t intervals of the difference of two means.

Imported runs may not tell their seed. What a seed does to both arms then stays in the difference, and each arm has a
spread of its own, so these intervals are wider than those of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, variance

from analysis.statistics import InPercent, Interval, t_quantile, two_sided


@dataclass(frozen=True, slots=True)
class UnpairedComparison(InPercent):
    """A candidate against a baseline, each by all of its runs; the difference is candidate minus baseline.

    Interval, `df` and `p_value` are None where one has a single run.
    """

    n: int
    """Runs of the candidate."""
    baseline_n: int
    mean: float
    baseline_mean: float
    difference: float
    difference_interval: Interval | None
    df: float | None
    """Degrees of freedom, after Welch and Satterthwaite."""
    p_value: float | None
    """Two-sided, of Welch's test that the difference is 0."""


def compare_unpaired(candidate: Sequence[float], baseline: Sequence[float]) -> UnpairedComparison | None:
    """Compare positive, finite values of two arms; None where one has none.

    Source: Welch 1947, The generalization of "Student's" problem when several different population variances are
    involved.
    """
    if not (candidate and baseline):
        return None
    difference, interval, df, p_value = _welch(candidate, baseline)
    return UnpairedComparison(
        n=len(candidate),
        baseline_n=len(baseline),
        mean=fmean(candidate),
        baseline_mean=fmean(baseline),
        difference=difference,
        difference_interval=interval,
        df=df,
        p_value=p_value,
    )


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, Interval | None, float | None, float | None]:
    """Difference of the means of `a` and `b`, its 95 % interval, degrees of freedom, and p; None for a single value."""
    difference = fmean(a) - fmean(b)
    if min(len(a), len(b)) < 2:
        return difference, None, None, None
    parts = [variance(values) / len(values) for values in (a, b)]
    error = sqrt(sum(parts))
    if error == 0:  # equal runs on both sides: a spread that is not there measures nothing
        return difference, (difference, difference), None, 1.0 if difference == 0 else 0.0
    df = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    half = t_quantile(df) * error
    return difference, (difference - half, difference + half), df, two_sided(difference, error, df)
