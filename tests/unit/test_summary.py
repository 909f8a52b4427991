"""The answer to a sweep: counts, verdicts and warnings, on stores with known numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, write_run, write_store, write_sweep

import analysis
from analysis.arms import ArmSummary
from analysis.summary import Summary, summarize
from analysis.verdicts import arm_texts, decimals_of, interval_text, seconds_text, sentence
from muon_core.store.folder import Folder
from ray_jobs.cli.answer_text import render_summary


def summary_of(tmp_path: Path, runs: list[FakeRun], **options: object) -> Summary:
    write_store(tmp_path, runs, **options)  # type: ignore[arg-type]
    return summarize(analysis.open_store(tmp_path).sweep("demo"))


def arm(summary: Summary, name: str) -> ArmSummary:
    return next(arm for arm in summary.arms if arm.arm == name)


def said(summary: Summary, name: str) -> str:
    return sentence(arm(summary, name), summary)


def test_summary_gives_the_known_answer_on_six_runs(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, known_runs())
    assert (summary.baseline, summary.metric, summary.unit, summary.goal) == (
        "adamw",
        "val_loss",
        "nats per token",
        "min",
    )
    assert arm(summary, "muon").verdict == "lower"
    assert said(summary, "muon") == (
        "muon: lower than adamw: −0.0644 nats (−1.92 %), 95 % interval −0.0971 to −0.0318 nats; better in 3 of 3 "
        "seeds; p = 0.014."
    )
    assert said(summary, "adamw") == "adamw: the baseline, mean val_loss 3.3529 over 3 seeds."


def test_every_planned_run_is_counted(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, demo_runs(), unstarted=2)
    isotropic = arm(summary, "isotropic")
    assert {status: n for status, n in isotropic.counts.items() if n} == {
        "done": 1,
        "diverged": 1,
        "failed": 1,
        "planned": 2,
    }
    assert (isotropic.planned, isotropic.values, sum(summary.counts.values())) == (5, {42: 3.905}, 14)


def test_an_arm_within_the_noise_is_not_resolved(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, demo_runs())
    assert arm(summary, "orthonoise").verdict == "not resolved"
    text = said(summary, "orthonoise")
    assert text.startswith(
        "orthonoise: not resolved against muon: +0.0010 nats (+0.03 %), 95 % interval −0.0141 to +0.0161 nats, "
    )
    assert "which contains 0; a difference of this size has about even odds with 189 fresh seeds; " in text


def test_an_arm_with_one_finished_seed_has_no_interval_and_names_the_lost_ones(tmp_path: Path) -> None:
    assert said(summary_of(tmp_path, demo_runs()), "isotropic") == (
        "isotropic: not resolved against muon: +0.0060 nats (+0.15 %) at one seed (3.9050 against 3.8990), which gives "
        "no interval; of 3 seeds 1 diverged, 1 failed; these are numbers of survivors, which support no verdict."
    )


def test_an_interval_that_only_the_adjustment_undoes_is_said_to_be_so(tmp_path: Path) -> None:
    """AdamW alone resolves (p 0.014); beside four arms without effect Holm multiplies by 5."""
    runs = known_runs()
    for name in ("w", "x", "y", "z"):
        runs += [FakeRun(name, r.seed, r.val) for r in known_runs() if r.optimizer == "adamw"]
    summary = summary_of(tmp_path, runs)
    muon = arm(summary, "muon")
    assert muon.comparison is not None
    assert muon.comparison.p_value is not None
    assert muon.adjusted_p == pytest.approx(5 * muon.comparison.p_value)
    assert muon.verdict == "not resolved"
    assert "which excludes 0 alone but not after the adjustment for 5 arms; a difference" in said(summary, "muon")


def test_an_arm_nobody_started_has_no_data(tmp_path: Path) -> None:
    storage = write_store(tmp_path, known_runs())
    listed = [{"run_id": r.run_id, "block": "b", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    write_sweep(storage, "demo", [*listed, listed[0] | {"run_id": "lion-s1-0", "arm": "lion"}], number=2)
    summary = summarize(analysis.open_store(tmp_path).sweep("demo"))
    assert arm(summary, "lion").verdict == "no data"
    assert said(summary, "lion") == (
        "lion: no run is done with a positive, finite val_loss, so nothing is known; "
        "of 1 seed 1 planned, not in these numbers."
    )


def test_a_running_sweep_without_results_has_a_summary(tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, {}, None, "baseline"), FakeRun("adamw", 1, {0: 7.0}, None)]
    summary = summary_of(tmp_path, runs)
    assert summary.counts["running"] == 2
    assert [a.verdict for a in summary.arms] == ["baseline", "no data"]
    assert (
        said(summary, "muon")
        == "muon: the baseline, without a finished run yet; of 1 seed 1 running, not in these numbers."
    )


def test_a_sweep_without_runs_has_a_summary(tmp_path: Path) -> None:
    write_sweep(Folder(tmp_path), "demo", [])
    summary = summarize(analysis.open_store(tmp_path).sweep("demo"))
    assert summary.arms == ()
    assert "the sweep lists no runs" in render_summary(summary)


def test_without_a_baseline_nothing_is_compared(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, [FakeRun("muon", s, loss_curve(3.0 + s / 100)) for s in (1, 2)])
    assert (summary.baseline, arm(summary, "muon").comparison) == (None, None)
    assert said(summary, "muon") == "muon: not resolved, there is no baseline; mean val_loss 3.0150 over 2 seeds."
    assert summary.warnings[0].startswith("no arm has the role baseline")


def test_two_baselines_are_named(tmp_path: Path) -> None:
    runs = [FakeRun(name, s, loss_curve(3.0 + s / 100), role="baseline") for name in ("a", "b") for s in (1, 2)]
    summary = summary_of(tmp_path, runs)
    assert summary.baseline == "a"
    assert "2 arms have the role baseline (a, b); compared with the first" in summary.warnings


def test_best_values_are_compared_where_the_sweep_asks_for_them(tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, {0: 7.0, 20: 3.0, 40: 5.0}, role="baseline"), FakeRun("adamw", 1, {0: 7.0, 40: 4.0})]
    summary = summary_of(tmp_path, runs, metrics={"primary": "val_loss", "goal": "min", "at": "best"})
    assert (arm(summary, "muon").values, arm(summary, "adamw").values) == ({1: 3.0}, {1: 4.0})


def test_a_higher_value_is_better_where_the_goal_is_max(tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, loss_curve(3.0), role="baseline"), FakeRun("adamw", 1, loss_curve(4.0))]
    summary = summary_of(tmp_path, runs, metrics={"goal": "max"})
    assert arm_texts(arm(summary, "adamw"), summary)["better"] == "1 of 1"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [({"goal": "low"}, r"metrics\.goal: Input should be 'min' or 'max'"), ({"primary": "loss"}, "metric 'loss'")],
)
def test_a_question_that_cannot_be_answered_is_refused(tmp_path: Path, metrics: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summary_of(tmp_path, known_runs(), metrics=metrics)


def test_a_store_of_several_sweeps_is_not_summarized(tmp_path: Path) -> None:
    write_store(tmp_path, known_runs())
    with pytest.raises(ValueError, match=r"use .sweep\(name\), one of: demo"):
        summarize(analysis.open_store(tmp_path))


STREAMS = pytest.mark.parametrize(
    ("column", "stream", "what"),
    [("init_hash", "init", "initial weights"), ("first_batch_hash", "data", "first batch")],
)


@STREAMS
def test_seeds_that_reached_nothing_are_an_error(tmp_path: Path, column: str, stream: str, what: str) -> None:
    """Two seeds of muon are one draw; a third arm, untouched by it, keeps its verdict."""
    runs = [*known_runs(), *(FakeRun("lion", run.seed, run.val) for run in known_runs()[:3])]
    for run in runs[:2]:
        run.facts[column] = "same"
        run.facts["config_json"] = json.dumps({"seed": run.seed, "seeds": {stream: None}})
    summary = summary_of(tmp_path, runs)
    error = (
        f"seeds 42, 137 of muon have the same {what}, though nothing pins them: the seed did not reach them, and one "
        "draw was counted as several (muon-s42-0badcafe, muon-s137-0badcafe)"
    )
    assert summary.errors == (error,)
    assert [a.verdict for a in summary.arms] == ["invalid", "baseline", "lower"]
    assert said(summary, "muon") == f"muon: invalid: {error}."
    assert any(w.startswith(f"arms differ in their {what} at seed 42, 137") for w in summary.warnings)
    assert render_summary(summary, 400).startswith(f"error: {error}\n")


def test_an_error_of_the_baseline_makes_every_arm_invalid(tmp_path: Path) -> None:
    runs = demo_runs()
    for run in runs:
        if run.optimizer == "muon":
            run.facts["init_hash"] = "same"
    summary = summary_of(tmp_path, runs)
    assert {a.verdict for a in summary.arms} == {"invalid"}
    assert summary.baseline == "muon"
    assert all("seeds 42, 137, 256 of muon" in said(summary, a.arm) for a in summary.arms)


@STREAMS
def test_seeds_pinned_to_one_stream_are_a_warning(tmp_path: Path, column: str, stream: str, what: str) -> None:
    runs = known_runs()
    for run in runs:
        run.facts[column] = "same"
        run.facts["config_json"] = json.dumps({"seed": run.seed, "seeds": {stream: 7}})
    summary = summary_of(tmp_path, runs)
    assert (summary.errors, arm(summary, "muon").verdict) == ((), "lower")
    assert (
        f"muon: seeds 42, 137, 256 have the same {what}, as their configs ask, so they are not independent draws of it "
        "(muon-s42-0badcafe, muon-s137-0badcafe, muon-s256-0badcafe)"
    ) in summary.warnings


def test_seeds_pinned_to_different_streams_with_one_hash_are_an_error(tmp_path: Path) -> None:
    runs = known_runs()
    for run in runs[:2]:
        run.facts |= {"init_hash": "same", "config_json": json.dumps({"seeds": {"init": run.seed + 1}})}
    assert len(summary_of(tmp_path, runs).errors) == 1


def test_first_losses_stand_in_where_no_hash_tells_more(tmp_path: Path) -> None:
    """As of imported runs: two seeds of muon start at one loss, those of adamw a digit apart."""
    first = {("muon", 42): 10.41289, ("muon", 137): 10.41289, ("adamw", 42): 10.41289, ("adamw", 137): 10.41288}
    runs = [run for run in known_runs() if run.seed != 256]
    for run in runs:
        run.facts["init_hash"] = None
        run.val[0] = first[run.optimizer, run.seed]
    torn = FakeRun("muon", 7, {200: 3.3}, facts={"init_hash": None})
    assert [w for w in summary_of(tmp_path, [*runs, torn]).warnings if "step 0" in w] == [
        "muon: seeds 42, 137 have the same validation loss at step 0 (10.41289): their initial weights were probably "
        "the same, so they are not independent draws of them",
        "arms differ in their validation loss at step 0 at seed 137: pairs by seed share less than they should",
    ]


def test_equal_first_losses_are_no_warning_where_the_hashes_differ(tmp_path: Path) -> None:
    runs = known_runs()
    for run in runs:
        run.val[0] = 10.5
        run.val[0] += 0.1 * (run.optimizer == "adamw")  # adamw starts elsewhere, which the hashes deny
    assert not [w for w in summary_of(tmp_path, runs).warnings if "step 0" in w]


@pytest.mark.parametrize("column", ["device", "environment_json", "data_hash", "world_size", "commit"])
def test_pooled_environments_are_named(tmp_path: Path, column: str) -> None:
    runs = known_runs()
    for run in runs[:2]:
        run.facts[column] = 2 if column == "world_size" else "other"
    found = [w for w in summary_of(tmp_path, runs).warnings if "are pooled" in w]
    assert len(found) == 1
    assert f"(4, 2 runs; column {column})" in found[0]


def test_arms_whose_momentum_failed_are_named(tmp_path: Path) -> None:
    runs = known_runs()
    for run in runs:
        if run.optimizer == "muon" and run.seed != 137:
            run.facts |= {"health": f"frozen momentum at step {run.seed}", "skipped_steps": 2}
    assert summary_of(tmp_path, runs).warnings == (
        "muon: 4 steps without update, for losses or gradients that were not finite",
        "muon: 2 of 3 runs flagged (seed 42, 256): frozen momentum at step 42",
    )


def test_a_clean_sweep_has_no_integrity_warning(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, known_runs())
    assert (summary.errors, summary.warnings) == ((), ())


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_done_run_without_a_usable_value_is_named_and_leaves_survivors(tmp_path: Path, value: float) -> None:
    runs = known_runs()
    runs[0].val[200] = value
    summary = summary_of(tmp_path, runs)
    assert sorted(arm(summary, "muon").values) == [137, 256]
    assert "muon: done, but without a positive, finite value of the metric at seed 42" in summary.warnings
    assert said(summary, "muon").endswith(
        "of 3 seeds 1 done without a positive, finite value; these are numbers of survivors, which support no verdict."
    )


def with_lost(status: str, name: str) -> list[FakeRun]:
    """Muon 2 % below AdamW at five seeds, give or take little; three of the five runs of `name` end as `status`."""
    base = {seed: 3.36 + 0.003 * seed for seed in range(5)}
    runs = [FakeRun("adamw", seed, loss_curve(loss), role="baseline") for seed, loss in base.items()]
    runs += [FakeRun("muon", seed, loss_curve(0.98 * loss + 1e-5 * seed)) for seed, loss in base.items()]
    for run in [run for run in runs if run.optimizer == name][2:]:
        run.status = status
    return runs


@pytest.mark.parametrize("status", ["diverged", "failed"])
@pytest.mark.parametrize(("name", "whose"), [("muon", "of 5 seeds"), ("adamw", "of 5 seeds of adamw")])
def test_seeds_that_were_lost_leave_a_verdict_open(tmp_path: Path, status: str, name: str, whose: str) -> None:
    summary = summary_of(tmp_path, with_lost(status, name))
    muon = arm(summary, "muon")
    assert muon.adjusted_p is not None
    assert muon.adjusted_p < 0.001
    assert (muon.verdict, muon.of_survivors, muon.seeds_to_resolve) == ("not resolved", True, None)
    text = said(summary, "muon")
    assert f"; {whose} 3 {status}" in text
    assert text.endswith("; these are numbers of survivors, which support no verdict.")
    assert ("not in these numbers" in said(summary, "adamw")) == (name == "adamw")


@pytest.mark.parametrize("status", [None, "stopped"])
def test_seeds_that_are_still_to_come_leave_a_provisional_verdict(tmp_path: Path, status: str | None) -> None:
    runs = known_runs()
    more = FakeRun("muon", 7, {0: 7.0}, status)
    summary = summary_of(tmp_path, [*runs, more])
    assert arm(summary, "muon").verdict == "lower"
    assert said(summary, "muon").endswith(f"of 4 seeds 1 {status or 'running'}, not in these numbers.")


def test_a_difference_over_fewer_seeds_than_the_means_gives_its_own(tmp_path: Path) -> None:
    """The baseline's fourth seed lies far above: the means of the table suggest twice the difference."""
    outlier = FakeRun("adamw", 7, loss_curve(3.6), role="baseline")
    summary = summary_of(tmp_path, [*known_runs(), outlier])
    assert f"{arm(summary, 'adamw').mean:.4f}" == "3.4147"
    assert "lower than adamw: −0.0644 nats (−1.92 %) over the 3 seeds both finished (3.2885 against 3.3529), " in said(
        summary, "muon"
    )


