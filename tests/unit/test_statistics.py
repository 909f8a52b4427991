"""Comparisons against answers worked by hand, or from scipy's own tests."""

import math
from statistics import fmean

import numpy as np
import pytest
from scipy import stats
from support.analysis_fixtures import FINAL_LOSS

from analysis.statistics import (
    Goal,
    additive_model,
    compare_paired,
    holm,
    mean_interval,
    seeds_to_resolve,
    spread_ratio,
    t_quantile,
)

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
    seeds = sorted(MUON)
    candidate, base = np.log([MUON[s] for s in seeds]), np.log([ADAMW[s] for s in seeds])
    oracle = stats.ttest_rel(candidate, base)
    interval = oracle.confidence_interval(0.95)
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.log_ratio_interval == pytest.approx((interval.low, interval.high), rel=1e-9)
    nats = stats.ttest_rel([MUON[s] for s in seeds], [ADAMW[s] for s in seeds]).confidence_interval(0.95)
    assert found.difference_interval == pytest.approx((nats.low, nats.high), rel=1e-9)
    assert found.correlation == pytest.approx(stats.pearsonr(candidate, base).statistic, rel=1e-9)


def test_compare_paired_by_hand() -> None:
    """Ratios 2 and 8: mean log ln 4, deviation ln 4 / sqrt 2, half width 12.7062 ln 4 / 2."""
    found = compare_paired({1: 2.0, 2: 8.0}, {1: 1.0, 2: 1.0}, goal="max")
    assert found is not None
    assert found.log_ratio == pytest.approx(math.log(4))
    assert found.percent == pytest.approx(300)
    assert found.sd_log == pytest.approx(math.log(4) / math.sqrt(2))
    half = 12.706204736 * math.log(4) / 2
    assert found.log_ratio_interval == pytest.approx((math.log(4) - half, math.log(4) + half))
    assert found.percent_interval == pytest.approx(
        (100 * (math.exp(math.log(4) - half) - 1), 100 * (math.exp(math.log(4) + half) - 1))
    )
    assert (found.better, found.correlation) == (2, None)
    assert found.p_value == pytest.approx(
        0.2951672, abs=1e-6
    )  # 2 (1/2 - atan(2) / pi): t = 2 with one degree of freedom


def test_compare_paired_uses_only_the_seeds_both_have() -> None:
    found = compare_paired({1: 2.0, 2: 3.0, 9: 50.0}, {1: 1.0, 2: 1.0, 7: 0.1})
    assert found is not None
    assert (found.seeds, found.difference) == ((1, 2), 1.5)
    assert (found.mean, found.baseline_mean) == (2.5, 1.0)


def test_compare_paired_of_one_seed_has_no_interval() -> None:
    found = compare_paired({1: 2.0}, {1: 4.0})
    assert found is not None
    assert (found.difference, found.percent, found.better, found.n) == (-2.0, -50.0, 1, 1)
    assert (found.difference_interval, found.log_ratio_interval, found.percent_interval) == (None, None, None)
    assert (found.p_value, found.sd_log, found.correlation) == (None, None, None)


def test_compare_paired_without_common_seeds_is_none() -> None:
    assert compare_paired({1: 2.0}, {2: 4.0}) is None


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_compare_paired_refuses_what_has_no_ratio(value: float) -> None:
    with pytest.raises(ValueError, match="not positive and finite; leave out runs that diverged"):
        compare_paired({1: value}, {1: 1.0})


def test_equal_runs_are_no_evidence() -> None:
    found = compare_paired(MUON, MUON)
    assert found is not None
    assert (found.difference, found.p_value, found.better, found.is_identical) == (0.0, 1.0, 0, True)
    assert found.log_ratio_interval == (0.0, 0.0)


@pytest.mark.parametrize("goal", ["min", "max"])
def test_differences_that_cancel_are_not_equal_runs(goal: Goal) -> None:
    found = compare_paired({1: 2.0, 2: 1.0}, {1: 1.0, 2: 2.0}, goal)
    assert found is not None
    assert (found.difference, found.is_identical) == (0.0, False)


