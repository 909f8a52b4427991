"""Comparisons against answers worked by hand, or from scipy's own tests."""

import math
from statistics import fmean

import numpy as np
import pytest
from scipy import stats
from support.analysis_fixtures import FINAL_LOSS

from analysis.additive import contrasts_to, fit, spread_ratio
from analysis.statistics import Goal, compare_paired, holm, mean_interval, seeds_to_resolve, t_quantile
from analysis.unpaired import compare_unpaired

MUON, ADAMW = FINAL_LOSS["muon"], FINAL_LOSS["adamw"]


def test_compare_paired_gives_the_known_answer_on_six_runs() -> None:
    found = compare_paired(MUON, ADAMW)
    assert found is not None
    assert (found.seeds, found.n, found.better) == ((42, 137, 256), 3, 3)
    assert round(found.difference, 4) == -0.0644
    assert round(found.percent, 2) == -1.92


def test_compare_paired_equals_scipy_on_the_same_pairs() -> None:
    found = compare_paired(MUON, ADAMW)
    assert found is not None
    candidate, base = [MUON[s] for s in sorted(MUON)], [ADAMW[s] for s in sorted(MUON)]
    oracle = stats.ttest_rel(candidate, base)
    interval = oracle.confidence_interval(0.95)
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.difference_interval == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.correlation == pytest.approx(stats.pearsonr(candidate, base).statistic, rel=1e-9)


def test_compare_paired_by_hand() -> None:
    """Differences 2 and 6: mean 4, deviation sqrt 8, half width 12.7062 sqrt 8 / sqrt 2; the baseline's mean is 2."""
    found = compare_paired({1: 4.0, 2: 8.0}, {1: 2.0, 2: 2.0}, goal="max")
    assert found is not None
    assert (found.difference, found.percent) == (4.0, 200.0)
    assert found.sd == pytest.approx(math.sqrt(8))
    half = 12.706204736 * 2
    assert found.difference_interval == pytest.approx((4 - half, 4 + half))
    assert found.percent_interval == pytest.approx((50 * (4 - half), 50 * (4 + half)))
    assert (found.better, found.correlation) == (2, None)
    assert found.p_value == pytest.approx(
        0.2951672, abs=1e-6
    )  # 2 (1/2 - atan(2) / pi): t = 2 with one degree of freedom


@pytest.mark.parametrize("effect", [0.95, 1.0, 1.05])
def test_interval_percent_and_p_never_contradict_each_other(effect: float) -> None:
    """Differences whose t is about the quantile: of log ratios one interval in a hundred would say otherwise."""
    rng, edge = np.random.default_rng(20260104), []
    for _ in range(400):
        noise = rng.normal(0, 0.05, 3)
        noise += (effect * t_quantile(2) * noise.std(ddof=1) / math.sqrt(3)) * (1 + rng.normal(0, 0.003)) - noise.mean()
        base = rng.uniform(0.5, 4, 3)
        for found in (
            compare_paired(dict(enumerate(base + noise)), dict(enumerate(base))),
            compare_unpaired(list(base + noise), list(base)),
        ):
            assert found is not None
            assert found.difference_interval is not None
            assert found.percent_interval is not None
            assert found.p_value is not None
            shown = [low <= 0 <= high for low, high in (found.difference_interval, found.percent_interval)]
            assert shown == [found.p_value >= 0.05] * 2
            assert np.sign(found.percent) == np.sign(found.difference)
            edge.append(shown[0])
    assert {True, False} <= set(edge) or effect != 1.0


def test_compare_paired_uses_only_the_seeds_both_have() -> None:
    found = compare_paired({1: 2.0, 2: 3.0, 9: 50.0}, {1: 1.0, 2: 1.0, 7: 0.1})
    assert found is not None
    assert (found.seeds, found.difference) == ((1, 2), 1.5)
    assert (found.mean, found.baseline_mean) == (2.5, 1.0)


def test_compare_paired_of_one_seed_has_no_interval() -> None:
    found = compare_paired({1: 2.0}, {1: 4.0})
    assert found is not None
    assert (found.difference, found.percent, found.better, found.n) == (-2.0, -50.0, 1, 1)
    assert (found.difference_interval, found.percent_interval) == (None, None)
    assert (found.p_value, found.sd, found.correlation) == (None, None, None)


def test_compare_paired_without_common_seeds_is_none() -> None:
    assert compare_paired({1: 2.0}, {2: 4.0}) is None


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_compare_paired_refuses_what_has_no_percent(value: float) -> None:
    with pytest.raises(ValueError, match="not positive and finite; leave out runs that diverged"):
        compare_paired({1: value}, {1: 1.0})


def test_equal_runs_are_no_evidence() -> None:
    found = compare_paired(MUON, MUON)
    assert found is not None
    assert (found.difference, found.p_value, found.better, found.is_identical) == (0.0, 1.0, 0, True)
    assert found.difference_interval == (0.0, 0.0)


@pytest.mark.parametrize("goal", ["min", "max"])
def test_differences_that_cancel_are_not_equal_runs(goal: Goal) -> None:
    found = compare_paired({1: 2.0, 2: 1.0}, {1: 1.0, 2: 2.0}, goal)
    assert found is not None
    assert (found.difference, found.is_identical) == (0.0, False)


def test_a_constant_difference_has_p_0() -> None:
    found = compare_paired({1: 2.0, 2: 3.0, 3: 5.0}, {1: 1.0, 2: 2.0, 3: 4.0})
    assert found is not None
    assert (found.p_value, found.sd) == (0.0, 0.0)
    assert found.correlation == pytest.approx(1.0)