def listed(block: str, role: str, optimizer: str, seeds: tuple[int, ...] = (42, 137, 256)) -> list[dict[str, str]]:
    """Known runs as a block of a sweep lists them."""
    runs = [run for run in known_runs() if run.optimizer == optimizer and run.seed in seeds]
    return [{"run_id": run.run_id, "block": block, "role": role, "arm": optimizer} for run in runs]


def shared_sweep(tmp_path: Path, blocks: list[list[dict[str, str]]]) -> Summary:
    storage = write_store(tmp_path, known_runs())
    write_sweep(storage, "demo", [row for block in blocks for row in block], number=2)
    return summarize(analysis.open_store(tmp_path).sweep("demo"))


def test_arms_of_the_same_runs_are_one_test(tmp_path: Path) -> None:
    """Two more blocks that list muon change neither p nor verdict; the sweep still has six runs."""
    alone = summary_of(tmp_path / "alone", known_runs())
    muon = [listed(block, "candidate", "muon") for block in ("a", "b", "c")]
    shared = shared_sweep(tmp_path / "shared", [muon[0], listed("base", "baseline", "adamw"), *muon[1:]])
    tested = arm(alone, "muon")
    assert shared.tests == alone.tests == 1
    assert shared.counts == alone.counts
    found = [a for a in shared.arms if a.optimizer == "muon"]
    assert [a.copy_of for a in found] == [None, "a: muon", "a: muon"]
    for a in found:
        assert (a.adjusted_p, a.verdict, a.pooled) == (tested.adjusted_p, "lower", tested.pooled)
    assert said(shared, "c: muon").endswith("; its runs are a: muon's.")


