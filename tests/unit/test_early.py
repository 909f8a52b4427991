"""First steps of arms: the largest gradient norm, what was not finite, spikes and steps that were skipped."""

import math
from pathlib import Path
from typing import Any

import pytest
from support.analysis_fixtures import FakeRun, demo_runs, loss_curve, put_final, write_attempt, write_store, write_sweep

from analysis.early import early_sentences, early_stability
from analysis.store import open_store
from analysis.summary import members_of
from muon_core.store.folder import Folder
from muon_core.tables import LAYERS, TABLES, TRAIN

STEPS = tuple(range(1, 101))


def store_of(folder: Path, norms: dict[tuple[str, int], dict[int, float]], **facts: Any) -> Folder:
    """Runs of 100 logged steps with gradient norm 1, but for those of `norms`."""
    runs = [FakeRun(name, seed, loss_curve(3.0), with_layers=False, facts=dict(facts)) for name, seed in norms]
    storage = write_store(folder, runs)
    for run, other in zip(runs, norms.values(), strict=True):
        rows = [
            {"run_id": run.run_id, "attempt": 1, "seq": i, "step": step, "tokens": step, "train_loss": 3.0}
            | {"grad_norm": other.get(step, 1.0)}
            for i, step in enumerate(STEPS)
        ]
        put_final(storage, TRAIN, write_attempt(storage, run), len(rows), rows)
    return storage


def stability(storage: Folder) -> dict[str, dict[str, Any]]:
    view = open_store(storage).sweep("demo")
    return {row["arm"]: row for row in early_stability(view, members_of(view)).iter_rows(named=True)}


def texts(storage: Folder) -> list[str]:
    view = open_store(storage).sweep("demo")
    return early_sentences(early_stability(view, members_of(view)))


def test_the_largest_early_norm_is_told_with_its_step_seed_and_the_later_median(tmp_path: Path) -> None:
    norms = {("muon", 1): {3: 4.0, 50: 90.0}, ("muon", 2): {7: 6.5}, ("adamw", 1): {}}
    storage = store_of(tmp_path, norms, loss_spikes=1, skipped_steps=0)
    found = stability(storage)
    muon = found["muon"]
    assert (muon["grad_norm"], muon["step"], muon["seed"], muon["times_later"]) == (6.5, 7, 2, 6.5)
    assert (muon["runs"], muon["first_steps"], muon["not_finite"]) == (2, 10, 0)
    assert (muon["loss_spikes"], muon["skipped_steps"], muon["nonfinite_momenta"]) == (2, 0, None)
    assert found["adamw"]["grad_norm"] == 1.0
    assert texts(store_of(tmp_path / "clean", {("adamw", 1): {}}, loss_spikes=0, skipped_steps=0)) == [
        "adamw: gradient norm up to 1 in the first 10 steps (step 1, seed 1), 1 times the run's later median; all "
        "losses and norms finite, no loss spike, no step skipped, in 1 run."
    ]
    assert texts(storage)[0] == (
        "muon: gradient norm up to 6.5 in the first 10 steps (step 7, seed 2), 6.5 times the run's later median; 2 "
        "loss spikes, in 2 runs."
    )


def test_norms_that_are_not_finite_are_counted_and_are_no_largest(tmp_path: Path) -> None:
    storage = store_of(tmp_path, {("muon", 1): {2: math.nan, 3: math.inf, 4: 5.0, 60: math.nan}})
    muon = stability(storage)["muon"]
    assert (muon["grad_norm"], muon["step"], muon["not_finite"]) == (5.0, 4, 2)
    assert texts(storage) == [
        "muon: gradient norm up to 5 in the first 10 steps (step 4, seed 1), 5 times the run's later median; 2 logged "
        "steps not finite, in 1 run."
    ]


def test_peaks_of_matrices_and_momenta_come_from_their_tables(tmp_path: Path) -> None:
    storage = store_of(tmp_path, {("muon", 1): {}, ("adamw", 1): {}})
    run = FakeRun("muon", 1, {})
    place = {"run_id": run.run_id, "attempt": 1, "tokens": 0, "layer": 0, "projection": "q"}
    peaks = [
        place | {"seq": i, "step": step, "grad_norm_peak": peak} for i, (step, peak) in enumerate(((5, 2.5), (50, 9.0)))
    ]
    put_final(storage, LAYERS, write_attempt(storage, run), 2, peaks)
    momenta = [place | {"seq": i, "step": step, "num_nonfinite": 3} for i, step in enumerate((5, 50))]
    put_final(storage, TABLES["health"], write_attempt(storage, run), 2, momenta)
    found = stability(storage)
    assert (found["muon"]["matrix_grad_norm"], found["muon"]["nonfinite_momenta"]) == (2.5, 6)
    assert (found["adamw"]["matrix_grad_norm"], found["adamw"]["nonfinite_momenta"]) == (None, None)
    assert "6 entries of momenta not finite" in texts(storage)[0]


def test_arms_without_logged_norms_tell_how_their_runs_ended(tmp_path: Path) -> None:
    storage = write_store(tmp_path, demo_runs(), unstarted=1)
    found = stability(storage)
    isotropic = found["isotropic"]
    assert (isotropic["runs"], isotropic["diverged"], isotropic["failed"]) == (3, 1, 1)
    assert (isotropic["grad_norm"], isotropic["loss_spikes"]) == (None, None)
    assert texts(storage)[-1] == "isotropic: no gradient norm was logged; 1 run diverged, 1 run failed, in 3 runs."


@pytest.mark.parametrize("listed", [[], [{"run_id": "muon-s5", "block": "a", "role": "baseline", "arm": "muon"}]])
def test_a_sweep_that_nobody_began_has_no_rows(tmp_path: Path, listed: list[dict[str, str]]) -> None:
    storage = write_store(tmp_path, [FakeRun("muon", 1, {}, "failed", with_layers=False)])
    write_sweep(storage, "demo", listed, number=2)
    assert stability(storage) == {}
    assert texts(storage) == []
