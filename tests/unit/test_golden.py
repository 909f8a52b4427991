"""Runs against a stored golden baseline: inside its band, outside, beyond what seeds explain; and the command."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.analysis_fixtures import STEPS, FakeRun, loss_curve, write_run, write_store, write_sweep

from analysis.bands import FEW, MANY, Check, check_points, curve_points
from analysis.golden import GoldenResult, RunResult, judge_golden, run_alone, runs_of_sweep
from analysis.golden_texts import check_line, golden_lines, run_line
from analysis.statistics import t_quantile
from analysis.store import open_store
from muon_core.store.folder import Folder
from ray_jobs.cli.main import main

GOLDEN = {1: 3.30, 2: 3.31, 3: 3.32}
"""Seed -> final loss of the golden runs, whose range is 0.02 and whose sd is 0.01."""


def run_of(seed: int, loss: float, arm: str = "muon", **options: Any) -> FakeRun:
    return FakeRun(arm, seed, loss_curve(loss), role="baseline" if arm == "muon" else "candidate", **options)


def golden_store(folder: Path, others: list[FakeRun], golden: Mapping[int, float] = GOLDEN, **options: Any) -> Folder:
    """Sweep `golden` of muon's runs, and sweep `demo` of `others`."""
    storage = write_store(folder, others)
    runs = [run_of(seed, loss, **options) for seed, loss in golden.items()]
    for run in runs:
        write_run(storage, run)
    listed = [{"run_id": r.run_id, "block": "muon", "role": "baseline", "arm": "muon", "seed": r.seed} for r in runs]
    write_sweep(storage, "golden", listed)
    return storage


def judged(storage: Folder, **margins: float) -> GoldenResult:
    store = open_store(storage)
    return judge_golden(store, runs_of_sweep(store, "demo"), runs_of_sweep(store, "golden"), **margins)


def only(found: GoldenResult) -> RunResult:
    (run,) = found.runs
    return run


def by_name(run: RunResult) -> dict[str, Check]:
    return {check.what: check for check in run.checks}


def constant(values: list[float], least: float, most: float, mean: float, sd: float | None) -> pl.DataFrame:
    """A point for each of `values`, all with the same band."""
    n = len(values)
    columns = {"step": range(n), "tokens": range(n), "projection": [None] * n, "layer": [None] * n, "value": values}
    band = {"least": [least] * n, "most": [most] * n, "mean": [mean] * n, "sd": [sd] * n}
    types = {"projection": pl.String, "layer": pl.Int32, "sd": pl.Float64}
    return pl.DataFrame(columns | band, schema_overrides=types)


def test_the_band_is_the_range_widened_by_the_margin_to_either_side() -> None:
    at = [2.969, 2.971, 3.0, 3.129, 3.131]  # 3.0 to 3.1, 1 % of a mean of 3.0 is 0.03
    check = check_points("x", constant(at, 3.0, 3.1, 3.0, 0.05), 3, 0.01)
    assert (check.points, check.outside) == (5, 2)
    assert check.first is not None
    assert (check.first.step, check.first.value) == (0, 2.969)
    assert (check.first.low, check.first.high) == pytest.approx((2.97, 3.13))


@pytest.mark.parametrize(("off", "result"), [(0.99, "INCONCLUSIVE"), (1.01, "FAIL")])
def test_a_single_point_fails_beyond_the_95_percent_prediction_interval(off: float, result: str) -> None:
    half = t_quantile(2) * math.sqrt(4 / 3) * 0.05
    check = check_points("final", constant([3.0 + off * half], 2.95, 3.05, 3.0, 0.05), 3, 0.0)
    assert check.result == result
    assert (check.outside, check.beyond) == (1, int(result == "FAIL"))


@pytest.mark.parametrize(
    ("far", "result"), [(0, "PASS"), (1, "PASS"), (2, "INCONCLUSIVE"), (3, "INCONCLUSIVE"), (4, "FAIL")]
)
def test_a_curve_fails_at_a_fifth_of_its_points_and_passes_at_a_twentieth(far: int, result: str) -> None:
    assert (MANY, FEW) == (0.2, 0.05)
    check = check_points("x", constant([9.0] * far + [3.0] * (20 - far), 2.9, 3.1, 3.0, 0.05), 3, 0.01)
    assert (check.result, check.outside, check.beyond) == (result, far, far)


@pytest.mark.parametrize(("value", "result"), [(3.02, "PASS"), (3.08, "INCONCLUSIVE"), (3.1, "FAIL")])
def test_one_run_tells_nothing_of_seeds_so_three_margins_are_assumed(value: float, result: str) -> None:
    check = check_points("final", constant([value], 3.0, 3.0, 3.0, None), 1, 0.01)
    assert (check.result, check.is_assumed) == (result, True)
    explained = {"PASS": "", "INCONCLUSIVE": "which seeds may explain", "FAIL": "beyond what is assumed of seeds"}
    assert check_line(check).endswith(explained[result])