def test_a_copy_of_the_baseline_is_the_baseline(tmp_path: Path) -> None:
    """Also where it is listed first, has the role too, or lists only some of the runs."""
    blocks = [
        listed("before", "candidate", "adamw"),
        listed("muon", "candidate", "muon"),
        listed("base", "baseline", "adamw"),
        listed("same", "baseline", "adamw"),
        listed("some", "control", "adamw", (42, 137)),
    ]
    summary = shared_sweep(tmp_path, blocks)
    assert (summary.baseline, summary.tests, summary.warnings) == ("base: adamw", 1, ())
    copies = [arm(summary, f"{block}: adamw") for block in ("before", "same", "some")]
    assert {(a.verdict, a.comparison, a.adjusted_p, a.pooled) for a in copies} == {("baseline", None, None, None)}
    assert arm(summary, "muon").pooled == arm(summary_of(tmp_path / "alone", known_runs()), "muon").pooled
    assert said(summary, "same: adamw").endswith("over 3 seeds; its runs are base: adamw's.")


def test_an_arm_that_equals_the_baseline_to_the_last_digit_is_not_sent_to_more_seeds(tmp_path: Path) -> None:
    runs = known_runs()
    runs += [FakeRun("orthonoise", r.seed, r.val) for r in runs if r.optimizer == "adamw"]
    summary = summary_of(tmp_path, runs)
    assert arm(summary, "orthonoise").seeds_to_resolve is None
    assert "+0.0000 nats, as the runs are equal to the last digit; " in said(summary, "orthonoise")
    assert summary.warnings == (
        "the runs of orthonoise equal the baseline's to the last digit; its perturbation never acted",
    )


