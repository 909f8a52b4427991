"""Compares arms seed by seed: paired Student t intervals, Holm over several arms, an additive model of arm and seed.

One seed gives candidate and baseline the same initial weights and batches. What it does to both cancels in their
difference, so pairs resolve smaller differences than two means. Ratios are tested, as logarithms: a per cent means the
same at every level of the loss. Intervals are Student t, never a bootstrap: with three seeds a nominal 95 % percentile
bootstrap covers about 76 %. Holm adjusts p over all arms that are tested against one baseline, for of twenty arms
without effect one is below 0.05 by chance.

The additive model is a second view, on which no verdict rests: it pools the error of all arms, and so has more degrees
of freedom than three pairs, but misleads where the arms do not scatter alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import expm1, inf, isfinite, log, sqrt
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
Goal = Literal["min", "max"]
Interval = tuple[float, float]


class InPercent:
    """What a comparison by its log ratio says in percent."""

    __slots__ = ()
    log_ratio: float
    log_ratio_interval: Interval | None

    @property
    def percent(self) -> float:
        """100 (exp(log ratio) - 1)."""
        return 100 * expm1(self.log_ratio)

    @property
    def percent_interval(self) -> Interval | None:
        """`log_ratio_interval` in percent."""
        if self.log_ratio_interval is None:
            return None
        low, high = self.log_ratio_interval
        return 100 * expm1(low), 100 * expm1(high)


@dataclass(frozen=True, slots=True)
class PairedComparison(InPercent):
    """A candidate against a baseline over the seeds both have.

    Differences are candidate minus baseline, ratios candidate / baseline. With one pair there is no spread, so the
    intervals, `sd_log` and `p_value` are None; `correlation` needs three pairs, two always correlate fully.
    """

    seeds: tuple[int, ...]
    mean: float
    """Of the candidate over these seeds, which need not be all it has."""
    baseline_mean: float
    """Of the baseline over these seeds."""
    difference: float
    """Mean over pairs, in the metric's unit (nats per token for a loss)."""
    difference_interval: Interval | None
    log_ratio: float
    """Mean of ln(candidate / baseline)."""
    log_ratio_interval: Interval | None
    sd_log: float | None
    """Sample standard deviation of the log ratios."""
    better: int
    """Pairs in which the candidate is strictly better."""
    correlation: float | None
    """Pearson correlation of the paired logs: what pairing gains."""
    p_value: float | None
    """Two-sided, of the t test that the mean log ratio is 0."""

    @property
    def n(self) -> int:
        """Pairs."""
        return len(self.seeds)

    @property
    def is_identical(self) -> bool:
        """Whether every pair is equal to the last digit."""
        return self.difference == 0 and self.better == 0  # no seed better, so for a mean of 0 none is worse


def t_quantile(df: float, level: float = LEVEL) -> float:
    """Half width of a two-sided `level` interval, in standard errors."""
    return float(stdtrit(df, (1 + level) / 2))


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Two-sided t interval of the mean of independent `values`; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, half = float(np.mean(values)), t_quantile(len(values) - 1, level) * _sd(values) / sqrt(len(values))
    return mean - half, mean + half


