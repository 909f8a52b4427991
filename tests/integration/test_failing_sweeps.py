"""Sweeps whose runs fail or diverge, without Ray: what is tried again, what is left out, and how the command ends."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.sweeps import sweep_file

from analysis.store import open_store
from muon_core import train as training
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from ray_jobs.cli.main import main
from ray_jobs.in_process import run_here
from ray_jobs.terms import Terms
from search_spaces.limits import Retries
from search_spaces.spec import Resources

pytestmark = pytest.mark.slow
MUON = {"name": "muon", "role": "baseline", "optimizer": "muon"}
HUGE = {"name": "huge", "optimizer": "muon", "set": {"model.d_ff": 10**12}}  # cannot be built
HOT = {"name": "hot", "optimizer": "adamw", "set": {"lr": 1e30, "embedding_lr": 1e30, "schedule.warmup_steps": 0}}


@pytest.fixture
def sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the sweep file and returns exit code and stderr."""

    def run(spec: Path, *options: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as stop:
            main(["sweep", "run", str(spec), "--in-process", "--store", str(tmp_path / "results"), *options])
        return stop.value.code, capsys.readouterr().err

    return run


def tried(store: Path) -> dict[str, list[tuple[str, str | None]]]:
    """Status and failure of each attempt, by block."""
    rows = open_store(store).sweep("test").attempts.sort("block", "run_id", "attempt")
    found: dict[str, list[tuple[str, str | None]]] = {}
    for block, status, failure in rows.select("block", "status", "failure").collect().iter_rows():
        found.setdefault(block, []).append((status, failure))
    return found


def test_an_arm_whose_runs_die_alike_is_left_and_the_others_finish(
    tmp_path: Path, small: dict[str, Any], sweep: Any
) -> None:
    failed, done = ("failed", "out_of_memory"), ("done", None)
    blocks, results = [HUGE | {"role": "candidate"}, MUON], tmp_path / "results"
    spec = sweep_file(tmp_path, small, blocks, seeds=[1, 2, 3, 4], breaker={"same_error": 2})
    code, err = sweep(spec)
    assert code == 3, err
    assert tried(results) == {"huge": [failed] * 2, "muon": [done] * 4}
    (line,) = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert line.startswith(
        "left out: 2 runs: breaker: 2 runs of this arm died alike: muon_core.config.memory.DoesNotFit: "
    )
    assert "2 of 8 runs failed\nnext: muon failures test" in err
    assert "--retry failed" in err.splitlines()[-1]

    code, err = sweep(spec)  # as it was left
    assert (code, tried(results)["huge"]) == (3, [failed] * 2)
    assert "left out: 2 runs: breaker: " in err
    sweep_file(tmp_path, small, blocks, seeds=[1, 2, 3, 4, 5], breaker={"same_error": 2})
    code, err = sweep(spec, "--limit", "1")  # of what may start
    assert (code, tried(results)) == (3, {"huge": [failed] * 2, "muon": [done] * 5})
    sweep_file(tmp_path, small, blocks, seeds=[1, 2, 3, 4], breaker={"same_error": 2})
    code, err = sweep(spec, "--retry", "failed")  # which counts anew
    assert (code, len(tried(results)["huge"])) == (3, 4)
    assert "left out: 2 runs: breaker: " in err
    sweep_file(tmp_path, small, blocks, seeds=[1, 2, 3, 4], breaker={"same_error": None})
    assert sweep(spec)[0] == 3
    statuses = open_store(results).runs.filter(pl.col("status") == "failed").collect()
    assert statuses.height == 4


def test_a_run_that_diverged_counts_as_failed_or_ends_the_sweep_where_that_is_asked_for(
    tmp_path: Path, small: dict[str, Any], sweep: Any
) -> None:
    diverged, done = ("diverged", None), ("done", None)
    blocks, results = [HOT, MUON], tmp_path / "results"

    def spec(**fields: Any) -> Path:
        return sweep_file(tmp_path, small, blocks, seeds=[1], **fields)

    code, err = sweep(spec(stop=[{"when": "nonfinite", "action": "drain"}]))
    assert code == 3, err
    assert tried(results) == {"hot": [diverged]}
    assert "left out: 1 run: stop: adamw" in err
    assert "and `stop` drains the sweep then" in err
    assert "diverged, which `stop` counts as failed: gradient norm nan at step 1\n1 of 2 runs failed\n" in err
    code, err = sweep(spec(stop=[{"when": "nonfinite", "action": "fail"}]))
    assert code == 3, err
    assert tried(results) == {"hot": [diverged], "muon": [done]}
    assert "left out" not in err
    assert err.splitlines()[-1].endswith("--retry diverged --store " + str(results)), err
    code, err = sweep(spec(stop=[{"when": "spike", "action": "fail"}]))
    assert (code, "failed" in err) == (0, False)


def test_a_run_that_fails_is_tried_again_in_the_same_call_and_goes_on_from_its_checkpoint(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step fails twice; each time what was saved before it is taken up."""
    config = RunConfig.model_validate(small | {"checkpoint": {"every_steps": 1, "every_s": None}})
    step, failures = training._optimizer_step, [ValueError("once"), MemoryError("twice")]

    def failing(config: RunConfig, state: Any, *arguments: Any, **options: Any) -> Any:
        if state.step == 2 and failures:
            raise failures.pop(0)
        return step(config, state, *arguments, **options)

    monkeypatch.setattr(training, "_optimizer_step", failing)
    for program, status, starts in ((0, "failed", 1), (1, "done", 2)):
        terms = Terms(retries=Retries(program=program))
        (state,) = run_here([config], Folder(tmp_path), Resources(), terms)
        assert (state.status, state.starts) == (status, starts)
    attempts = open_store(tmp_path).attempts.sort("attempt").select("status", "failure", "first_step").collect()
    assert attempts.rows() == [("failed", "program", 0), ("failed", "out_of_memory", 2), ("done", None, 2)]
