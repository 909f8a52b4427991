"""What becomes of a run that was stopped early: in the store, the next plan, the answer, and once it may go on."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.sweeps import sweep_file

from analysis.store import open_store
from analysis.summary import summarize
from muon_core.store.folder import Folder
from muon_core.store.sweeps import write_sweep
from muon_core.train import train
from ray_jobs.cli.main import main
from ray_jobs.in_process import run_here
from ray_jobs.sweep_plan import plan_sweep, sweep_record
from search_spaces.plan import Plan
from search_spaces.spec import Resources, load_spec

pytestmark = pytest.mark.slow
REASON = "early stopping: too bad"
BLOCKS = [
    {"name": "base", "role": "baseline", "optimizer": "muon"},
    {"name": "rates", "optimizer": "muon", "grid": {"lr": [0.01, 0.05]}},
]
RULE = {"scheduler": "asha", "grace_steps": 4}


@pytest.fixture
def stopped(tmp_path: Path, small: dict[str, Any]) -> Plan:
    """A sweep of two seeds; of the arm with lr 0.05, one was stopped after 5 of 8 steps, the other is done."""
    storage = Folder(tmp_path / "results")
    planned = plan_sweep(load_spec(str(sweep_file(tmp_path, small, BLOCKS, early_stopping=RULE))), storage)
    write_sweep(storage, sweep_record(planned))
    *others, last = planned.runs
    run_here([run.config for run in others], storage, Resources())
    outcome = train(last.config, storage, report=lambda progress: progress.step < 5 or REASON)
    assert (outcome.status, outcome.steps, outcome.error) == ("stopped", 5, REASON)
    return planned


def test_it_is_left_by_the_next_call_and_in_no_mean(
    stopped: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, store = str(tmp_path / "sweep.yaml"), str(tmp_path / "results")
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "plan", spec, "--store", store])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert "1 done, 1 stopped early" in shown.out
    assert "to run: 0 runs" in shown.out
    assert shown.err.startswith("next: muon report test ")
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "run", spec, "--store", store])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("test: 6 runs (5 done, 1 stopped early), 0 to train\nnext: muon report test ")
    assert "warning: 1 run was stopped early and is in no mean" in shown.out
    assert "of 2 seeds 1 stopped early" in shown.out

    summary = summarize(open_store(store).sweep("test"))
    _, whole, half = summary.arms
    assert (half.counts["stopped early"], len(half.values), half.verdict) == (1, 1, "not resolved")
    assert half.of_survivors
    assert not whole.of_survivors
    assert summary.counts == dict.fromkeys(summary.counts, 0) | {"done": 5, "stopped early": 1}


def test_it_goes_on_from_its_checkpoint_once_the_file_has_no_early_stopping(
    stopped: Plan, tmp_path: Path, small: dict[str, Any]
) -> None:
    storage = Folder(tmp_path / "results")
    planned = plan_sweep(load_spec(str(sweep_file(tmp_path, small, BLOCKS))), storage)
    assert [run.run_id for run in planned.to_run] == [stopped.runs[-1].run_id]
    (state,) = run_here([planned.to_run[0].config], storage, Resources())
    assert state.status == "done"
    (entry,) = [entry for entry in storage.list(f"ledger/{state.run_id}/") if "00002." in entry[0]]
    assert json.loads(storage.get(entry[0]))["first_step"] == 5
    assert not summarize(open_store(tmp_path / "results").sweep("test")).counts["stopped early"]


def test_without_ray_early_stopping_is_refused_in_one_line(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = sweep_file(tmp_path, small, BLOCKS, early_stopping=RULE)
    line = next(n for n, text in enumerate(spec.read_text().splitlines(), 1) if text.startswith("early_stopping:"))
    with pytest.raises(SystemExit) as refused:
        main(["sweep", "run", str(spec), "--store", str(tmp_path / "results"), "--in-process"])
    assert refused.value.code == 2
    assert capsys.readouterr().err == (
        f"muon: {spec}:{line}: early_stopping: goes through Ray Tune, which --in-process does without, so all runs "
        "would be complete; drop one of them\n"
    )
    assert not (tmp_path / "results").exists()