def test_mean_interval_needs_two_values() -> None:
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, each at least the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_holm_leaves_out_what_was_not_tested_and_stops_at_1() -> None:
    assert holm([None, 0.7, None, 0.6]) == [None, 1.0, None, 1.0]
    assert holm([]) == []


def test_t_quantile_is_the_table_value() -> None:
    assert t_quantile(2) == pytest.approx(4.302652730)
    assert t_quantile(9, 0.9) == pytest.approx(1.833112933)


@pytest.mark.parametrize("num_tests", [1, 4])
def test_seeds_to_resolve_is_the_first_n_that_suffices(num_tests: int) -> None:
    n = seeds_to_resolve(1.0, -0.5, num_tests)
    assert n is not None
    half = {k: stats.t.ppf(1 - 0.025 / num_tests, k - 1) / math.sqrt(k) for k in (n - 1, n)}
    assert half[n] <= 0.5 < half[n - 1]


def test_seeds_to_resolve_is_none_where_no_number_will_do() -> None:
    assert seeds_to_resolve(sd=1.0, effect=0.001) is None
    assert seeds_to_resolve(sd=0.0, effect=0.0) is None
    assert seeds_to_resolve(sd=0.0, effect=0.001) == 2


def test_seeds_to_resolve_gives_about_even_odds() -> None:
    """Fresh seeds of a true effect that large: a paired test of so many resolves it in half of the repeats."""
    n, rng = seeds_to_resolve(1.0, 0.6), np.random.default_rng(20260103)
    assert n is not None
    p_values = stats.ttest_1samp(rng.normal(0.6, 1.0, (4000, n)), 0, axis=1).pvalue
    assert 0.45 < (p_values < 0.05).mean() < 0.6


def test_additive_model_of_two_arms_is_the_paired_test() -> None:
    model, paired = contrasts_to("adamw", {"adamw": ADAMW, "muon": MUON})["muon"], compare_paired(MUON, ADAMW)
    assert paired is not None
    assert model.df == 2
    assert model.difference == pytest.approx(paired.difference)
    assert model.interval == pytest.approx(paired.difference_interval)
    assert model.p_value == pytest.approx(paired.p_value)


def test_additive_model_of_complete_seeds_is_the_textbook_formula() -> None:
    rng, arms, n = np.random.default_rng(1), ("base", "b", "c", "d"), 3
    y = rng.normal(1.0, 0.1, (len(arms), n))
    found = contrasts_to("base", {arm: dict(enumerate(row)) for arm, row in zip(arms, y, strict=True)})
    residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    df = (len(arms) - 1) * (n - 1)
    error = math.sqrt((residual**2).sum() / df * 2 / n)
    for i, arm in enumerate(arms[1:], start=1):
        contrast, effect = found[arm], y[i].mean() - y[0].mean()
        half = stats.t.ppf(0.975, df) * error
        assert (contrast.df, contrast.difference) == (df, pytest.approx(effect))
        assert contrast.interval == pytest.approx((effect - half, effect + half))


def test_additive_model_recovers_additive_effects_with_missing_runs() -> None:
    arm, seed = {"base": 1.0, "b": 1.1, "c": 0.8}, {1: 0.0, 2: 0.3, 3: -0.2}
    full = {a: {s: x + y for s, y in seed.items()} for a, x in arm.items()}
    del full["b"][1], full["c"][3]
    found = contrasts_to("base", full)
    assert found["b"].difference == pytest.approx(0.1)
    assert found["c"].difference == pytest.approx(-0.2)
    assert found["b"].df == 7 - 3 - 3 + 1


def test_a_contrast_of_several_arms_is_the_sum_of_theirs() -> None:
    """The mean of two arms minus that of two others, by hand: an error of s sqrt(1/3) at three seeds."""
    rng, arms, n = np.random.default_rng(2), ("a", "b", "c", "d"), 3
    y = rng.normal(1.0, 0.1, (len(arms), n))
    model = fit({arm: dict(enumerate(row)) for arm, row in zip(arms, y, strict=True)})
    assert model is not None
    found = model.contrast({"a": -0.5, "b": -0.5, "c": 0.5, "d": 0.5})
    residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    error = math.sqrt((residual**2).sum() / 6 * (4 * 0.25) / n)
    assert found.difference == pytest.approx(y[2:].mean() - y[:2].mean())
    assert found.interval[1] - found.difference == pytest.approx(stats.t.ppf(0.975, 6) * error)


def test_additive_model_without_degrees_of_freedom_or_common_seeds_is_empty() -> None:
    assert contrasts_to("base", {"base": {1: 1.0}, "b": {1: 2.0}}) == {}
    assert contrasts_to("base", {"base": {1: 1.0, 2: 1.1}, "b": {3: 2.0, 4: 2.2}}) == {}
    assert contrasts_to("base", {"base": {}}) == {}


def test_spread_ratio_is_largest_over_smallest() -> None:
    assert spread_ratio({"a": {1: 0.0, 2: 2.0}, "b": {1: 0.0, 2: 8.0}, "c": {1: 5.0}}) == pytest.approx(4.0)
    assert spread_ratio({"a": {1: 0.0, 2: 2.0}}) is None
    assert spread_ratio({"a": {1: 1.0, 2: 1.0}, "b": {1: 0.0, 2: 8.0}}) == math.inf


def test_the_mean_difference_is_the_difference_of_means() -> None:
    found = compare_paired(MUON, ADAMW)
    assert found is not None
    assert found.difference == pytest.approx(fmean(MUON.values()) - fmean(ADAMW.values()))
