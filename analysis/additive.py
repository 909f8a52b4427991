"""An additive model of arm and seed: a second view of many arms, which pools what they scatter.

`value = mean + arm + seed + error` over all arms at once has more degrees of freedom than three pairs, but misleads
where the arms do not scatter alike. No verdict rests on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.statistics import Interval, mean_and_sd, t_quantile, two_sided

Arms = Mapping[str, Mapping[int, float]]
"""Arm -> seed -> value."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A weighted sum of arms under the additive model, in the metric's unit."""

    difference: float
    interval: Interval
    p_value: float
    """Two-sided, of the t test that it is 0."""
    df: int


@dataclass(frozen=True, slots=True)
class AdditiveModel:
    """Arms, each as its mean with what seeds do to all of them taken out."""

    arms: tuple[str, ...]
    effects: NDArray[Any]
    """`(arms - 1,)`: of each arm but the first, minus the first."""
    covariance: NDArray[Any]
    """`(arms - 1, arms - 1)`, of the effects."""
    df: int

    def contrast(self, weights: Mapping[str, float]) -> Contrast:
        """The sum of arms by `weights`, which sum to 0 themselves; an arm without one has no part in it."""
        vector = np.array([weights.get(arm, 0.0) for arm in self.arms[1:]])
        difference = float(vector @ self.effects)
        error = sqrt(max(0.0, float(vector @ self.covariance @ vector)))
        half = t_quantile(self.df) * error
        return Contrast(
            difference, (difference - half, difference + half), two_sided(difference, error, self.df), self.df
        )


def fit(arms: Arms) -> AdditiveModel | None:
    """The model by least squares, so that an arm may lack seeds.

    A randomized block design, with seeds for blocks. An arm without values is left out. None if no degree of freedom
    is left, or some arm shares no seed with the others.
    """
    names = tuple(name for name, values in arms.items() if values)
    seeds = sorted({seed for name in names for seed in arms[name]})
    observed = [(name, seed) for name in names for seed in arms[name]]
    # A column for the mean, one for each arm but the first, and one for each seed but the first.
    design = np.array(
        [
            [1.0, *(name == other for other in names[1:]), *(seed == other for other in seeds[1:])]
            for name, seed in observed
        ]
    )
    rank = int(np.linalg.matrix_rank(design)) if observed else 0
    df = len(observed) - rank
    if df < 1 or rank < design.shape[1]:
        return None
    y = np.array([arms[name][seed] for name, seed in observed])
    inverse = np.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ y
    variance = float(np.sum((y - design @ fitted) ** 2)) / df
    own = slice(1, len(names))
    return AdditiveModel(names, fitted[own], variance * inverse[own, own], df)


def contrasts_to(baseline: str, arms: Arms) -> dict[str, Contrast]:
    """Each other arm minus the baseline; empty where there is no model or no such arm in it."""
    model = fit(arms)
    if model is None or baseline not in model.arms:
        return {}
    return {arm: model.contrast({arm: 1, baseline: -1}) for arm in model.arms if arm != baseline}


def spread_ratio(arms: Arms) -> float | None:
    """Largest over smallest deviation between seeds, of the arms with two seeds; None below two such arms."""
    spreads = [mean_and_sd(list(values.values()))[1] for values in arms.values() if len(values) > 1]
    if len(spreads) < 2:
        return None
    return max(spreads) / min(spreads) if min(spreads) > 0 else inf
