"""The answer to a sweep: counts, verdicts and warnings, on stores with known numbers."""

from pathlib import Path

import pytest
from analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, write_run, write_store, write_sweep

import analysis
from analysis.summary import ArmSummary, Summary, summarize
from analysis.terminal import render_summary
from analysis.verdicts import arm_cells, seconds_text, sentence
from muon_core.storage import Folder


def summary_of(tmp_path: Path, runs: list[FakeRun], **options: object) -> Summary:
    write_store(tmp_path, runs, **options)  # type: ignore[arg-type]
    return summarize(analysis.open_store(tmp_path).sweep("demo"))


def arm(summary: Summary, name: str) -> ArmSummary:
    return next(arm for arm in summary.arms if arm.arm == name)


def said(summary: Summary, name: str) -> str:
    return sentence(arm(summary, name), summary)


def test_summary_gives_the_known_answer_on_six_real_runs(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, known_runs())
    assert (summary.baseline, summary.metric, summary.unit, summary.goal) == (
        "adamw",
        "val_loss",
        "nats per token",
        "min",
    )
    assert arm(summary, "muon").verdict == "lower"
    assert said(summary, "muon") == (
        "muon: lower than adamw: −0.0582 nats (−1.73 %), 95 % interval −2.69 to −0.76 %; better in 3 of 3 seeds; "
        "p = 0.017."
    )
    assert said(summary, "adamw") == "adamw: the baseline, mean val_loss 3.3641 over 3 seeds."


def test_every_planned_run_is_counted(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, demo_runs(), unstarted=2)
    isotropic = arm(summary, "isotropic")
    assert {status: n for status, n in isotropic.counts.items() if n} == {
        "done": 1,
        "diverged": 1,
        "failed": 1,
        "missing": 2,
    }
    assert (isotropic.planned, isotropic.values, sum(summary.counts.values())) == (5, {42: 3.905}, 14)


def test_an_arm_within_the_noise_is_not_resolved(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, demo_runs())
    assert arm(summary, "orthonoise").verdict == "not resolved"
    text = said(summary, "orthonoise")
    assert text.startswith(
        "orthonoise: not resolved against muon: +0.0010 nats (+0.03 %), 95 % interval −0.36 to +0.41 %, "
    )
    assert "which contains 0; about 140 seeds would settle a difference of this size" in text


def test_an_arm_with_one_finished_seed_has_no_interval_and_names_the_lost_ones(tmp_path: Path) -> None:
    assert said(summary_of(tmp_path, demo_runs()), "isotropic") == (
        "isotropic: not resolved against muon: +0.0060 nats (+0.15 %) at one seed, which gives no interval; "
        "of 3 seeds 1 diverged, 1 failed, not in these numbers."
    )


def test_an_interval_that_only_the_adjustment_undoes_is_said_to_be_so(tmp_path: Path) -> None:
    """AdamW alone resolves (p 0.017); beside four arms without effect Holm multiplies by 5."""
    runs = known_runs()
    for name in ("w", "x", "y", "z"):
        runs += [FakeRun(name, r.seed, r.val) for r in known_runs() if r.optimizer == "adamw"]
    summary = summary_of(tmp_path, runs)
    muon = arm(summary, "muon")
    assert muon.comparison is not None
    assert muon.comparison.p_value is not None
    assert muon.adjusted_p == pytest.approx(5 * muon.comparison.p_value)
    assert muon.verdict == "not resolved"
    assert "which excludes 0 alone but not after the adjustment for several arms" in said(summary, "muon")