def test_a_value_that_is_not_finite_is_beyond_everything() -> None:
    check = check_points("x", constant([math.nan, math.inf, 3.0, 3.0], 0.0, 9.0, 3.0, 100.0), 3, 1.0)
    assert (check.result, check.beyond) == ("FAIL", 2)
    assert check.first is not None
    assert check.first.value is None
    assert "not finite, band" in check_line(check)


def test_runs_like_the_baseline_fail_a_check_in_one_of_twenty_at_most() -> None:
    """Whatever their points share: 3,000 runs, whose points move together, in part, or not at all."""
    rng = np.random.default_rng(0)
    for shared in (0.0, 0.7, 1.0):
        failed = 0
        for _ in range(1000):
            together, apart = rng.normal(size=(4, 1)), rng.normal(size=(4, 30))
            x = 3 + 0.01 * (math.sqrt(shared) * together + math.sqrt(1 - shared) * apart)
            own, golden = x[0], x[1:]
            points = constant(own.tolist(), 0, 0, 0, 0).with_columns(
                least=golden.min(axis=0),
                most=golden.max(axis=0),
                mean=golden.mean(axis=0),
                sd=golden.std(axis=0, ddof=1),
            )
            failed += check_points("x", points, 3, 0.0).result == "FAIL"
        assert failed / 1000 <= 0.05


def test_curves_are_compared_at_equal_tokens_between_evaluations_too() -> None:
    own = pl.DataFrame({"step": [1, 2, 3, 4], "tokens": [50, 150, 200, 350], "value": [1.0, 2.0, 3.0, 4.0]})
    golden = pl.DataFrame(
        {
            "run_id": ["a", "a", "a", "b", "b", "b"],
            "tokens": [100, 200, 300, 100, 200, 400],
            "value": [4.0, 2.0, math.nan, 5.0, 4.0, 1.0],
        }
    )
    points = curve_points(own, golden)
    assert points["tokens"].to_list() == [150, 200]  # a is not finite at 300, and neither has begun at 50
    assert points.select("least", "most", "mean").rows() == [(3.0, 4.5, 3.75), (2.0, 4.0, 3.0)]
    assert points["sd"].to_list() == pytest.approx([1.5 / math.sqrt(2), math.sqrt(2)])
    assert curve_points(own, golden.clear()).is_empty()


def test_a_run_like_the_golden_ones_passes_all_its_checks(tmp_path: Path) -> None:
    found = judged(golden_store(tmp_path, [run_of(7, 3.315)]))
    run = only(found)
    assert (found.result, run.vs, run.seed) == ("PASS", "muon", 7)
    checks = by_name(run)
    assert list(checks) == [
        "final val_loss", "val_loss", "final val_accuracy", "val_accuracy", "effective_rank", "weight_norm"
    ]  # fmt: skip
    assert checks["val_loss"].points == len(STEPS)
    assert checks["effective_rank"].points == len(STEPS) * 4 * 6
    assert golden_lines(found) == [
        "baseline muon: range of 3 runs (seeds 1, 2, 3), widened by 1 % of val_loss and 2 % of val_accuracy, 10 % of "
        "ranks and norms"
    ]
    assert run_line(run) == "muon-s7-0badcafe: PASS: 6 of 6 checks inside the band of muon"


def test_a_run_that_is_worse_fails_and_it_is_told_where_it_leaves_the_band(tmp_path: Path) -> None:
    run = only(judged(golden_store(tmp_path, [run_of(7, 3.9)])))
    assert run.result == "FAIL"
    checks = by_name(run)
    assert (checks["final val_loss"].result, checks["val_loss"].result) == ("FAIL", "FAIL")
    assert checks["effective_rank"].result == "PASS"
    first = checks["val_loss"].first
    assert first is not None
    curve, low = loss_curve(3.9), loss_curve(3.30)
    high = loss_curve(3.32)
    mean = loss_curve(3.31)
    expected = next(step for step in STEPS if curve[step] > high[step] + 0.01 * mean[step])
    assert (first.step, first.tokens, first.value) == (expected, expected * 2048, pytest.approx(curve[expected]))
    assert first.low == pytest.approx(low[expected] - 0.01 * mean[expected], rel=1e-4)
    assert f"outside first at step {expected} ({expected * 2048:,} tokens): " in check_line(checks["val_loss"])


