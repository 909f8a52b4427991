"""TOST of arms that are not resolved, at a gate's margin, and verdicts that hang by a hair or by one seed."""

import math
from pathlib import Path

import pytest
from scipy import stats
from test_gates import CLOSE, MEASURED, SANE, SIGNAL, near, summary_of
from test_gates import runs_of as runs

from analysis.hair import deciding_seed
from analysis.summary import Summary
from analysis.verdicts import sentence

BASE = {seed: 3.3 + 0.01 * seed for seed in range(4)}


def said(summary: Summary, name: str) -> str:
    return next(sentence(arm, summary) for arm in summary.arms if arm.arm == name)


def test_tost_is_that_of_scipy_and_is_told_where_nothing_is_resolved(tmp_path: Path) -> None:
    shares = (0.002, -0.001, 0.0015, -0.001)
    summary = summary_of(tmp_path, runs({"noise": near(BASE, *shares), "adamw": BASE}), SANE, CLOSE | {"margin": "1%"})
    (test,) = summary.equivalences
    ratios = [math.log1p(share) for share in shares]
    p = max(
        stats.ttest_1samp(ratios, math.log(1.01), alternative="less").pvalue,
        stats.ttest_1samp(ratios, math.log(0.99), alternative="greater").pvalue,
    )
    assert (test.gate, test.margin, test.tests) == ("close", "1%", 1)  # of an equivalent gate, before all others
    assert test.p_value == pytest.approx(p)
    assert test.is_shown
    assert f"which contains 0; equivalent within 1 %, TOST p = {p:.2g}; better in 2 of 4" in said(summary, "noise")


def test_what_is_not_shown_is_said_and_nothing_of_what_is_resolved(tmp_path: Path) -> None:
    losses = {"noise": near(BASE, 0.02, -0.01, 0.015, -0.01), "muon": near(BASE, *[-0.1] * 3, -0.11), "adamw": BASE}
    summary = summary_of(tmp_path, runs(losses), SIGNAL)
    assert [test.tests for test in summary.equivalences] == [2, 2]
    assert "which contains 0; not shown to be equivalent within 1 %, TOST p = " in said(summary, "noise")
    assert "TOST" not in said(summary, "muon")


def test_a_margin_in_the_metrics_unit_is_tested_on_differences(tmp_path: Path) -> None:
    wobble = (0.002, -0.001, 0.0015, -0.001)
    noise = {seed: loss + more for (seed, loss), more in zip(BASE.items(), wobble, strict=True)}
    summary = summary_of(tmp_path, runs({"noise": noise, "adamw": BASE}), SANE | {"margin": 0.01})
    p = stats.ttest_1samp(wobble, 0.01, alternative="less").pvalue
    assert summary.equivalences[0].p_value == pytest.approx(p)
    assert "equivalent within 0.01 nats, TOST p" in said(summary, "noise")


def test_without_a_margin_a_pair_or_all_its_seeds_there_is_no_test(tmp_path: Path) -> None:
    assert summary_of(tmp_path / "a", runs(MEASURED), SIGNAL | {"min_effect": None}).equivalences == ()
    one_seed = {name: {42: losses[42]} for name, losses in MEASURED.items()}
    assert summary_of(tmp_path / "b", runs(one_seed), CLOSE).equivalences == ()
    lost = runs(MEASURED)
    lost[0].status = "diverged"
    assert summary_of(tmp_path / "c", lost, CLOSE).equivalences == ()


@pytest.mark.parametrize("p", [0.03, 0.041, 0.049, 0.051, 0.059, 0.07])
def test_a_p_near_its_level_is_a_note(tmp_path: Path, p: float) -> None:
    """Differences with that p: t is the quantile of p, at a standard deviation of 0.01."""
    wobble = (0.01, -0.01, 0.005, -0.005)
    mean = stats.t.isf(p / 2, 3) * float(stats.tstd(wobble)) / 2
    noise = {seed: loss + mean + more for (seed, loss), more in zip(BASE.items(), wobble, strict=True)}
    summary = summary_of(tmp_path, runs({"noise": noise, "adamw": BASE}))
    word = "higher" if p < 0.05 else "not resolved"
    notes = [note for note in summary.warnings if "by a hair" in note]
    assert notes == ([f"noise: {word} by a hair, p = {p:.2g} at a level of 0.05"] if 0.04 <= p <= 0.06 else [])


def test_a_gate_by_a_hair_is_a_note(tmp_path: Path) -> None:
    wobble = (0.01, -0.01, 0.005, -0.005)
    edge = 0.05 - stats.t.isf(0.045, 3) * float(stats.tstd(wobble)) / 2
    noise = {seed: loss + edge + more for (seed, loss), more in zip(BASE.items(), wobble, strict=True)}
    summary = summary_of(tmp_path, runs({"noise": noise, "adamw": BASE}), SANE | {"margin": 0.05})
    assert "gate sane: noise is PASS by a hair, p = 0.045 at a level of 0.05" in summary.warnings


@pytest.mark.parametrize(
    ("differences", "without", "seed"),
    [
        ((-0.010, -0.011, -0.012, -0.0115), [], None),
        ((-0.026, -0.009, -0.011, -0.018, -0.006), [3], 3),
        ((-0.010, -0.012, -0.016), [0, 1, 2], None),
    ],
)
def test_one_seed_decides_where_the_verdict_holds_without_each_other(
    tmp_path: Path, differences: tuple[float, ...], without: list[int], seed: int | None
) -> None:
    """`without`: the seeds whose omission leaves p at 0.05 or above, by scipy."""
    base = {place: 3.3 + 0.01 * place for place in range(len(differences))}
    noise = {place: base[place] + more for place, more in enumerate(differences)}
    rest = [[more for other, more in enumerate(differences) if other != place] for place in base]
    assert [place for place in base if stats.ttest_1samp(rest[place], 0).pvalue >= 0.05] == without
    summary = summary_of(tmp_path, runs({"noise": noise, "adamw": base}))
    arms = {arm.arm: arm for arm in summary.arms}
    assert arms["noise"].verdict == "lower"
    assert deciding_seed(arms["noise"], arms["adamw"], "min") == seed
    note = f"noise: lower by one seed, without seed {seed} it is not resolved"
    assert (note in summary.warnings) == (seed is not None)
