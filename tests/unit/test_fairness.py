"""What a comparison shares and what it does not, which runs are in no mean, and what was tried for each optimizer."""

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, write_run, write_store, write_sweep

from analysis.fairness import Check, excluded_runs, fairness, tuning
from analysis.store import Store, open_store
from analysis.summary import members_of, summarize_members
from muon_core.store.folder import Folder

LENGTH = {"tokens": 200 * 2048, "steps": 200, "commit": "abc"}


def checks(storage: Folder) -> dict[str, Check]:
    view = open_store(storage).sweep("demo")
    members = members_of(view)
    return {check.term: check for check in fairness(view, members, summarize_members(view, members))}


def excluded(storage: Folder) -> pl.DataFrame:
    view = open_store(storage).sweep("demo")
    members = members_of(view)
    return excluded_runs(view, members, summarize_members(view, members))


def with_facts(runs: list[FakeRun], **facts: Any) -> list[FakeRun]:
    for run in runs:
        run.facts = facts | run.facts
        run.with_layers = False
    return runs


def test_a_fair_sweep_is_told_to_be_fair_term_by_term(tmp_path: Path) -> None:
    found = checks(write_store(tmp_path, with_facts(known_runs(), **LENGTH)))
    assert {term: check.text for term, check in found.items()} == {
        "Seeds": "Every arm is done at the same seeds: 42, 137, 256.",
        "Initial weights": "All arms have the same initial weights at each of 3 seeds, by hash.",
        "Data order": "All arms have the same first batch at each of 3 seeds, by hash.",
        "Text": "The same for all runs: data hash.",
        "Token budget": "All 6 runs done saw 409,600 tokens in 200 steps.",
        "Hardware": "The same for all runs: device cpu x86_64 AVX512, world size 1.",
        "Software": "The same for all runs: commit abc, diff hash, environment.",
        "Tuning": "No optimizer was tried at two learning rates in this store. Tried in this store, of muon: 1 "
        "learning rate in 1 setting, 3 runs here and 0 elsewhere; adamw: 1 learning rate in 1 setting, 3 runs here and "
        "0 elsewhere. What was tried in other stores is not known.",
        "Excluded runs": "None: every run that ended is in the numbers.",
    }
    assert [term for term, check in found.items() if check.is_fine is not True] == ["Tuning"]
    assert found["Tuning"].is_fine is None


def test_what_arms_do_not_share_is_named(tmp_path: Path) -> None:
    runs = with_facts(known_runs(), **LENGTH)
    for run in runs:
        if run.optimizer == "adamw":
            run.facts |= {"device": "H100", "tokens": 100 * 2048, "steps": 100, "diff_hash": "d1f"}
            run.facts |= {"first_batch_hash": "other"} if run.seed == 42 else {}
    runs = [run for run in runs if (run.optimizer, run.seed) != ("adamw", 256)]
    found = checks(write_store(tmp_path, runs))
    assert found["Seeds"].text == "Arms are done at other seeds than others: muon: 42, 137, 256; adamw: 42, 137."
    assert found["Data order"].text == "Arms differ in the first batch at seed 42."
    assert found["Initial weights"].is_fine
    assert found["Token budget"].text == (
        "Runs were trained for unequal lengths: 204,800 tokens in 100 steps (adamw: 2 runs); 409,600 tokens in 200 "
        "steps (muon: 3 runs)."
    )
    assert found["Hardware"].text == "Runs differ in their devices (muon: cpu x86_64 AVX512; adamw: H100)."
    assert found["Software"].text == "Runs differ in their states of uncommitted changes (2 of them)."
    wrong = ("Seeds", "Data order", "Token budget", "Hardware", "Software")
    assert [found[term].is_fine for term in wrong] == [False] * len(wrong)


