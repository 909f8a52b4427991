"""A sweep without Ray: `run_here` and `muon sweep run --in-process`, up to the answer and the report."""

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from support.sweeps import sweep_file

from analysis.store import open_store
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.store.run_log import LogReader
from muon_core.throughput import COLUMNS
from muon_core.train import train
from ray_jobs.cli.main import main
from ray_jobs.in_process import run_here
from ray_jobs.run_queue import RunState
from ray_jobs.terms import Terms
from search_spaces.spec import Resources

pytestmark = pytest.mark.slow
TIMING = ("attempt", "step_time_s", "tokens_per_s", "elapsed_s", *COLUMNS)


def rows(store: Path, table: str) -> pl.DataFrame:
    return open_store(store).table(table).drop(TIMING, strict=False).sort("run_id", "seq").collect()


@pytest.fixture
def runs(small: dict[str, Any]) -> list[RunConfig]:
    """One that is done, one that diverges, one that cannot be built, and one after it."""
    hot = {"optimizer": {"name": "adamw", "lr": 1e30, "embedding_lr": 1e30}, "schedule": {"warmup_steps": 0}}
    huge = {"model": small["model"] | {"d_ff": 10**12}}
    return [RunConfig.model_validate(small | changes) for changes in ({"seed": 1}, hot, huge, {"seed": 2})]


def test_runs_end_as_they_would_on_ray_one_after_another(tmp_path: Path, runs: list[RunConfig]) -> None:
    states = run_here(runs, Folder(tmp_path), Resources())
    assert [state.run_id for state in states] == [run.run_id for run in runs]
    assert [state.status for state in states] == ["done", "diverged", "failed", "done"]
    assert [state.starts for state in states] == [1, 1, 1, 1]
    stored = dict(open_store(tmp_path).runs.select("run_id", "status").collect().iter_rows())
    assert stored == {state.run_id: state.status for state in states}
    errors = dict(open_store(tmp_path).runs.select("run_id", "error").collect().iter_rows())
    assert errors[runs[0].run_id] is states[0].error is None
    assert errors[runs[1].run_id] == states[1].error == "gradient norm nan at step 1"
    assert states[2].error is not None
    assert states[2].error.startswith("Traceback")
    assert errors[runs[2].run_id].splitlines()[-1] == states[2].error.splitlines()[-1]
    for before, after in itertools.pairwise(states):
        assert before.ended_at is not None
        assert before.ended_at <= after.submitted_at
    assert states[0].first_step_at is not None
    assert states[2].first_step_at is None


def test_a_run_among_others_has_the_rows_of_one_alone(tmp_path: Path, small: dict[str, Any]) -> None:
    """What a process keeps from run to run must not show: the default dtype, the global generator, the threads."""
    noise = {"optimizer": {"name": "orthonoise", "alpha": 0.1}}
    pair = [RunConfig.model_validate(small | {"seed": 1}), RunConfig.model_validate(small | noise)]
    threads = torch.get_num_threads()
    torch.manual_seed(9)
    torch.set_default_dtype(torch.float64)  # as code before this call may have left it
    run_here(pair, Folder(tmp_path / "pair"), Resources(cpus_per_worker=threads))
    assert torch.get_default_dtype() == torch.float32
    for run in pair:
        train(run, Folder(tmp_path / "alone"))
    for table in ("train", "val", "layers"):
        assert rows(tmp_path / "pair", table).equals(rows(tmp_path / "alone", table)), table


def test_a_run_computes_with_the_threads_of_a_worker_and_gives_them_back(tmp_path: Path, run_config: RunConfig) -> None:
    before, seen = torch.get_num_threads(), set[int]()
    run_here(
        [run_config],
        Folder(tmp_path),
        Resources(cpus_per_worker=3.5),
        watch=lambda _: seen.add(torch.get_num_threads()),
    )
    assert seen == {3}
    assert torch.get_num_threads() == before


def test_who_watches_sees_every_run_begin_and_end(tmp_path: Path, small: dict[str, Any]) -> None:
    pair = [RunConfig.model_validate(small | {"seed": seed}) for seed in (1, 2)]
    seen: list[list[tuple[str, str]]] = []
    run_here(
        pair, Folder(tmp_path), Resources(), watch=lambda states: seen.append([(s.run_id, s.status) for s in states])
    )
    first, second = (run.run_id for run in pair)
    assert seen[0] == [(first, "running")]
    assert [(first, "done")] in seen
    assert [(first, "done"), (second, "running")] in seen
    assert seen[-1] == [(first, "done"), (second, "done")]