def test_the_seeds_asked_for_are_those_of_the_adjusted_level(tmp_path: Path) -> None:
    """Of two tests the stricter is at 2.5 %; scipy's quantile is the oracle."""
    noise = arm(summary_of(tmp_path, demo_runs()), "orthonoise")
    assert noise.comparison is not None
    assert noise.comparison.sd is not None
    n, effect = noise.seeds_to_resolve, abs(noise.comparison.difference)
    assert n is not None
    half = [stats.t.ppf(1 - 0.025 / 2, k - 1) * noise.comparison.sd / k**0.5 for k in (n - 1, n)]
    assert half[1] <= effect < half[0]


def test_pooled_contrasts_are_those_of_all_arms(tmp_path: Path) -> None:
    """Complete cells: the textbook error of the additive model over three arms and three seeds."""
    runs = [run for run in demo_runs() if run.optimizer != "isotropic"]
    summary = summary_of(tmp_path, runs)
    y = np.array([[arm(summary, name).values[s] for s in (42, 137, 256)] for name in ("muon", "adamw", "orthonoise")])
    rest = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    half = stats.t.ppf(0.975, 4) * math.sqrt((rest**2).sum() / 4 * 2 / 3)
    pooled, effect = arm(summary, "adamw").pooled, y[1].mean() - y[0].mean()
    assert pooled is not None
    assert pooled.interval == pytest.approx((effect - half, effect + half))
    assert arm(summary, "muon").pooled is None