def test_runs_that_are_in_no_mean_are_listed_with_their_reasons(tmp_path: Path) -> None:
    runs = with_facts(demo_runs())
    runs[0].val = loss_curve(math.nan)
    early = {"error": "early stopping: asha ended it at step 40"}
    runs.append(FakeRun("orthonoise", 7, loss_curve(3.9, (0, 20, 40)), "stopped", block="noise", facts=early))
    rows = {
        row["run_id"].rpartition("-")[0]: row for row in excluded(write_store(tmp_path, runs, unstarted=2)).to_dicts()
    }
    assert {run: row["reason"] for run, row in rows.items()} == {
        "muon-s42": "done without a positive, finite val_loss",
        "isotropic-s137": "diverged: non-finite loss at step 71",
        "isotropic-s256": "failed: RuntimeError: <disk> full",
        "orthonoise-s7": "stopped early: asha ended it at step 40",
    }
    assert rows["isotropic-s137"]["arm"] == "isotropic"
    text = checks(Folder(tmp_path))["Excluded runs"].text
    assert text.startswith("4 runs: 1 done without a positive, finite val_loss (muon-s42-0badcafe); 1 diverged")


def test_runs_that_are_no_longer_listed_are_excluded_ones(tmp_path: Path) -> None:
    storage = write_store(tmp_path, with_facts(known_runs()))
    kept = [{"run_id": r.run_id, "block": r.block, "role": r.role, "arm": r.optimizer} for r in known_runs()][:5]
    write_sweep(storage, "demo", kept, number=2)
    assert excluded(storage).select("seed", "status", "reason").rows() == [
        (256, "done", "the sweep no longer lists it")
    ]
    assert not checks(storage)["Excluded runs"].is_fine


def test_tuning_counts_the_learning_rates_of_the_whole_store(tmp_path: Path) -> None:
    storage = write_store(tmp_path, with_facts(known_runs()))
    for number, lr in enumerate((0.1, 0.2, 0.3)):
        facts = {"lr": lr, "arm_id": f"muon-{number}"}
        write_run(storage, FakeRun("muon", 1000 + number, {}, with_layers=False, facts=facts))
    view = open_store(storage).sweep("demo")
    muon, adamw = tuning(view, members_of(view)).rows()
    assert muon == ("muon", 1, 3, 3, 4, 4)
    assert adamw == ("adamw", 1, 3, 0, 1, 1)
    assert checks(storage)["Tuning"].is_fine is False


def test_one_optimizer_was_not_tuned_more_than_another(tmp_path: Path) -> None:
    runs = [FakeRun("muon", seed, loss_curve(3.0), role="baseline", with_layers=False) for seed in (1, 2)]
    tuned = checks(write_store(tmp_path, runs))["Tuning"]
    assert tuned.is_fine
    assert tuned.text.startswith("One optimizer, so none was tuned more than another.")


@pytest.mark.parametrize("hidden", ["init_hash", "device", "commit"])
def test_what_the_store_does_not_tell_is_said_to_be_unknown(tmp_path: Path, hidden: str) -> None:
    term = {"init_hash": "Initial weights", "device": "Hardware", "commit": "Software"}[hidden]
    found = checks(write_store(tmp_path, with_facts(known_runs(), **LENGTH | {hidden: None})))
    assert (found[term].text, found[term].is_fine) == ("No run tells it.", None)
    some = with_facts(known_runs(), **LENGTH)
    some[0].facts[hidden] = None
    partly = checks(write_store(tmp_path / "some", some))[term]
    assert partly.is_fine is None
    assert partly.text.endswith(". Unknown for 1 of 6 runs.")


def test_a_sweep_that_nobody_began_has_every_term(tmp_path: Path) -> None:
    storage = write_store(tmp_path, [FakeRun("muon", 1, {}, "failed", with_layers=False)])
    listed = [{"run_id": "muon-s5", "block": "a", "role": "baseline", "arm": "muon"}]
    write_sweep(storage, "demo", listed, number=2)
    found = checks(storage)
    assert [check.is_fine for check in found.values()] == [None] * 8 + [False]  # the failed run was taken out
    assert found["Seeds"].text == "No run is done."


def test_runs_without_seeds_are_counted(tmp_path: Path) -> None:
    runs = with_facts([FakeRun("muon", seed, loss_curve(3.0), role="baseline") for seed in (1, 2)])
    for run in runs:
        run.facts["seed"] = None
    view: Store = open_store(write_store(tmp_path, runs)).sweep("demo")
    assert view.record is not None
    assert checks(Folder(tmp_path))["Seeds"] == Check("Seeds", "muon: 2 runs without a seed.", False)
