"""How often intervals and verdicts err, by simulation with fixed draws: nominal levels are what they say."""

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.statistics import compare_paired, holm
from analysis.unpaired import compare_unpaired


def losses(arms: int, n: int, repeats: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`(repeats, arms, n)`: what a seed does to all arms, and a smaller part of each arm's own."""
    return 3.3 + rng.normal(0, 0.01, (repeats, 1, n)) + rng.normal(0, 0.003, (repeats, arms, n))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_95_per_cent_intervals_cover_the_truth_in_94_to_96(n: int) -> None:
    """Of 4,000 repeats; a binomial error is 0.34 %."""
    repeats, effect, covered = 4_000, -0.06, 0
    for base, candidate in losses(2, n, repeats, np.random.default_rng(20260102 + n)).tolist():
        found = compare_paired(dict(enumerate(value + effect for value in candidate)), dict(enumerate(base)))
        assert found is not None
        assert found.difference_interval is not None
        covered += found.difference_interval[0] <= effect <= found.difference_interval[1]
    assert 0.94 < covered / repeats < 0.96


@pytest.mark.parametrize("n", [3, 5])
def test_welchs_intervals_cover_the_truth_in_95_at_least(n: int) -> None:
    """Arms of unlike spread; of few runs Welch's interval is a little too wide."""
    repeats, covered, rng = 2_000, 0, np.random.default_rng(20260103 + n)
    for a, b in zip(
        rng.normal(0, 0.01, (repeats, n)).tolist(), rng.normal(0, 0.003, (repeats, n)).tolist(), strict=True
    ):
        found = compare_unpaired([3.3 + value for value in a], [3.3 + value for value in b])
        assert found is not None
        assert found.difference_interval is not None
        covered += found.difference_interval[0] <= 0 <= found.difference_interval[1]
    assert 0.94 < covered / repeats < 0.975


@pytest.mark.parametrize("n", [3, 5])
def test_of_ten_null_arms_one_is_resolved_in_5_per_cent_at_most(n: int) -> None:
    """The arms share one baseline, so their tests correlate, and Holm stays below its level."""
    repeats, wrong = 1_500, 0
    for base, *arms in losses(11, n, repeats, np.random.default_rng(20260104 + n)).tolist():
        found = [compare_paired(dict(enumerate(arm)), dict(enumerate(base))) for arm in arms]
        adjusted = holm([pair.p_value if pair else None for pair in found])
        wrong += min(p for p in adjusted if p is not None) < 0.05
    assert 0.01 < wrong / repeats <= 0.055
