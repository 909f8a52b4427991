"""The best arm of a block is not confirmed until another sweep says that it confirms this one, on fresh seeds."""

from pathlib import Path

from support.analysis_fixtures import FakeRun, loss_curve, write_run, write_store, write_sweep

from analysis.store import open_store
from analysis.summary import Summary, summarize
from analysis.verdicts import arm_texts, sentence
from muon_core.store.folder import Folder
from ray_jobs.cli.answer_text import render_summary

BASE = {1: 3.30, 2: 3.31, 3: 3.29, 4: 3.30, 5: 3.32, 6: 3.31}
SHIFTS = {"a": -0.030, "b": -0.050, "c": 0.010}


def runs_of(seeds: tuple[int, ...], *names: str) -> list[FakeRun]:
    runs = [FakeRun("muon", s, loss_curve(BASE[s]), role="baseline", block="base", with_layers=False) for s in seeds]
    for name in names:
        facts = {"arm": name, "arm_id": f"{name}-1"}
        runs += [
            FakeRun(name, s, loss_curve(BASE[s] + SHIFTS[name] + 0.001 * (s % 2)), block="grid", facts=facts)
            for s in seeds
        ]
    return runs


def listed(runs: list[FakeRun]) -> list[dict[str, object]]:
    return [
        {"run_id": run.run_id, "block": run.block, "role": run.role, "arm": run.optimizer, "seed": run.seed}
        for run in runs
    ]


def later(storage: Folder, seeds: tuple[int, ...], status: str = "done", confirms: str = "demo") -> None:
    """Another sweep, of the baseline and arm b."""
    runs = runs_of(seeds, "b")
    for run in runs:
        run.status = status
        write_run(storage, run)
    spec = {"version": 1, "name": "again", "confirms": confirms}
    write_sweep(storage, "again", listed(runs), spec=spec)  # type: ignore[arg-type]


def summary_of(storage: Folder, name: str = "demo") -> Summary:
    return summarize(open_store(storage).sweep(name))


def test_the_best_of_a_block_is_not_confirmed(tmp_path: Path) -> None:
    summary = summary_of(write_store(tmp_path, runs_of((1, 2, 3), "a", "b", "c")))
    (chosen,) = summary.selections
    assert (chosen.arm, chosen.block, chosen.of, chosen.confirmed_by) == ("b", "grid", 3, None)
    verdicts = {arm.arm: arm_texts(arm, summary)["verdict"] for arm in summary.arms}
    assert verdicts == {"muon": "baseline", "a": "lower", "b": "lower, not confirmed", "c": "higher"}
    said = {arm.arm: sentence(arm, summary) for arm in summary.arms}
    assert said["b"].endswith("; the best of 3 arms, not confirmed on fresh seeds.")
    assert "confirmed" not in said["a"]


def test_an_arm_alone_or_one_that_is_no_better_was_not_chosen(tmp_path: Path) -> None:
    assert summary_of(write_store(tmp_path / "a", runs_of((1, 2, 3), "b"))).selections == ()
    worse = runs_of((1, 2, 3), "c") + [run for run in runs_of((1, 2, 3), "c") if run.optimizer == "c"]
    for run in worse[6:]:
        run.optimizer = run.facts["arm"] = "d"
    assert summary_of(write_store(tmp_path / "b", worse)).selections == ()


def test_fresh_seeds_of_a_sweep_that_says_so_confirm_it(tmp_path: Path) -> None:
    storage = write_store(tmp_path, runs_of((1, 2, 3), "a", "b"))
    later(storage, (4, 5, 6))
    summary = summary_of(storage)
    (chosen,) = summary.selections
    assert (chosen.confirmed_by, chosen.fresh_seeds) == ("again", (4, 5, 6))
    arm = next(arm for arm in summary.arms if arm.arm == "b")
    assert arm_texts(arm, summary)["verdict"] == "lower"
    assert sentence(arm, summary).endswith("; the best of 2 arms, tried on 3 fresh seeds in again.")


def test_old_seeds_runs_without_a_result_and_other_sweeps_confirm_nothing(tmp_path: Path) -> None:
    for case, (seeds, status, confirms) in enumerate(
        [((1, 2, 3), "done", "demo"), ((4, 5), "failed", "demo"), ((4, 5), "done", "other")]
    ):
        storage = write_store(tmp_path / str(case), runs_of((1, 2, 3), "a", "b"))
        later(storage, seeds, status, confirms)
        assert [chosen.confirmed_by for chosen in summary_of(storage).selections] == [None]


def test_the_answer_of_a_confirming_sweep_says_so(tmp_path: Path) -> None:
    storage = write_store(tmp_path, runs_of((1, 2, 3), "a", "b"))
    write_sweep(storage, "demo", listed(runs_of((1, 2, 3), "a", "b")), number=2)  # type: ignore[arg-type]
    later(storage, (4, 5))
    fresh = "confirms demo: seed 4, 5 had no part in choosing its arms"
    assert summary_of(storage, "again").confirms == fresh
    assert fresh in render_summary(summary_of(storage, "again"), 200)
    assert (summary_of(storage).confirms, "confirms" in render_summary(summary_of(storage), 200)) == ("", False)
    write_sweep(storage, "mixed", listed(runs_of((3, 4), "b")), spec={"confirms": "demo"})  # type: ignore[arg-type]
    assert summary_of(storage, "mixed").confirms == "confirms demo in part: seed 3 had a part in choosing its arms"
    write_sweep(storage, "lost", listed(runs_of((3, 4), "b")), spec={"confirms": "gone"})  # type: ignore[arg-type]
    assert summary_of(storage, "lost").confirms.startswith("confirms gone, which cannot be read here")


def test_a_damaged_record_of_another_sweep_leaves_the_answer(tmp_path: Path) -> None:
    storage = write_store(tmp_path, runs_of((1, 2, 3), "a", "b"))
    later(storage, (4, 5))
    storage.put("sweeps/torn/00001.aa.json", b"{")
    assert [chosen.confirmed_by for chosen in summary_of(storage).selections] == ["again"]
