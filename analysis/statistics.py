"""Compares arms seed by seed: paired Student t intervals of differences, Holm over several arms.

One seed gives candidate and baseline the same initial weights and batches. What it does to both cancels in their
difference, so pairs resolve smaller differences than two means. Intervals are Student t, never a bootstrap: with three
seeds a nominal 95 % percentile bootstrap covers about 76 %. Holm adjusts p over all arms that are tested against one
baseline, for of twenty arms without effect one is below 0.05 by chance.

A comparison has one interval and one p, both of the mean difference in the metric's unit, so an interval excludes 0
exactly where p is below 0.05. Percent are the same numbers divided by the baseline's mean, and so never of another
sign. A second interval, such as of log ratios, would now and then contain 0 where the first does not; at the seeds of
one baseline, whose losses are within a few per cent of each other, it would tell nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import fsum, isfinite, sqrt
from statistics import correlation, fmean
from typing import Literal

from scipy.special import stdtr, stdtrit

LEVEL = 0.95
Goal = Literal["min", "max"]
Interval = tuple[float, float]


class InPercent:
    """What a comparison says in percent of the baseline's mean."""

    __slots__ = ()
    baseline_mean: float
    difference: float
    difference_interval: Interval | None

    @property
    def percent(self) -> float:
        """`difference` in percent of `baseline_mean`."""
        return 100 * self.difference / self.baseline_mean

    @property
    def percent_interval(self) -> Interval | None:
        """`difference_interval` in the same."""
        if self.difference_interval is None:
            return None
        low, high = self.difference_interval
        return 100 * low / self.baseline_mean, 100 * high / self.baseline_mean


@dataclass(frozen=True, slots=True)
class PairedComparison(InPercent):
    """A candidate against a baseline over the seeds both have; differences are candidate minus baseline.

    With one pair there is no spread, so `difference_interval`, `sd` and `p_value` are None; `correlation` needs three
    pairs, two always correlate fully.
    """

    seeds: tuple[int, ...]
    mean: float
    """Of the candidate over these seeds, which need not be all it has."""
    baseline_mean: float
    """Of the baseline over these seeds."""
    difference: float
    """Mean over pairs, in the metric's unit (nats per token for a loss)."""
    difference_interval: Interval | None
    sd: float | None
    """Sample standard deviation of the differences."""
    better: int
    """Pairs in which the candidate is strictly better."""
    correlation: float | None
    """Pearson correlation of the pairs: what pairing gains."""
    p_value: float | None
    """Two-sided, of the t test that the mean difference is 0."""

    @property
    def n(self) -> int:
        """Pairs."""
        return len(self.seeds)

    @property
    def is_identical(self) -> bool:
        """Whether every pair is equal to the last digit."""
        return self.difference == 0 and self.better == 0  # no seed better, so for a mean of 0 none is worse


@cache
def t_quantile(df: float, level: float = LEVEL) -> float:
    """Half width of a two-sided `level` interval, in standard errors."""
    return float(stdtrit(df, (1 + level) / 2))


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Two-sided t interval of the mean of independent `values`; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, half = fmean(values), t_quantile(len(values) - 1, level) * _sd(values) / sqrt(len(values))
    return mean - half, mean + half


def compare_paired(
    candidate: Mapping[int, float], baseline: Mapping[int, float], goal: Goal = "min"
) -> PairedComparison | None:
    """Compare seed -> value of two arms over the seeds they share; None if they share none.

    Raises ValueError for values that are not positive and finite: percent of them mean nothing, and a diverged run has
    to be counted by the caller, not averaged.
    """
    seeds = tuple(sorted(candidate.keys() & baseline.keys()))
    for value in [v for seed in seeds for v in (candidate[seed], baseline[seed])]:
        if not (isfinite(value) and value > 0):
            raise ValueError(f"cannot compare: {value} is not positive and finite; leave out runs that diverged")
    if not seeds:
        return None
    differences = [candidate[s] - baseline[s] for s in seeds]
    sign = 1 if goal == "max" else -1
    return PairedComparison(
        seeds=seeds,
        mean=fmean(candidate[s] for s in seeds),
        baseline_mean=fmean(baseline[s] for s in seeds),
        difference=fmean(differences),
        difference_interval=mean_interval(differences),
        sd=_sd(differences) if len(seeds) > 1 else None,
        better=sum(sign * d > 0 for d in differences),
        correlation=_correlation([candidate[s] for s in seeds], [baseline[s] for s in seeds]),
        p_value=_p_value(differences),
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over the tests that were made; None (no test) stays None.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for place, (p, index) in enumerate(order):
        # A larger p never gets a smaller adjusted one than those before it.
        largest = max(largest, min(1.0, p * (len(order) - place)))
        adjusted[index] = largest
    return adjusted


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of two values or more."""
    return fmean(values), _sd(values)


def seeds_to_resolve(
    sd: float, effect: float, num_tests: int = 1, limit: int = 1000, level: float = LEVEL
) -> int | None:
    """Seeds with about even odds that a true difference of `effect` is resolved; None for no effect and above `limit`.

    That is the fewest whose interval, at `level` made Holm's strictest among `num_tests`, is no wider than |effect| to
    a side: of the estimates around a true `effect`, half are smaller than that.
    """
    if effect == 0:
        return None
    level = 1 - (1 - level) / num_tests
    return next((n for n in range(2, limit + 1) if t_quantile(n - 1, level) * sd / sqrt(n) <= abs(effect)), None)


def _sd(values: Sequence[float]) -> float:
    if min(values) == max(values):
        return 0.0  # the mean of equal numbers may round, and leave a spread of 1e-17
    mean = fmean(values)
    return sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    if len(a) < 3 or min(a) == max(a) or min(b) == max(b):
        return None
    return correlation(a, b)


def _p_value(differences: Sequence[float]) -> float | None:
    if len(differences) < 2:
        return None
    error = _sd(differences) / sqrt(len(differences))
    return two_sided(fmean(differences), error, len(differences) - 1)


def two_sided(effect: float, error: float, df: float) -> float:
    """Two-sided p of effect / error under Student t; equal pairs without any spread are no evidence, p = 1."""
    if error == 0:
        return 1.0 if effect == 0 else 0.0
    return float(2 * stdtr(df, -abs(effect) / error))