def compare_paired(
    candidate: Mapping[int, float], baseline: Mapping[int, float], goal: Goal = "min"
) -> PairedComparison | None:
    """Compare seed -> value of two arms over the seeds they share; None if they share none.

    Raises ValueError for values that are not positive and finite: their ratio means nothing, and a diverged run has to
    be counted by the caller, not averaged.
    """
    seeds = tuple(sorted(candidate.keys() & baseline.keys()))
    for value in [v for seed in seeds for v in (candidate[seed], baseline[seed])]:
        if not (isfinite(value) and value > 0):
            raise ValueError(
                f"cannot compare by ratio: {value} is not positive and finite; leave out runs that diverged"
            )
    if not seeds:
        return None
    differences = [candidate[s] - baseline[s] for s in seeds]
    ratios = [log(candidate[s] / baseline[s]) for s in seeds]
    sign = 1 if goal == "max" else -1
    return PairedComparison(
        seeds=seeds,
        mean=float(np.mean([candidate[s] for s in seeds])),
        baseline_mean=float(np.mean([baseline[s] for s in seeds])),
        difference=float(np.mean(differences)),
        difference_interval=mean_interval(differences),
        log_ratio=float(np.mean(ratios)),
        log_ratio_interval=mean_interval(ratios),
        sd_log=_sd(ratios) if len(seeds) > 1 else None,
        better=sum(sign * d > 0 for d in differences),
        correlation=_correlation([candidate[s] for s in seeds], [baseline[s] for s in seeds]),
        p_value=_p_value(ratios),
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
    return float(np.mean(values)), _sd(values)


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


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm against the baseline under the additive model, in log ratios."""

    log_ratio: float
    log_ratio_interval: Interval
    p_value: float
    df: int


def additive_model(arms: Mapping[str, Mapping[int, float]], baseline: str) -> dict[str, Contrast]:
    """Contrasts of ln(value) = mean + arm + seed + error, by least squares, so that an arm may lack seeds.

    A randomized block design, with seeds for blocks. Pools the error over all arms: tighter than pairs when the arms
    scatter alike, misleading when they do not (see `spread_ratio`). An arm without values is left out; empty if no
    degree of freedom is left.
    """
    names = [baseline, *(name for name, values in arms.items() if values and name != baseline)]
    seeds = sorted({seed for name in names for seed in arms[name]})
    observed = [(name, seed) for name in names for seed in arms[name]]
    # A column for the mean, one for each arm but the baseline, and one for each seed but the first.
    design = np.array(
        [
            [1.0, *(name == other for other in names[1:]), *(seed == other for other in seeds[1:])]
            for name, seed in observed
        ]
    )
    rank = int(np.linalg.matrix_rank(design)) if observed else 0
    df = len(observed) - rank
    if df < 1 or rank < design.shape[1]:  # saturated, or some arm shares no seed with the others
        return {}
    y = np.log([arms[name][seed] for name, seed in observed])
    inverse = np.linalg.inv(design.T @ design)
    effects = inverse @ design.T @ y
    variance = float(np.sum((y - design @ effects) ** 2)) / df
    return {
        name: _contrast(float(effects[i]), sqrt(variance * inverse[i, i]), df)
        for i, name in enumerate(names[1:], start=1)
    }


def spread_ratio(arms: Mapping[str, Mapping[int, float]]) -> float | None:
    """Largest over smallest deviation between seeds, of the arms with two seeds; None below two such arms."""
    spreads = [_sd(list(values.values())) for values in arms.values() if len(values) > 1]
    if len(spreads) < 2:
        return None
    return max(spreads) / min(spreads) if min(spreads) > 0 else inf


def _contrast(effect: float, error: float, df: int) -> Contrast:
    half = t_quantile(df) * error
    return Contrast(effect, (effect - half, effect + half), _two_sided(effect, error, df), df)


def _sd(values: Sequence[float]) -> float:
    if min(values) == max(values):
        return 0.0  # the mean of equal numbers may round, and leave a spread of 1e-17
    return float(np.std(values, ddof=1))


def _correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    x, y = np.log(a), np.log(b)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _p_value(ratios: Sequence[float]) -> float | None:
    if len(ratios) < 2:
        return None
    return _two_sided(float(np.mean(ratios)), _sd(ratios) / sqrt(len(ratios)), len(ratios) - 1)


def _two_sided(effect: float, error: float, df: int) -> float:
    """Two-sided p of effect / error under Student t; equal pairs without any spread are no evidence, p = 1."""
    if error == 0:
        return 1.0 if effect == 0 else 0.0
    return float(2 * stdtr(df, -abs(effect) / error))