def test_who_watches_sees_a_run_begin_before_its_model_is_made(tmp_path: Path, runs: list[RunConfig]) -> None:
    cannot_be_built, seen = runs[2], list[tuple[str, bool]]()
    run_here(
        [cannot_be_built],
        Folder(tmp_path),
        Resources(),
        watch=lambda states: seen.append((states[-1].status, states[-1].attempt is not None)),
    )
    assert seen == [("running", True), ("failed", True)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_starts_no_other(tmp_path: Path, small: dict[str, Any], number: int) -> None:
    """The run saves itself first; the same call goes on where it stopped."""
    pair = [RunConfig.model_validate(small | {"seed": seed, "steps": 12}) for seed in (1, 2)]
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(states: list[RunState]) -> None:
        if states[-1].status == "running":
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        run_here(pair, Folder(tmp_path), Resources(), watch=interrupt)
    runs = open_store(tmp_path).runs.collect()
    assert runs.select("run_id", "status").rows() == [(pair[0].run_id, "stopped")]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [state.status for state in run_here(pair, Folder(tmp_path), Resources())] == ["done", "done"]
    assert rows(tmp_path, "train").filter(run_id=pair[0].run_id)["step"].to_list() == list(range(1, 13))


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(workers=2), r"^resources\.workers is 2: without Ray a run has one; set it to 1$"),
        (Resources(gpus_per_worker=1), r"^a run needs 1 GPUs, this machine has 0; ask for none$"),
    ],
    ids=["workers", "gpus"],
)
def test_what_this_process_cannot_offer_is_refused(
    tmp_path: Path, run_config: RunConfig, resources: Resources, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        run_here([run_config], Folder(tmp_path), resources)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_trained_again_when_asked_for(tmp_path: Path, runs: list[RunConfig]) -> None:
    done, diverged = runs[:2]
    run_here([done, diverged], Folder(tmp_path), Resources())
    run_here([done, diverged], Folder(tmp_path), Resources(), Terms(again=[diverged.run_id]))
    attempts = dict(open_store(tmp_path).runs.select("run_id", "attempts").collect().iter_rows())
    assert attempts == {done.run_id: 1, diverged.run_id: 2}


def test_a_run_that_fails_leaves_its_traceback_and_quiet_ones_no_log(tmp_path: Path, runs: list[RunConfig]) -> None:
    states = run_here(runs, Folder(tmp_path), Resources())
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {runs[2].run_id}
    (piece,) = LogReader(Folder(tmp_path), runs[2].run_id).read()
    assert piece.data.decode().startswith("Traceback (most recent call last):\n")
    assert states[2].error is not None
    assert piece.data.decode().splitlines()[-1] == states[2].error.splitlines()[-1]


# ---- the command


def sweep(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    """Exit code, stdout and stderr of `muon` in this process."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code, *capsys.readouterr()


def test_a_sweep_ends_with_an_answer_and_a_report_and_repeats_nothing(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two arms, two seeds, and an arm whose runs cannot be built: they fail, are recorded, and the others go on."""
    blocks = [
        {"name": "muon", "role": "baseline", "optimizer": "muon"},
        {"name": "adamw", "optimizer": "adamw"},
        {"name": "huge", "optimizer": "muon", "set": {"model.d_ff": 10**12}},
    ]
    spec, store = str(sweep_file(tmp_path, small, blocks)), tmp_path / "results"
    where = ["--store", str(store)]
    run = ["sweep", "run", spec, "--in-process", *where]
    code, out, err = sweep(capsys, "sweep", "plan", spec, "--json", *where)
    assert code == 0, err
    assert len(json.loads(out)["to_run"]) == 6

    code, answer, err = sweep(capsys, *run)
    assert code == 3, err
    assert not [word for word in ("WARN", "Ray", "Traceback", "INFO") if word in err], err
    assert "training 6 runs in this process ...\n" in err
    assert "failed" in err
    opened = open_store(store)
    runs = opened.sweep("test").runs.collect()
    by_block = runs.group_by("block").agg(pl.col("status").sort()).sort("block").rows()
    assert by_block == [("adamw", ["done"] * 2), ("huge", ["failed"] * 2), ("muon", ["done"] * 2)]
    assert runs.filter(pl.col("block") == "huge")["error"].str.contains("Traceback").all()

    plain = pl.read_parquet(f"{store}/final/table=val/**/*.parquet", hive_partitioning=True)
    ours = opened.val.filter(pl.col("run_id").is_in(plain["run_id"].unique().implode())).collect()
    columns, order = ("run_id", "step", "val_loss"), ("run_id", "step")
    assert plain.sort(order).select(columns).equals(ours.sort(order).select(columns))
    final = plain.filter(pl.col("step") == 8).group_by("run_id").agg(pl.col("val_loss").first())
    for row in final.join(runs, on="run_id").iter_rows(named=True):
        assert row["val_loss"] == row["final_val_loss"]
    assert "2/2" in answer
    assert "0/2" in answer

    code, out, err = sweep(capsys, *run)
    assert code == 3, err  # the failed runs are still there
    assert "0 to train" in err
    assert open_store(store).runs.collect().equals(opened.runs.collect())
    assert out == answer

    code, _, err = sweep(capsys, "report", "test", "-o", str(tmp_path / "report"), *where)
    assert code == 0, err
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Does it hold?" in page
    assert page.count("<svg") >= 7  # curves, and a grid for each of six projections


def test_a_sweep_without_failures_ends_with_0_and_says_what_is_next(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that RAY_ADDRESS names is for others; the part that --limit leaves is trained next time."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    spec = str(sweep_file(tmp_path, small, [{"name": "muon", "role": "baseline", "optimizer": "muon"}]))
    run = ["sweep", "run", spec, "--in-process", "--store", str(tmp_path / "results")]
    code, _, err = sweep(capsys, *run, "--limit", "1")
    assert code == 0, err
    assert err.splitlines()[-1].startswith(f"next: muon sweep run {spec}")
    code, _, err = sweep(capsys, *run)
    assert code == 0, err
    assert "2 runs (1 done, 1 planned), 1 to train" in err
    assert err.splitlines()[-1].startswith("next: muon report test -o report")


def test_diverged_runs_are_trained_again_on_request_alone(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    hot = {"lr": 1e30, "embedding_lr": 1e30, "schedule.warmup_steps": 0}
    blocks = [
        {"name": "muon", "role": "baseline", "optimizer": "muon"},
        {"name": "hot", "optimizer": "adamw", "set": hot},
    ]
    spec, store = str(sweep_file(tmp_path, small, blocks, seeds=[1])), tmp_path / "results"
    run = ["sweep", "run", spec, "--in-process", "--store", str(store)]

    def attempts() -> dict[str, tuple[str, int]]:
        rows = open_store(store).runs.select("optimizer", "status", "attempts").collect().iter_rows()
        return {optimizer: (status, number) for optimizer, status, number in rows}

    for options, number in [([], 1), (["--retry", "failed"], 1), (["--retry", "failed", "--retry", "diverged"], 2)]:
        code, _, err = sweep(capsys, *run, *options)
        assert code == 0, err
        assert attempts() == {"muon": ("done", 1), "adamw": ("diverged", number)}
    assert "2 runs (1 done, 1 diverged), 1 to train" in err


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"resources": {"workers": 2}}, [], "resources.workers is 2: without Ray a run has one; set it to 1\n"),
        (
            {},
            ["--address", "auto"],
            "--in-process trains without Ray; leave --address out. See `muon sweep run --help`.\n",
        ),
    ],
    ids=["workers", "address"],
)
def test_what_takes_ray_is_one_line_and_nothing_is_written(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str], fields: Any, options: Any, message: str
) -> None:
    spec = str(sweep_file(tmp_path, small, [{"name": "muon", "role": "baseline", "optimizer": "muon"}], **fields))
    where = ["--store", str(tmp_path / "results")]
    assert sweep(capsys, "sweep", "run", spec, "--in-process", *options, *where) == (2, "", f"muon: {message}")
    assert not (tmp_path / "results").exists()