def test_what_seeds_may_explain_is_inconclusive(tmp_path: Path) -> None:
    spread = {1: 3.0, 2: 3.2, 3: 3.4}
    run = only(judged(golden_store(tmp_path, [run_of(7, 3.5)], spread)))
    assert run.result == "INCONCLUSIVE"
    line = check_line(by_name(run)["final val_loss"])
    assert line.endswith("which seeds may explain")
    assert only(judged(Folder(tmp_path), val_margin=0.05)).result == "PASS"


def test_ranks_that_leave_the_band_fail_with_layer_and_projection(tmp_path: Path) -> None:
    """AdamW's ranks fall with depth and time, by another formula than Muon's."""
    run = only(judged(golden_store(tmp_path, [run_of(7, 3.31, "adamw")])))
    ranks = by_name(run)["effective_rank"]
    assert ranks.result == "FAIL"
    assert ranks.first is not None
    assert (ranks.first.layer, ranks.first.projection) == (0, "down")
    assert "layer 0 of down): " in check_line(ranks)
    assert by_name(run)["val_loss"].result == "PASS"


def test_one_layer_that_is_off_keeps_a_run_from_passing() -> None:
    cells = [(step, layer) for step in range(10) for layer in range(40)]
    columns = {
        "step": [step for step, _ in cells], "tokens": [step for step, _ in cells],
        "projection": ["q"] * len(cells), "layer": pl.Series([layer for _, layer in cells], dtype=pl.Int32),
        "value": [9.0 if layer == 3 else 3.0 for _, layer in cells],
    }  # fmt: skip
    points = pl.DataFrame(columns).with_columns(least=pl.lit(2.9), most=pl.lit(3.1), mean=pl.lit(3.0), sd=pl.lit(0.1))
    check = check_points("effective_rank", points, 3, 0.1)
    assert (check.result, check.outside) == ("INCONCLUSIVE", 10)
    assert check.reason == "layer 3 of q is outside at 100 % of its steps"


@pytest.mark.parametrize(
    ("status", "result", "reason"),
    [
        ("failed", "FAIL", "it failed: RuntimeError: boom"),
        ("diverged", "FAIL", "it diverged: RuntimeError: boom"),
        (None, "INCONCLUSIVE", "it is running, and nothing is decided before its end"),
    ],
)
def test_how_a_run_ended_comes_before_its_numbers(tmp_path: Path, status: str | None, result: str, reason: str) -> None:
    run = only(judged(golden_store(tmp_path, [run_of(7, 3.31, status=status, facts={"error": "RuntimeError: boom"})])))
    assert (run.result, run.reason) == (result, reason)
    assert "final val_loss" not in by_name(run)


def test_a_run_that_nobody_began_is_not_decided(tmp_path: Path) -> None:
    storage = write_store(tmp_path, [run_of(7, 3.31)], unstarted=1)
    for seed, loss in GOLDEN.items():
        write_run(storage, run_of(seed, loss))
    write_sweep(storage, "golden", [
        {"run_id": run_of(seed, 0).run_id, "block": "m", "role": "baseline", "arm": "muon"} for seed in GOLDEN
    ])  # fmt: skip
    found = judged(storage)
    assert [run.result for run in found.runs] == ["PASS", "INCONCLUSIVE"]
    assert found.result == "INCONCLUSIVE"
    assert found.runs[1].reason.startswith("it is planned")


def test_a_golden_run_that_is_not_done_is_left_out_and_told(tmp_path: Path) -> None:
    storage = golden_store(tmp_path, [run_of(7, 3.31)])
    write_run(storage, run_of(4, 9.0, status="diverged"))
    listed = [{"run_id": run_of(s, 0).run_id, "block": "m", "role": "baseline", "arm": "muon"} for s in (*GOLDEN, 4)]
    write_sweep(storage, "golden", listed, number=2)
    found = judged(storage)
    assert golden_lines(found)[0].endswith("; 1 more not done, left out")
    assert found.result == "PASS"


def test_an_arm_is_judged_by_the_golden_arm_of_its_name_else_by_the_baseline(tmp_path: Path) -> None:
    others = [run_of(7, 3.31), run_of(7, 3.41, "adamw"), run_of(7, 3.31, "lion")]
    storage = golden_store(tmp_path, others)
    adamw = [run_of(seed, loss + 0.1, "adamw") for seed, loss in GOLDEN.items()]
    for run in adamw:
        write_run(storage, run)
    listed = [{"run_id": run_of(s, 0).run_id, "block": "m", "role": "baseline", "arm": "muon"} for s in GOLDEN]
    listed += [{"run_id": r.run_id, "block": "a", "role": "candidate", "arm": "adamw"} for r in adamw]
    write_sweep(storage, "golden", listed, number=2)
    found = judged(storage)
    assert [(run.arm, run.vs) for run in found.runs] == [("muon", "muon"), ("adamw", "adamw"), ("lion", "muon")]
    assert [golden.arm for golden in found.golden] == ["muon", "adamw"]
    assert by_name(found.runs[1])["val_loss"].result == "PASS"