def test_a_constant_ratio_has_p_0() -> None:
    found = compare_paired({1: 2.0, 2: 4.0, 3: 8.0}, {1: 1.0, 2: 2.0, 3: 4.0})
    assert found is not None
    assert (found.p_value, found.sd_log) == (0.0, 0.0)
    assert found.correlation == pytest.approx(1.0)


def test_mean_interval_needs_two_values() -> None:
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_covers_the_truth_in_95_of_100_repeats(n: int) -> None:
    """Pairs share a common part; the true effect is −1.9 %. Within three binomial errors of 95 %."""
    repeats, effect, rng = 2000, math.log(1 - 0.019), np.random.default_rng(20260102)
    covered = 0
    for _ in range(repeats):
        shared = rng.normal(1.2, 0.004, n)
        base, candidate = np.exp(shared + rng.normal(0, 0.002, (2, n)))
        found = compare_paired(dict(enumerate(candidate * math.exp(effect))), dict(enumerate(base)))
        assert found is not None
        assert found.log_ratio_interval is not None
        covered += found.log_ratio_interval[0] <= effect <= found.log_ratio_interval[1]
    assert abs(covered / repeats - 0.95) < 3 * math.sqrt(0.95 * 0.05 / repeats)


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
    model, paired = additive_model({"adamw": ADAMW, "muon": MUON}, "adamw")["muon"], compare_paired(MUON, ADAMW)
    assert paired is not None
    assert model.df == 2
    assert model.log_ratio == pytest.approx(paired.log_ratio)
    assert model.log_ratio_interval == pytest.approx(paired.log_ratio_interval)
    assert model.p_value == pytest.approx(paired.p_value)


def test_additive_model_of_complete_seeds_is_the_textbook_formula() -> None:
    rng, arms, n = np.random.default_rng(1), ("base", "b", "c", "d"), 3
    y = rng.normal(1.0, 0.1, (len(arms), n))
    found = additive_model({arm: dict(enumerate(np.exp(row))) for arm, row in zip(arms, y, strict=True)}, "base")
    residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    df = (len(arms) - 1) * (n - 1)
    error = math.sqrt((residual**2).sum() / df * 2 / n)
    for i, arm in enumerate(arms[1:], start=1):
        contrast, effect = found[arm], y[i].mean() - y[0].mean()
        half = stats.t.ppf(0.975, df) * error
        assert (contrast.df, contrast.log_ratio) == (df, pytest.approx(effect))
        assert contrast.log_ratio_interval == pytest.approx((effect - half, effect + half))


def test_additive_model_recovers_additive_effects_with_missing_runs() -> None:
    arm, seed = {"base": 1.0, "b": 1.1, "c": 0.8}, {1: 0.0, 2: 0.3, 3: -0.2}
    full = {a: {s: math.exp(x + y) for s, y in seed.items()} for a, x in arm.items()}
    del full["b"][1], full["c"][3]
    found = additive_model(full, "base")
    assert found["b"].log_ratio == pytest.approx(0.1)
    assert found["c"].log_ratio == pytest.approx(-0.2)
    assert found["b"].df == 7 - 3 - 3 + 1


def test_additive_model_without_degrees_of_freedom_or_common_seeds_is_empty() -> None:
    assert additive_model({"base": {1: 1.0}, "b": {1: 2.0}}, "base") == {}
    assert additive_model({"base": {1: 1.0, 2: 1.1}, "b": {3: 2.0, 4: 2.2}}, "base") == {}
    assert additive_model({"base": {}}, "base") == {}


def test_spread_ratio_is_largest_over_smallest() -> None:
    assert spread_ratio({"a": {1: 0.0, 2: 2.0}, "b": {1: 0.0, 2: 8.0}, "c": {1: 5.0}}) == pytest.approx(4.0)
    assert spread_ratio({"a": {1: 0.0, 2: 2.0}}) is None
    assert spread_ratio({"a": {1: 1.0, 2: 1.0}, "b": {1: 0.0, 2: 8.0}}) == math.inf


def test_the_mean_difference_is_the_difference_of_means() -> None:
    found = compare_paired(MUON, ADAMW)
    assert found is not None
    assert found.difference == pytest.approx(fmean(MUON.values()) - fmean(ADAMW.values()))