@pytest.mark.parametrize(
    ("scatter", "said_to_be"),
    [(0.029, None), (0.031, "3.1-fold"), (0.0, "one of them not at all")],
)
def test_arms_that_scatter_unequally_are_named(tmp_path: Path, scatter: float, said_to_be: str | None) -> None:
    """The baseline's losses lie 0.01 apart, the candidate's `scatter`."""
    runs = [FakeRun("muon", s, loss_curve(3.0 + 0.01 * s), role="baseline") for s in (1, 2, 3)]
    runs += [FakeRun("adamw", s, loss_curve(3.5 - scatter * s)) for s in (1, 2, 3)]
    found = [w for w in summary_of(tmp_path, runs).warnings if "scatter unequally" in w]
    assert [said_to_be is not None and said_to_be in w for w in found] == [True] * (said_to_be is not None)


def test_two_runs_of_an_arm_with_one_seed_count_once(tmp_path: Path) -> None:
    storage = write_store(tmp_path, known_runs())
    twin = FakeRun("muon", 42, loss_curve(3.5), facts={"init_hash": "other"})
    listed = [{"run_id": r.run_id, "block": "b", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    twin_id = "muon-s42-1"

    class Twin(FakeRun):
        run_id = twin_id  # type: ignore[assignment]

    write_run(storage, Twin("muon", 42, twin.val))
    write_sweep(storage, "demo", [*listed, listed[0] | {"run_id": twin_id}], number=2)
    summary = summarize(analysis.open_store(tmp_path).sweep("demo"))
    assert arm(summary, "muon").values[42] == pytest.approx((3.284417 + 3.5) / 2)
    assert any("2 runs have seed 42" in warning for warning in summary.warnings)


def test_arms_of_one_readable_name_are_told_apart_by_block(tmp_path: Path) -> None:
    storage = write_store(tmp_path, known_runs())
    listed = [{"run_id": r.run_id, "block": f"b{r.seed}", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    write_sweep(storage, "demo", listed, number=2)
    names = [a.arm for a in summarize(analysis.open_store(tmp_path).sweep("demo")).arms]
    assert names[:2] == ["b42: muon", "b137: muon"]
    assert len(set(names)) == 6


@pytest.mark.parametrize("width", [72, 80, 100, 120])
def test_the_table_fits_the_terminal_and_shows_every_arm(tmp_path: Path, width: int) -> None:
    runs, rest = demo_runs(), "a0.001-exponential-rt0.5-lr0.02"
    for run in runs:
        run.facts["arm"] = f"{run.optimizer}-{rest}"
    text = render_summary(summary_of(tmp_path, runs, unstarted=1), width)
    assert max(len(line) for line in text.splitlines()) <= width
    lines = text.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("arm "))
    names, rows = lines[header + 2 : header + 10 : 2], lines[header + 3 : header + 10 : 2]
    assert names == [f"{name}-{rest}" for name in ("muon", "adamw", "orthonoise", "isotropic")]  # whole, above the rows
    assert [row.split()[-1] for row in rows] == ["baseline", "higher", "resolved", "resolved"]
    assert [cell for row in rows for cell in row.split() if "/" in cell] == ["3/3", "3/3", "3/3", "1/4"]


@pytest.mark.parametrize(
    ("is_terminal", "columns", "width"), [(True, 90, 90), (True, 40, 72), (True, 300, 120), (False, 90, 120)]
)
def test_the_table_is_as_wide_as_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, columns: int, width: int
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    summary = summary_of(tmp_path, demo_runs())
    assert render_summary(summary) == render_summary(summary, width)


def test_a_row_of_the_table_is_the_comparison(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, known_runs())
    cells = arm_texts(arm(summary, "muon"), summary)
    assert cells == {
        "arm": "muon",
        "block": "muon",
        "role": "candidate",
        "seeds": "3/3",
        "val_loss": "3.2885",
        "difference nats": "−0.0644 [−0.0971, −0.0318]",
        "%": "−1.92",
        "better": "3 of 3",
        "p (Holm)": "0.014",
        "pair corr.": "+0.19",
        "wall": "20.0 s",
        "verdict": "lower",
    }


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((-0.0907, -0.0256), "−0.0907 to −0.0256"),
        ((-0.00013, 0.00041), "−0.00013 to +0.00041"),
        ((0.0000004, 0.03), "+0.0000004 to +0.0300000"),
        ((0.0, 0.0), "+0.0000 to +0.0000"),
        ((-12.5, 0.0), "−12.5000 to +0.0000"),
    ],
)
def test_an_interval_is_shown_with_digits_that_tell_whether_it_contains_0(
    interval: tuple[float, float], text: str
) -> None:
    assert interval_text(interval, decimals_of(interval)) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (19.24, "19.2 s"), (120.0, "2.0 min"), (7200.0, "2.0 h"), (7199.0, "120.0 min")]
)
def test_seconds_text_picks_the_unit(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def with_lengths(lengths: dict[tuple[str, int], tuple[int, int]]) -> list[FakeRun]:
    """The known runs, each done after so many steps and tokens; 200 of 2,048 unless told otherwise."""
    runs = known_runs()
    for run in runs:
        steps, tokens = lengths.get((run.optimizer, run.seed), (200, 200 * 2048))
        run.facts |= {"steps": steps, "tokens": tokens}
    return runs


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        ({}, None),
        ({("muon", 42): (100, 100 * 2048)}, "100 steps of 2,048 tokens (muon: 1 run); 200 steps of 2,048 tokens"),
        ({("adamw", 42): (200, 200 * 4096)}, "200 steps of 2,048 tokens (muon, adamw: 5 runs); 200 steps of 4,096"),
    ],
    ids=["equal", "fewer steps", "a larger batch"],
)
def test_runs_of_unequal_length_or_batch_are_named(
    tmp_path: Path, lengths: dict[tuple[str, int], tuple[int, int]], told: str | None
) -> None:
    found = [w for w in summary_of(tmp_path, with_lengths(lengths)).warnings if "unequal length" in w]
    assert [w.startswith(f"runs of unequal length or batch are compared: {told}") for w in found] == [True] * bool(told)