def test_what_cannot_be_judged_is_one_line(tmp_path: Path) -> None:
    storage = golden_store(tmp_path, [run_of(7, 3.31, "lion")])
    store = open_store(storage)
    golden = runs_of_sweep(store, "golden")
    with pytest.raises(ValueError, match="every run to judge is one of the baseline's own"):
        judge_golden(store, golden, golden)
    demo = runs_of_sweep(store, "demo")
    no_role = golden.with_columns(role=pl.lit("candidate"), arm=pl.Series(["a", "b", "c"]))
    with pytest.raises(ValueError, match="no arm 'lion', and of its 3 arms none has the role baseline"):
        judge_golden(store, demo, no_role)
    with pytest.raises(ValueError, match="no run of the baseline 'muon' is done"):
        judge_golden(store, demo, golden.with_columns(status=pl.lit("failed")))


def test_a_run_without_a_metric_of_the_baseline_is_not_decided(tmp_path: Path) -> None:
    run = only(judged(golden_store(tmp_path, [run_of(7, 3.31, with_layers=False)])))
    assert run.result == "INCONCLUSIVE"
    assert check_line(by_name(run)["effective_rank"]) == (
        "effective_rank: INCONCLUSIVE: nothing was measured at tokens that the baseline reached"
    )
    no_layers = golden_store(tmp_path / "none", [run_of(7, 3.31)], with_layers=False)
    assert set(by_name(only(judged(no_layers)))) == {"final val_loss", "val_loss", "final val_accuracy", "val_accuracy"}


def test_one_golden_run_says_what_is_assumed(tmp_path: Path) -> None:
    store = open_store(golden_store(tmp_path, [run_of(7, 3.31)]))
    golden = run_alone(store, run_of(1, 0).run_id)
    found = judge_golden(store, run_alone(store, run_of(7, 0).run_id), golden)
    assert found.result == "PASS"
    assert golden_lines(found) == [
        "baseline muon: one run, muon-s1-0badcafe, widened by 1 % of val_loss and 2 % of val_accuracy, 10 % "
        "of ranks and norms; it tells nothing of seeds, which are assumed to explain up to 3 times as much"
    ]


Called = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Called:
    monkeypatch.setenv("MUON_STORE", str(tmp_path))

    def call(*words: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("runs", "code", "result"),
    [
        ([run_of(7, 3.31)], 0, "PASS"),
        ([run_of(7, 3.31), run_of(8, 3.9)], 4, "FAIL"),
        ([run_of(7, 3.31), run_of(8, 3.31, status=None)], 5, "INCONCLUSIVE"),
    ],
)
def test_the_exit_code_is_the_verdict(
    tmp_path: Path, called: Called, runs: list[FakeRun], code: int, result: str
) -> None:
    golden_store(tmp_path, runs)
    got, out, err = called("gates", "demo", "--baseline", "golden")
    assert got == code
    assert f"{runs[-1].run_id}: {result}: " in out
    assert err.startswith("next: muon runs ")
    got, out, _ = called("gates", "demo", "--baseline", "golden", "--json")
    found = json.loads(out)
    assert (got, found["result"]) == (code, result)
    assert [run["run_id"] for run in found["runs"]] == [run.run_id for run in runs]
    assert found["golden"] == [
        {"arm": "muon", "run_ids": [f"muon-s{s}-0badcafe" for s in GOLDEN], "seeds": [1, 2, 3], "left_out": 0}
    ]


def test_runs_are_named_by_their_beginning_and_margins_in_percent(tmp_path: Path, called: Called) -> None:
    golden_store(tmp_path, [run_of(7, 3.4)])
    assert called("gates", "muon-s7", "--baseline", "muon-s1")[0] == 4
    code, out, _ = called("gates", "muon-s7", "--baseline", "muon-s1", "--margin", "4%", "--layer-margin", "20 %")
    assert code == 0
    assert "widened by 4 % of val_loss and 8 % of val_accuracy, 20 % of ranks" in " ".join(out.split())
    code, _, err = called("gates", "muon-s7", "--baseline", "muon-s1", "--margin", "0.04")
    assert (code, "must be a share such as 2%, got '0.04'" in err) == (2, True)
    code, _, err = called("gates", "demo", "--baseline", "gold")
    assert code == 2
    assert "no sweep is called 'gold', it holds demo, golden; and no run begins with 'gold'" in " ".join(err.split())
    code, _, err = called("gates", "demo", "--margin", "4%")
    assert (code, "--margin is of --baseline" in err) == (2, True)
