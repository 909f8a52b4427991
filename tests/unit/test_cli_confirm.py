"""`muon sweep confirm`: the file that tries the best arms of a sweep on fresh seeds."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import test_cli
from support.analysis_fixtures import FakeRun, write_store
from test_cli import Muon
from test_names import trained

from muon_core.store.folder import Folder
from muon_core.store.sweeps import SweepRecord, SweepRun, write_sweep
from ray_jobs.sweep_plan import sweep_record
from search_spaces.expand import PlannedRun, expand
from search_spaces.plan import plan
from search_spaces.spec import load_spec, parse_spec

muon = test_cli.muon
TEXT = """\
version: 1
name: hunt
question: Which rate?
seeds: [4, 1]
constants: {steps: 90, tracking.eval_every: 10, alpha: 0.1}
blocks:
  - {name: base, role: baseline, optimizer: muon, set: {momentum: 0.9}}
  - name: rates
    optimizer: muon
    set: {weight_decay: 0.1}
    grid: {lr: [0.01, 0.03]}
    zip: {momentum: [0.9, 0.99], nesterov: [true, false]}
  - {name: noise, optimizer: orthonoise}
  - {name: drawn, optimizer: muon, sample: {n: 2, lr: "loguniform(0.1, 1)"}}
  - {name: plain, role: control, optimizer: muon, grid: {nesterov: [true, false]}}
gates:
  - {name: sane, kind: non_inferior, of: "*", margin: 5%}
  - {name: fast, kind: superior, of: block:rates}
