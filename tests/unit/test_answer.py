"""The one sentence on a whole sweep, in every state that a sweep can be in."""

import math
from pathlib import Path

import pytest
from support.analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, write_store

from analysis.answer import answer
from analysis.store import open_store
from analysis.summary import summarize


def answer_to(folder: Path, runs: list[FakeRun], **options: object) -> str:
    write_store(folder, runs, **options)  # type: ignore[arg-type]
    return answer(summarize(open_store(folder).sweep("demo")))


def base(seed: int = 1, loss: float = 3.0) -> FakeRun:
    return FakeRun("muon", seed, loss_curve(loss), role="baseline")


def test_one_candidate_is_told_in_full(tmp_path: Path) -> None:
    told = answer_to(tmp_path, known_runs())
    assert told.startswith("muon is lower than adamw: −0.0644 nats (−1.92 %), 95 % interval ")
    assert told.endswith(".")


def test_several_are_counted_and_the_best_estimate_is_not_confirmed(tmp_path: Path) -> None:
    told = answer_to(tmp_path / "worse", demo_runs())
    assert told == (
        "val_loss against muon: of 3 arms 1 is higher (adamw), 2 are not resolved; none has a better estimate "
        "than muon."
    )
    better = [base(), FakeRun("adamw", 1, loss_curve(3.3)), FakeRun("lion", 1, loss_curve(2.7))]
    told = answer_to(tmp_path / "better", better)
    assert told == (
        "val_loss against muon: of 2 arms 2 are not resolved; the best estimate is lion's, −10.00 %, not confirmed on "
        "fresh seeds."
    )


def test_results_of_gates_are_counted(tmp_path: Path) -> None:
    gate = {"name": "sane", "kind": "non_inferior", "of": "block:noise", "margin": "5%"}
    told = answer_to(tmp_path, demo_runs(), spec={"version": 1, "name": "demo", "gates": [gate]})
    assert told.endswith("; gates: 1 PASS.")


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([base()], "muon reaches val_loss 3.0000 (nats per token) in a single run, and there is no other arm"),
        ([FakeRun("muon", 1, {}, "failed", "baseline")], "No answer: no run is done with a finite val_loss."),
        ([FakeRun("muon", 1, {0: 7.0}, None, "baseline")], "No answer yet: no run is done with a finite val_loss."),
        ([FakeRun("muon", 1, {0: math.nan}, role="baseline")], "No answer: no run is done with a finite val_loss."),
        (
            [FakeRun("muon", 1, loss_curve(3.0)), FakeRun("adamw", 1, loss_curve(3.5))],
            "Nothing is compared, as no arm is the baseline; the best mean is that of muon, val_loss 3.0000",
        ),
        (
            [base(), FakeRun("adamw", 2, loss_curve(3.5))],
            "adamw is not resolved against muon, which shares no finished seed with it; val_loss 3.5000 in a",
        ),
        (
            [base(), FakeRun("adamw", 1, {}, "failed")],
            "adamw: no run is done with a positive, finite val_loss, so nothing is known; of 1 seed 1 failed",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said(tmp_path: Path, runs: list[FakeRun], expected: str) -> None:
    assert answer_to(tmp_path, runs).startswith(expected)