def test_a_run_that_did_not_come_to_its_end_is_no_unequal_length(tmp_path: Path) -> None:
    runs = with_lengths({("muon", 42): (100, 100 * 2048)})
    runs[0].status = "failed"
    assert not [w for w in summary_of(tmp_path, runs).warnings if "unequal length" in w]


def without_seeds(runs: list[FakeRun]) -> list[FakeRun]:
    """As imported runs that do not tell theirs."""
    for run in runs:
        run.facts |= {"seed": None, "init_hash": None, "first_batch_hash": None}
    return runs


def test_runs_without_a_seed_get_welchs_interval_and_their_number(tmp_path: Path) -> None:
    """scipy is the oracle."""
    summary = summary_of(tmp_path, without_seeds(known_runs()))
    muon, adamw = (arm(summary, name) for name in ("muon", "adamw"))
    losses = [[run.val[200] for run in known_runs() if run.optimizer == name] for name in ("muon", "adamw")]
    oracle = stats.ttest_ind(*losses, equal_var=False)
    found = muon.unpaired
    assert found is not None
    assert (muon.comparison, muon.values, found.n, found.baseline_n) == (None, {}, 3, 3)
    assert found.difference_interval == pytest.approx(tuple(oracle.confidence_interval()))
    assert (found.p_value, found.df) == (pytest.approx(oracle.pvalue), pytest.approx(oracle.df))
    assert (muon.verdict, summary.tests) == ("lower", 1)
    assert "lower than adamw: −0.0644 nats (−1.92 %) between 3 and 3 runs, 95 % interval " in said(summary, "muon")
    assert said(summary, "muon").endswith("; Welch's interval, unpaired, for not all runs tell their seed; p = 0.0025.")
    assert said(summary, "adamw") == "adamw: the baseline, mean val_loss 3.3529 over 3 runs."
    assert adamw.mean == pytest.approx(float(np.mean(losses[1])))
    assert not [w for w in summary.warnings if "None" in w or "scatter" in w]
    assert "; differences to adamw, unpaired, with Welch's 95 % intervals, for not all" in render_summary(summary, 500)