def test_an_arm_nobody_started_has_no_data(tmp_path: Path) -> None:
    storage = write_store(tmp_path, known_runs())
    listed = [{"run_id": r.run_id, "block": "b", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    write_sweep(storage, "demo", [*listed, listed[0] | {"run_id": "lion-s1-0", "arm": "lion"}], number=2)
    summary = summarize(analysis.open_store(tmp_path).sweep("demo"))
    assert arm(summary, "lion").verdict == "no data"
    assert said(summary, "lion") == (
        "lion: no run is done with a finite val_loss, so nothing is known; of 1 seed 1 missing, not in these numbers."
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
    assert arm_cells(arm(summary, "adamw"), summary)["better"] == "1 of 1"


@pytest.mark.parametrize(
    ("metrics", "message"), [({"goal": "low"}, "goal 'low'"), ({"primary": "loss"}, "metric 'loss'")]
)
def test_a_question_that_cannot_be_answered_is_refused(tmp_path: Path, metrics: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summary_of(tmp_path, known_runs(), metrics=metrics)


def test_a_store_of_several_sweeps_is_not_summarized(tmp_path: Path) -> None:
    write_store(tmp_path, known_runs())
    with pytest.raises(ValueError, match=r"use .sweep\(name\), one of: demo"):
        summarize(analysis.open_store(tmp_path))


@pytest.mark.parametrize(("column", "what"), [("init_hash", "initial weights"), ("first_batch_hash", "first batch")])
def test_seeds_that_did_not_vary_are_named(tmp_path: Path, column: str, what: str) -> None:
    runs = known_runs()
    for run in runs[:2]:
        run.facts[column] = "same"
    warnings = summary_of(tmp_path, runs).warnings
    expected = (
        f"muon: seeds 42, 137 have the same {what}, so they are not independent draws of it "
        "(muon-s42-0badcafe, muon-s137-0badcafe)"
    )
    assert expected in warnings
    assert any(w.startswith(f"arms differ in their {what} at seed 42, 137") for w in warnings)


@pytest.mark.parametrize("column", ["device", "environment_json", "data_hash", "world_size", "commit"])
def test_pooled_environments_are_named(tmp_path: Path, column: str) -> None:
    runs = known_runs()
    for run in runs[:2]:
        run.facts[column] = 2 if column == "world_size" else "other"
    found = [w for w in summary_of(tmp_path, runs).warnings if "are pooled" in w]
    assert len(found) == 1
    assert f"(4, 2 runs; column {column})" in found[0]


def test_a_clean_sweep_has_no_integrity_warning(tmp_path: Path) -> None:
    warnings = summary_of(tmp_path, known_runs()).warnings
    assert [w for w in warnings if "spread" not in w] == []


def test_a_done_run_without_a_finite_value_is_named(tmp_path: Path) -> None:
    runs = known_runs()
    runs[0].val[200] = float("nan")
    summary = summary_of(tmp_path, runs)
    assert sorted(arm(summary, "muon").values) == [137, 256]
    assert "muon: done, but without a finite value of the metric at seed 42" in summary.warnings


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
    assert arm(summary, "muon").values[42] == pytest.approx((3.315414 + 3.5) / 2)
    assert any("2 runs have seed 42" in warning for warning in summary.warnings)


def test_arms_of_one_readable_name_are_told_apart_by_block(tmp_path: Path) -> None:
    storage = write_store(tmp_path, known_runs())
    listed = [{"run_id": r.run_id, "block": f"b{r.seed}", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    write_sweep(storage, "demo", listed, number=2)
    names = [a.arm for a in summarize(analysis.open_store(tmp_path).sweep("demo")).arms]
    assert names[:2] == ["b42: muon", "b137: muon"]
    assert len(set(names)) == 6


@pytest.mark.parametrize("width", [100, 120])
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


def test_a_row_of_the_table_is_the_comparison(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, known_runs())
    cells = arm_cells(arm(summary, "muon"), summary)
    assert cells == {
        "arm": "muon",
        "block": "muon",
        "role": "candidate",
        "seeds": "3/3",
        "val_loss": "3.3060",
        "difference nats": "−0.0582 [−0.0907, −0.0256]",
        "%": "−1.73",
        "95 % interval, %": "−2.69 to −0.76",
        "better": "3 of 3",
        "p (Holm)": "0.017",
        "pair corr.": "−0.33",
        "wall": "20.0 s",
        "verdict": "lower",
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (19.24, "19.2 s"), (120.0, "2.0 min"), (7200.0, "2.0 h"), (7199.0, "120.0 min")]
)
def test_seconds_text_picks_the_unit(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text
