"""Gates: what they ask, when they pass, fail or do not tell, how often they err, and their command."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from support.analysis_fixtures import FEW, FakeRun, write_run, write_store, write_sweep

from analysis.arms import ArmSummary
from analysis.gate_texts import SHOWN, brief, headline
from analysis.gates import Gate, GateArm, GateResult, judge, parse_gates
from analysis.margins import better_and_not, inside_and_outside, region
from analysis.members import ALL_STATUSES
from analysis.report.build import write_report
from analysis.statistics import Goal, holm
from analysis.store import open_store
from analysis.summary import Summary, summarize
from analysis.verdicts import sentence
from muon_core.store.folder import Folder
from muon_core.store.ledger import Rate, new_entry, write_entry
from ray_jobs.cli.answer_text import render_summary
from ray_jobs.cli.main import main

MEASURED = {
    "muon": {42: 3.315414, 137: 3.309816, 256: 3.292683},
    "adamw": {42: 3.361041, 137: 3.366879, 256: 3.364454},
}
"""Final validation losses of six public runs, 88M parameters, 1.7B tokens: vukrosic/muon-llm-research (MIT licence)."""
SANE = {"name": "sane", "kind": "non_inferior", "of": "*", "margin": "5%"}
SIGNAL = {"name": "signal", "kind": "superior", "of": "*", "min_effect": "1%"}
CLOSE = {"name": "close", "kind": "equivalent", "of": "*", "margin": "5%"}


def runs_of(losses: Mapping[str, Mapping[int, float]]) -> list[FakeRun]:
    """AdamW is the baseline."""
    roles = {"adamw": "baseline"}
    return [
        FakeRun(name, seed, {0: 7.0, 200: loss}, "done", roles.get(name, "candidate"), name, with_layers=False)
        for name, by_seed in losses.items()
        for seed, loss in by_seed.items()
    ]


def near(base: Mapping[int, float], *shares: float) -> dict[int, float]:
    """Losses above `base` by these shares, seed by seed."""
    return {seed: loss * (1 + share) for (seed, loss), share in zip(base.items(), shares, strict=True)}


def store_of(folder: Path, runs: list[FakeRun], *gates: dict[str, Any], **options: Any) -> Folder:
    return write_store(folder, runs, spec={"version": 1, "name": "demo", "gates": list(gates)}, **options)


def summary_of(folder: Path, runs: list[FakeRun], *gates: dict[str, Any], **options: Any) -> Summary:
    return summarize(open_store(store_of(folder, runs, *gates, **options)).sweep("demo"))


def judged(folder: Path, runs: list[FakeRun], gate: dict[str, Any], **options: Any) -> GateResult:
    (found,) = summary_of(folder, runs, gate, **options).gates
    return found


def asked(losses: Mapping[str, Mapping[int, float]], gate: dict[str, Any], goal: Goal = "min") -> GateResult:
    """Of complete arms, the first against the last."""
    arms = [
        ArmSummary(
            arm=name,
            block=name,
            role="",
            optimizer=name,
            copy_of=None,
            counts=dict.fromkeys(ALL_STATUSES, 0) | {"done": len(values)},
            values=dict(values),
            unseeded=(),
            unusable=(),
            mean=None,
            sd=None,
            wall_s=None,
            errors=(),
        )
        for name, values in losses.items()
    ]
    return judge(Gate(**gate), arms, arms[-1].arm, goal=goal, unit="nats per token", costs={})


def only(found: GateResult) -> GateArm:
    (arm,) = found.arms
    return arm


def test_the_known_answer_on_six_public_runs(tmp_path: Path) -> None:
    in_nats = {"name": "nats", "kind": "superior", "of": "block:muon", "min_effect": 0.02}
    summary = summary_of(tmp_path, runs_of(MEASURED), SANE, SIGNAL, in_nats)
    sane, signal, nats = summary.gates
    assert [sentence(arm, summary) for arm in summary.arms if arm.arm == "muon"] == [
        "muon: lower than adamw: −0.0582 nats (−1.73 %), 95 % interval −0.0907 to −0.0256 nats; better in 3 of 3 "
        "seeds; p = 0.017."
    ]
    assert (sane.result, signal.result, nats.result) == ("PASS", "PASS", "PASS")
    arm = only(nats)
    assert arm.effect == pytest.approx(-0.0582, abs=5e-5)
    assert arm.interval == pytest.approx((-0.0907, -0.0256), abs=5e-5)
    assert (arm.n, nats.unit, nats.level, signal.unit) == (3, "nats per token", 0.95, "%")
    assert only(signal).effect == pytest.approx(-1.73, abs=5e-3)
    assert headline(signal) == "signal: PASS: muon must be better than adamw, by 1 % or more"
    assert brief(signal) == ["muon: PASS: −1.73 %, 95 % interval −2.69 to −0.76 %, n = 3; p = 0.017"]


def test_any_difference_is_asked_for_as_a_verdict_is(tmp_path: Path) -> None:
    """In the metric's unit, so that one arm's gate and verdict have one p and one interval."""
    summary = summary_of(tmp_path, runs_of(MEASURED), SIGNAL | {"min_effect": None})
    arm, (found,) = only(summary.gates[0]), [arm.comparison for arm in summary.arms if arm.arm == "muon"]
    assert found is not None
    assert (arm.effect, arm.interval) == (pytest.approx(found.difference), pytest.approx(found.difference_interval))
    assert (arm.adjusted_p, summary.gates[0].unit) == (pytest.approx(found.p_value), "nats per token")


@pytest.mark.parametrize("kind", ["non_inferior", "superior", "equivalent"])
def test_p_and_interval_are_those_of_scipys_t_tests(kind: str) -> None:
    gate = {"name": "g", "kind": kind, "of": "*", ("min_effect" if kind == "superior" else "margin"): "2%"}
    found = asked(MEASURED, gate)
    ratios = [math.log(MEASURED["muon"][seed] / MEASURED["adamw"][seed]) for seed in MEASURED["muon"]]
    down, up = math.log(0.98), math.log(1.02)

    def p(edge: float, side: str) -> float:
        return float(stats.ttest_1samp(ratios, edge, alternative=side).pvalue)

    expected = {
        "non_inferior": (p(up, "less"), p(up, "greater")),
        "superior": (1.0, min(1.0, p(down, "two-sided"))),  # an estimate of 1.7 % is below 2 %
        "equivalent": (max(p(up, "less"), p(down, "greater")), None),
    }[kind]
    arm = only(found)
    assert arm.adjusted_p == pytest.approx(expected[0])
    assert expected[1] is None or arm.adjusted_p_against == pytest.approx(expected[1])
    low, high = stats.t.interval(found.level, 2, np.mean(ratios), stats.sem(ratios))
    assert arm.interval == pytest.approx((100 * math.expm1(low), 100 * math.expm1(high)))
    assert found.level == (0.95 if kind == "superior" else 0.9)


@pytest.mark.parametrize(
    ("kind", "size", "goal", "expected"),
    [
        ("non_inferior", "5%", "min", (-math.inf, math.log(1.05))),
        ("non_inferior", "5%", "max", (math.log(0.95), math.inf)),
        ("non_inferior", 0.1, "min", (-math.inf, 0.1)),
        ("superior", "1%", "min", (-math.inf, math.log(0.99))),
        ("superior", 0.1, "max", (0.1, math.inf)),
        ("superior", None, "min", (-math.inf, 0.0)),
        ("equivalent", "2.5e-1%", "max", (math.log(0.9975), math.log(1.0025))),
    ],
)
def test_a_region_is_what_the_gate_says(
    kind: str, size: float | str | None, goal: Any, expected: tuple[float, float]
) -> None:
    assert region(kind, size, goal) == pytest.approx(expected)


def test_nothing_is_better_by_all_of_it_and_nothing_is_too_bad_for_that() -> None:
    assert asked(MEASURED, SIGNAL | {"min_effect": "100%"}).result == "FAIL"
    lax = SANE | {"margin": "150%"}
    accuracies = {"muon": {1: 0.1, 2: 0.11, 3: 0.12}, "adamw": {1: 0.4, 2: 0.41, 3: 0.4}}
    assert asked(accuracies, lax, "max").result == "PASS"


@pytest.mark.parametrize(
    ("gate", "shares", "result"),
    [
        (SANE, (0.01, 0.012, 0.011), "PASS"),
        (SANE, (-0.2, -0.21, -0.2), "PASS"),
        (SANE, (0.08, 0.081, 0.079), "FAIL"),
        (SANE, (0.03, 0.07, 0.01), "INCONCLUSIVE"),
        (CLOSE, (0.01, 0.012, 0.011), "PASS"),
        (CLOSE, (-0.2, -0.21, -0.2), "FAIL"),
        (CLOSE, (0.08, 0.081, 0.079), "FAIL"),
        (CLOSE, (-0.03, -0.07, -0.01), "INCONCLUSIVE"),
        (SIGNAL, (-0.02, -0.021, -0.02), "PASS"),
        (SIGNAL, (-0.02, -0.08, -0.01), "INCONCLUSIVE"),  # large enough, and not resolved
        (SIGNAL, (-0.005, -0.0051, -0.0049), "FAIL"),  # resolved, and not large enough
        (SIGNAL, (0.02, 0.021, 0.02), "FAIL"),
        (SIGNAL | {"min_effect": None}, (-0.005, -0.0051, -0.0049), "PASS"),
        (SIGNAL | {"min_effect": None}, (0.005, 0.0051, 0.0049), "FAIL"),
        (SIGNAL | {"min_effect": None}, (0.0, 0.0, 0.0), "INCONCLUSIVE"),
        (SANE, (0.0, 0.0, 0.0), "PASS"),
        (SANE | {"margin": 0.1}, (0.01, 0.012, 0.011), "PASS"),
    ],
)
def test_each_kind_passes_fails_and_leaves_open(gate: dict[str, Any], shares: tuple[float, ...], result: str) -> None:
    base = MEASURED["adamw"]
    found = asked({"muon": near(base, *shares), "adamw": base}, gate)
    assert (found.result, only(found).result) == (result, result)


def test_higher_is_better_where_the_goal_is_max(tmp_path: Path) -> None:
    accuracies = {"muon": {1: 0.44, 2: 0.45, 3: 0.441}, "adamw": {1: 0.40, 2: 0.41, 3: 0.40}}
    found = summary_of(tmp_path, runs_of(accuracies), SANE, SIGNAL, metrics={"goal": "max"}).gates
    assert [gate.result for gate in found] == ["PASS", "PASS"]
    swapped = dict(reversed(accuracies.items()))
    assert [asked(swapped, gate, "max").result for gate in (SANE, SIGNAL)] == ["FAIL", "FAIL"]


@pytest.mark.parametrize(("status", "told"), [("diverged", "1 diverged"), ("failed", "1 failed"), ("nan", "1 done")])
def test_a_lost_seed_fails_what_the_arm_must_not_be_worse_in(tmp_path: Path, status: str, told: str) -> None:
    base = MEASURED["adamw"]
    runs = runs_of({"muon": near(base, -0.03, -0.03, -0.031), "adamw": base})
    if status == "nan":
        runs[0].val[200] = math.nan
    else:
        runs[0].status = status
    arms = [only(found) for found in summary_of(tmp_path, runs, SANE, CLOSE, SIGNAL).gates]
    assert [arm.result for arm in arms] == ["FAIL", "FAIL", "INCONCLUSIVE"]
    for arm in arms:
        assert (arm.n, arm.adjusted_p, arm.seeds) == (2, None, None)
        assert arm.reason.startswith(f"of 3 seeds {told}")


@pytest.mark.parametrize(
    ("index", "change", "reason"),
    [
        (3, {"status": "failed"}, "of 3 seeds of adamw 1 failed; those left are survivors"),
        (0, {"status": None}, "of 3 seeds of muon 1 running"),
        (3, {"status": "stopped"}, "of 3 seeds of adamw 1 stopped"),
        (
            0,
            {"status": "stopped", "facts": {"error": "early stopping: rung 2"}},
            "of 3 seeds of muon 1 stopped early; those left are survivors",
        ),
        (0, {"facts": {"init_hash": "init137"}}, "invalid: seeds 42, 137 of muon have the same initial weights"),
    ],
)
def test_what_is_not_complete_is_not_decided(tmp_path: Path, index: int, change: dict[str, Any], reason: str) -> None:
    runs = runs_of(MEASURED)
    runs[index] = replace(runs[index], **change)
    for found in summary_of(tmp_path, runs, SANE, SIGNAL).gates:
        arm = only(found)
        assert (found.result, arm.result, arm.adjusted_p) == ("INCONCLUSIVE", "INCONCLUSIVE", None)
        assert arm.reason.startswith(reason)
        assert arm.effect is not None


def test_one_seed_and_no_common_seed_tell_nothing(tmp_path: Path) -> None:
    one = only(judged(tmp_path / "one", [run for run in runs_of(MEASURED) if run.seed == 42], SANE))
    assert (one.result, one.reason, one.n, one.interval) == ("INCONCLUSIVE", "one seed gives no interval", 1, None)
    assert one.effect == pytest.approx(100 * (3.315414 / 3.361041 - 1))
    none = only(judged(tmp_path / "none", runs_of({"muon": {1: 3.3, 2: 3.3}, "adamw": {3: 3.3, 4: 3.4}}), SANE))
    assert (none.result, none.reason, none.n) == ("INCONCLUSIVE", "shares no finished seed with adamw", 0)


def test_every_arm_must_be_no_worse_and_one_superior_is_enough(tmp_path: Path) -> None:
    base = MEASURED["adamw"]
    better, worse = near(base, -0.02, -0.0201, -0.02), near(base, 0.08, 0.0801, 0.08)
    both = runs_of({"adamw": base, "muon": better, "lion": worse})
    sane, signal = summary_of(tmp_path, both, SANE, SIGNAL).gates
    assert [[arm.result for arm in found.arms] for found in (sane, signal)] == [["PASS", "FAIL"]] * 2
    assert (sane.result, signal.result) == ("FAIL", "PASS")
    assert headline(sane) == "sane: FAIL: every arm must be less than 5 % worse than adamw; 1 of 2 pass, 1 fail"
    assert headline(signal) == (
        "signal: PASS: one arm at least must be better than adamw, by 1 % or more; 1 of 2 pass, 1 fail; "
        "the best of several is partly the luckiest, so confirm it on fresh seeds"
    )
    assert brief(sane)[0].startswith("lion: FAIL: +8.00 %")
    assert "; against it p < 0.0001, Holm over 2 arms" in brief(sane)[0]
    assert brief(signal)[0].startswith("muon: PASS: −2.00 %")
    assert asked({"muon": worse, "lion": worse, "adamw": base}, SIGNAL).result == "FAIL"


def test_p_is_adjusted_for_the_arms_of_the_gate_alone(tmp_path: Path) -> None:
    """Muon alone has p 0.017; beside three arms in its gate Holm takes four times that."""
    rest = {name: near(MEASURED["adamw"], 0.001, -0.002, 0.002) for name in ("x", "y", "z")}
    runs = runs_of(MEASURED | rest)
    own, every = summary_of(tmp_path, runs, SIGNAL | {"of": "block:muon"}, SIGNAL).gates
    p = only(own).adjusted_p
    assert p == pytest.approx(0.01674, abs=1e-5)
    assert (own.tests, own.result, every.tests, every.result) == (1, "PASS", 4, "INCONCLUSIVE")
    assert every.arms[0].adjusted_p == pytest.approx(4 * p)
    assert len(brief(every)) == SHOWN + 1
    assert brief(every)[-1] == "and 1 arm more"


def test_arms_that_are_still_to_come_count_as_tests(tmp_path: Path) -> None:
    runs = runs_of(MEASURED | {"x": near(MEASURED["adamw"], -0.1, -0.1, -0.101)})
    runs[-1].status = None
    muon, x = judged(tmp_path, runs, SIGNAL).arms
    assert muon.adjusted_p == pytest.approx(2 * 0.01674, abs=1e-5)
    assert (x.arm, x.adjusted_p) == ("x", None)
    searching = judged(tmp_path / "b", runs_of(MEASURED), SANE, to_choose=3)
    assert (searching.result, searching.tests, only(searching).result) == ("INCONCLUSIVE", 4, "PASS")
    assert headline(searching).endswith("1 of 1 pass, 0 fail, 3 to be chosen yet")


def test_arms_of_equal_runs_and_of_those_compared_with_are_asked_once_and_not_at_all(tmp_path: Path) -> None:
    storage = store_of(tmp_path, runs_of(MEASURED), SANE)

    def listed(block: str, role: str, name: str) -> list[dict[str, str]]:
        return [
            {"run_id": run.run_id, "block": block, "role": role, "arm": name}
            for run in runs_of(MEASURED)
            if run.optimizer == name
        ]

    rows = [listed("base", "baseline", "adamw"), listed("a", "candidate", "muon"), listed("b", "candidate", "muon")]
    rows.append(listed("copy", "control", "adamw"))
    gates = [SANE, SANE | {"name": "copy", "of": "block:copy"}, SANE | {"name": "back", "vs": "block:a"}]
    spec = {"version": 1, "name": "demo", "gates": gates}
    write_sweep(storage, "demo", [row for block in rows for row in block], number=2, spec=spec)
    sane, copy, back = summarize(open_store(tmp_path).sweep("demo")).gates
    assert [arm.arm for arm in sane.arms] == ["a: muon"]
    assert (sane.vs, sane.tests) == ("base: adamw", 1)
    assert (copy.arms, copy.result) == ((), "INCONCLUSIVE")
    assert headline(copy) == (
        "copy: INCONCLUSIVE: some arm must be less than 5 % worse than base: adamw, and the sweep lists none to ask"
    )
    assert ([arm.arm for arm in back.arms], back.vs) == (["base: adamw"], "a: muon")
    assert only(back).effect == pytest.approx(1.76, abs=5e-3)


def test_an_open_gate_says_the_seeds_and_costs_that_would_settle_it(tmp_path: Path) -> None:
    """Seeds by scipy's quantile; a seed of muon took half an hour of two GPUs, one of adamw twice that."""
    gate = SIGNAL | {"min_effect": "0.1%"}
    losses = {"muon": near(MEASURED["adamw"], -0.010, -0.001, -0.004), "adamw": MEASURED["adamw"]}
    storage = store_of(tmp_path, runs_of(losses), gate)
    for run in runs_of(losses):
        entry = new_entry(run.run_id, "00001.ab", Rate("big", 4.0, gpus=2.0))
        write_entry(storage, replace(entry, status="done", seconds=1800.0 if run.optimizer == "muon" else 3600.0))
    (found,) = summarize(open_store(tmp_path).sweep("demo")).gates
    arm = only(found)
    ratios = np.log([losses["muon"][seed] / losses["adamw"][seed] for seed in losses["muon"]])
    n = arm.seeds
    assert (found.result, arm.reason) == ("INCONCLUSIVE", "")
    assert n is not None
    half = [stats.t.ppf(0.975, k - 1) * ratios.std(ddof=1) / k**0.5 for k in (n - 1, n)]
    assert half[1] <= abs(ratios.mean()) < half[0]
    assert (arm.gpu_hours, arm.usd) == (pytest.approx(n * 3.0), pytest.approx(n * 6.0))
    assert brief(found)[0].endswith(
        f"; {n} fresh seeds of both arms ({3 * n} GPU hours and {6 * n} USD) have about even odds to settle it"
    )