def test_runs_without_a_seed_that_start_at_one_loss_are_named(tmp_path: Path) -> None:
    runs = without_seeds(known_runs())
    for run in runs:
        run.val[0] = 10.012345 if run.optimizer == "muon" else 10.012345 + run.seed
    assert summary_of(tmp_path, runs).warnings == (
        "muon: 3 runs have the same validation loss at step 0 (10.012345): their initial weights were probably the "
        "same, so they are not independent draws of them",
    )


def test_one_run_without_a_seed_is_a_single_run_and_one_that_is_nan_is_counted(tmp_path: Path) -> None:
    runs = without_seeds([run for run in known_runs() if (run.optimizer, run.seed) != ("muon", 256)])
    runs[0].val[200] = math.nan
    summary = summary_of(tmp_path, runs)
    assert said(summary, "muon").startswith("muon: not resolved against adamw: −")
    assert " between 1 and 3 runs, which gives no interval; of 2 runs 1 done without a positive" in said(
        summary, "muon"
    )
    assert "muon: done, but without a positive, finite value of the metric in 1 run without a seed" in summary.warnings


@pytest.mark.parametrize("status", ["failed", "stopped", "diverged"])
def test_only_a_run_that_is_done_has_a_final_loss(tmp_path: Path, status: str) -> None:
    write_store(tmp_path, [FakeRun("muon", 1, {0: 7.0, 20: 6.0}, status), FakeRun("adamw", 1, loss_curve(3.0))])
    rows = analysis.open_store(tmp_path).runs.select("status", "final_val_loss", "last_val_loss").collect()
    assert set(rows.iter_rows()) == {(status, None, 6.0), ("done", 3.0, 3.0)}