resources: {max_concurrent: 2}
early_stopping: {scheduler: asha, grace_steps: 10, across_optimizers: true}
"""
ENDED = {"status": "stopped", "error": "early stopping: too bad"}
Losses = Callable[[PlannedRun], float | None]


def store(losses: Losses, text: str = TEXT, statuses: Mapping[int, str] | None = None) -> list[PlannedRun]:
    """The sweep in ./results with the final losses of its runs (None: not begun); their plan."""
    planned = plan(parse_spec(text), {})
    runs: list[FakeRun] = []
    for number, run in enumerate(planned.runs):
        if (loss := losses(run)) is not None:
            fake = trained(run, loss)
            fake.status = (statuses or {}).get(number, "done")
            runs.append(fake)
    storage = write_store(Path("results"), runs) if runs else Folder(Path("results"))
    storage.delete([key for key, _ in storage.list("sweeps/demo/")])
    write_sweep(storage, sweep_record(planned))
    return list(planned.runs)


def by_rate(run: PlannedRun) -> float:
    """The lower the rate the better; noise is best of all, and the baseline better than any."""
    optimizer = run.config.optimizer
    if run.block == "base":
        return 1.0 + run.config.seed / 100
    return (2.0 if run.block == "noise" else 3.0 + optimizer.lr + optimizer.momentum / 1000) + run.config.seed / 100


def test_the_file_has_the_best_arms_on_fresh_seeds_beside_baseline_and_controls(muon: Muon) -> None:
    runs = store(by_rate)
    ended = muon("sweep", "confirm", "hunt", "--top", "3", "--fresh-seeds", "2")
    assert (ended.code, ended.out) == (0, "hunt-confirm.yaml\n"), ended.err
    assert ended.err.splitlines() == [
        "orthonoise-a0.1: val_loss 2.0250, 2 of 2 seeds",
        *[f"{name}, 2 of 2 seeds" for name in _told(runs, [(0.01, 0.9), (0.01, 0.99)])],
        "no arm has a better estimate than muon: confirmed would be the least bad",
        "gate fast is left out: it is about blocks that the file does not have",
        "next: muon sweep plan hunt-confirm.yaml",
    ]
    spec = load_spec("hunt-confirm.yaml")
    assert (spec.name, spec.question, spec.seeds) == (
        "hunt-confirm", "Do the 3 best arms of hunt hold on fresh seeds?", [5, 6]
    )  # fmt: skip
    assert spec.confirms == "hunt"
    assert [(block.name, block.role, block.set) for block in spec.blocks] == [
        ("base", "baseline", {"momentum": 0.9}),
        ("noise", "candidate", {}),
        ("rates-2", "candidate", {"weight_decay": 0.1, "lr": 0.01, "momentum": 0.9, "nesterov": True}),
        ("rates-3", "candidate", {"weight_decay": 0.1, "lr": 0.01, "momentum": 0.99, "nesterov": False}),
        ("plain", "control", {}),
    ]
    assert spec.blocks[-1].grid == {"nesterov": [True, False]}
    assert (spec.early_stopping, [gate.name for gate in spec.gates]) == (None, ["sane"])
    assert spec.resources.max_concurrent == 2
    arms = {run.arm_id for run in runs}
    assert {run.arm_id for run in expand(spec)} <= arms
    assert muon("sweep", "plan", "hunt-confirm.yaml").code == 0


def _told(runs: list[PlannedRun], chosen: list[tuple[float, float]]) -> list[str]:
    """What is said of the arms of block rates with such lr and momentum: name and mean."""
    names = {run.arm_id: run for run in runs if run.block == "rates"}
    arms = plan(parse_spec(TEXT), {}).names
    found = []
    for lr, momentum in chosen:
        (run,) = [
            run for run in names.values() if (run.config.optimizer.lr, run.config.optimizer.momentum) == (lr, momentum)
        ]
        found.append(f"{arms[run.arm_id]}: val_loss {3 + lr + momentum / 1000 + 0.025:.4f}")
    return found


def test_one_arm_drawn_at_random_is_written_as_it_was_drawn(muon: Muon) -> None:
    best = max(
        (run for run in expand(parse_spec(TEXT)) if run.block == "drawn"), key=lambda run: run.config.optimizer.lr
    )
    store(lambda run: 1.0 if run.arm_id == best.arm_id else 2.0 + by_rate(run))
    ended = muon("sweep", "confirm", "hunt", "--top", "1", "--fresh-seeds", "1", "-o", "again.yaml")
    assert (ended.code, ended.out) == (0, "again.yaml\n"), ended.err
    spec = load_spec("again.yaml")
    assert spec.question == "Does the best arm of hunt hold on fresh seeds?"
    assert spec.blocks[1].set == {"lr": best.config.optimizer.lr}
    assert "alpha" not in spec.constants  # which only noise takes, and that is not among the blocks
    assert [run.arm_id for run in expand(spec) if run.block == "drawn-1"] == [best.arm_id]


def test_an_arm_that_lost_a_run_comes_after_those_that_did_not(muon: Muon) -> None:
    """Its mean is one of survivors."""
    runs = [run.block for run in expand(parse_spec(TEXT))]
    store(by_rate, statuses={runs.index("noise"): "diverged"})
    ended = muon("sweep", "confirm", "hunt", "--top", "1", "--fresh-seeds", "1")
    assert ended.err.startswith("muon-lr0.01 ")
    assert load_spec("hunt-confirm.yaml").blocks[1].name == "rates-1"


def test_a_file_that_is_there_is_not_written_over(muon: Muon) -> None:
    store(by_rate)
    Path("hunt-confirm.yaml").write_text("mine")
    refused = muon("sweep", "confirm", "hunt", "--top", "1", "--fresh-seeds", "1")
    assert (refused.code, refused.err) == (
        2, "muon: hunt-confirm.yaml is there already; name another file with -o\n"
    )  # fmt: skip
    assert Path("hunt-confirm.yaml").read_text() == "mine"
    lost = muon("sweep", "confirm", "hunt", "--top", "1", "--fresh-seeds", "1", "-o", "no/a.yaml")
    assert (lost.code, lost.err) == (
        2, "muon: no/a.yaml: there is no such folder; make it, or name another file with -o\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "top", "message"),
    [
        ("hunt", "9", "--top 9: only 7 arms of sweep 'hunt' have results; ask for fewer"),
        ("hunnt", "1", "no sweep 'hunnt' in {store}; it holds: hunt, old"),
        ("old", "1", "sweep 'old' was imported, it has no file whose arms could be run again"),
    ],
)
def test_what_cannot_be_confirmed_is_one_line(muon: Muon, name: str, top: str, message: str) -> None:
    store(by_rate)
    storage = Folder(Path("results"))
    run = SweepRun(run_id="muon-s42-0badcafe", block="b", role="baseline", arm="muon")
    write_sweep(storage, SweepRecord(sweep="old", spec={"imported": True}, runs=(run,)))
    refused = muon("sweep", "confirm", name, "--top", top, "--fresh-seeds", "1")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"muon: {message.format(store=Folder(Path('results')).url)}\n"
    assert not Path("hunt-confirm.yaml").exists()


def test_a_sweep_without_results_or_without_free_seeds_is_one_line(muon: Muon) -> None:
    largest = TEXT.replace("[4, 1]", json.dumps([2**63 - 2]))
    store(lambda run: by_rate(run) if run.role == "baseline" else None, largest)
    refused = muon("sweep", "confirm", "hunt", "--top", "1", "--fresh-seeds", "1")
    assert (refused.code, refused.err) == (
        2,
        "muon: no candidate of sweep 'hunt' has a result yet; run the file that `muon sweep show hunt` prints first\n",
    )  # fmt: skip
    store(lambda run: 2.0, largest)
    refused = muon("sweep", "confirm", "hunt", "--top", "1", "--fresh-seeds", "2")
    assert (refused.code, refused.err) == (
        2, f"muon: there are no 2 seeds after the largest one used, {2**63 - 2}; write the file by hand\n"
    )  # fmt: skip
    assert muon("sweep", "confirm", "hunt", "--top", "1", "--fresh-seeds", "1").code == 0
    assert load_spec("hunt-confirm.yaml").seeds == [2**63 - 1]