def test_seeds_that_would_settle_a_margin_are_those_of_its_one_sided_level() -> None:
    base = MEASURED["adamw"]
    arm = only(asked({"muon": near(base, 0.03, 0.07, 0.01), "adamw": base}, SANE))
    ratios = np.log1p([0.03, 0.07, 0.01])
    n = arm.seeds
    assert n is not None
    half = [stats.t.ppf(0.95, k - 1) * ratios.std(ddof=1) / k**0.5 for k in (n - 1, n)]
    assert half[1] <= math.log(1.05) - ratios.mean() < half[0]
    assert (arm.gpu_hours, arm.usd) == (None, None)  # the ledger knows none of these runs


REPEATS = 100_000
CHANCE = 4 * math.sqrt(0.05 * 0.95 / REPEATS)


def draws(n: int, mean: float, repeats: int = REPEATS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and standard errors of `n` pairs that scatter by 0.01 around `mean`."""
    pairs = np.random.default_rng(n).normal(mean, 0.01, (n, repeats))
    return pairs.mean(0), pairs.std(0, ddof=1) / math.sqrt(n)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_at_its_edge_a_margin_passes_and_fails_falsely_in_5_per_cent(n: int) -> None:
    for kind in ("non_inferior", "equivalent"):
        where = region(kind, "10%", "min")
        outside, inside = inside_and_outside(where, *draws(n, where[1]), n - 1)
        assert np.mean(inside < 0.05) == pytest.approx(0.05, abs=CHANCE), kind
        assert np.mean(outside < 0.05) == pytest.approx(0.05, abs=CHANCE), kind


@pytest.mark.parametrize("share", ["0.001%", "0.5%", "1%"])
def test_a_narrow_equivalence_errs_in_no_more(share: str) -> None:
    """Of a spread of 1 %: a region as narrow as its error hardly ever passes, and fails in 5 % at the most."""
    where = region("equivalent", share, "min")
    outside, inside = inside_and_outside(where, *draws(3, where[1]), 2)
    assert np.mean(inside < 0.05) < 0.05 + CHANCE
    assert np.mean(outside < 0.05) < 0.05 + CHANCE


@pytest.mark.parametrize("n", [3, 5])
def test_superior_errs_as_a_two_sided_test_does(n: int) -> None:
    """Without a difference, better in half of 5 %; of the size that counts, denied as often, at any size."""
    for share in (None, "1%"):
        where = region("superior", share, "min")
        better, _ = better_and_not(where, *draws(n, 0.0), n - 1)
        _, denied = better_and_not(where, *draws(n, where[1]), n - 1)
        assert np.mean(denied < 0.05) == pytest.approx(0.025, abs=CHANCE)
        if share is None:
            assert np.mean(better < 0.05) == pytest.approx(0.025, abs=CHANCE)
        assert np.mean(better < 0.05) < 0.025 + CHANCE


@pytest.mark.parametrize("n", [3, 5])
def test_of_ten_arms_at_the_edge_one_passes_or_fails_falsely_in_5_per_cent_at_most(n: int) -> None:
    """The arms share the seeds of one baseline, so their differences correlate."""
    repeats, edge = 5_000, region("non_inferior", "5%", "min")
    normal = np.random.default_rng(n).normal(0, 0.01, (11, n, repeats))
    pairs = edge[1] + normal[1:] - normal[0]
    both = inside_and_outside(edge, pairs.mean(1), pairs.std(1, ddof=1) / math.sqrt(n), n - 1)
    for p in both:
        first = [min(q for q in holm(row) if q is not None) for row in p.T.tolist()]
        assert 0.01 < np.mean(np.array(first) < 0.05) < 0.055


def test_gates_of_a_newer_release_are_refused_in_a_line() -> None:
    assert parse_gates({"imported": True}) == ()
    for change in ({"kind": "bayesian"}, {"prior": 3}):
        with pytest.raises(ValueError, match=r"gate 'sane' has '(bayesian|prior)', which a newer release wrote"):
            parse_gates({"gates": [SANE | change]})


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([*words])
    return stop.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("margins", "code"), [(("5%",), 0), (("5%", 1e-9), 5), (("5%", 1e-9, "1%"), 4)], ids=["pass", "open", "fail"]
)
def test_the_exit_code_is_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], margins: tuple[Any, ...], code: int
) -> None:
    """Lion is 2 % worse: within 5 %, not within 1 %. That muon is not worse by 1e-9 nats is open."""
    base = {1: 3.0, 2: 3.1, 3: 3.05}
    losses = {"adamw": base, "muon": near(base, 0.001, -0.001, 0.0), "lion": near(base, 0.02, 0.021, 0.02)}
    blocks = ("lion", "muon", "lion")
    gates = [
        SANE | {"name": f"g{i}", "of": f"block:{block}", "margin": margin}
        for i, (block, margin) in enumerate(zip(blocks, margins, strict=False))
    ]
    store_of(tmp_path, runs_of(losses), *gates)
    words = ("gates", "demo", "--store", str(tmp_path))
    got, out, err = called(capsys, *words)
    assert got == code
    assert out.startswith(
        "g0: PASS: lion must be less than 5 % worse than adamw\n  lion: PASS: +2.03 %, 90 % interval "
    )
    assert err.startswith("next: muon report demo -o report --store ")
    got, out, _ = called(capsys, *words, "--json")
    answer = json.loads(out)
    assert (got, answer["result"]) == (code, {0: "PASS", 4: "FAIL", 5: "INCONCLUSIVE"}[code])
    assert [gate["gate"]["name"] for gate in answer["gates"]] == [gate["name"] for gate in gates]
    arm = answer["gates"][0]["arms"][0]
    assert {"n", "effect", "interval", "adjusted_p", "seeds", "gpu_hours", "usd"} <= arm.keys()


def test_a_sweep_without_gates_has_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_of(tmp_path, runs_of(MEASURED))
    code, out, err = called(capsys, "gates", "demo", "--store", str(tmp_path))
    assert (code, out) == (2, "")
    assert err == "muon: sweep 'demo' has no gates; write `gates:` into its file and run it again\n"


def test_answer_and_report_have_the_gates(tmp_path: Path) -> None:
    storage = store_of(tmp_path / "store", runs_of(MEASURED), SANE, SIGNAL)
    write_run(storage, FakeRun("muon", 7, {0: 7.0, 200: 3.3}))
    view = open_store(storage).sweep("demo")
    summary = summarize(view)
    answer = render_summary(summary, 100)
    assert answer.split("\n\n")[-1].splitlines() == [
        "gate sane: PASS: muon must be less than 5 % worse than adamw",
        "  muon: PASS: −1.73 %, 90 % interval −2.38 to −1.07 %, n = 3; p = 0.00059",
        "gate signal: PASS: muon must be better than adamw, by 1 % or more",
        "  muon: PASS: −1.73 %, 95 % interval −2.69 to −0.76 %, n = 3; p = 0.017",
    ]
    page = write_report(view, tmp_path / "report", FEW).page
    text = page.read_text()
    assert f"<strong>gate</strong> {headline(summary.gates[0])}<ul>" in text
    assert f"<li>{brief(summary.gates[1])[0]}</li>" in text
    numbers = json.loads((page.parent / "report.json").read_text())
    assert [gate["result"] for gate in numbers["gates"]] == ["PASS", "PASS"]
    assert numbers["gates"][0]["arms"][0]["effect"] == pytest.approx(-1.73, abs=5e-3)
