"""What only a real Ray can show: warm slots, deaths of their processes, and a sweep that is interrupted and continued.

A Ray, and each worker group on it, costs ten CPU seconds and more to start, so these tests share what they can: one Ray
for the tests of slots, one list of runs on it that lives through every death, and one sweep of the command. They stand
in one file, which a parallel run of the suite gives to one worker: two Rays side by side starve each other.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import torch
from support.hf_models import LLAMA, planned, save
from support.processes import ask_family, find_family, wildcard_listeners
from support.same_rows import assert_same_rows, rows
from support.saved_runs import weights
from support.sweeps import MUON, muon, sweep_file

from analysis.store import open_store
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.store.run_log import LogReader
from muon_core.store.sweeps import read_sweep, write_sweep
from muon_core.train import train
from ray_jobs.cli.main import main
from ray_jobs.elsewhere import wait_for_others
from ray_jobs.in_process import run_here
from ray_jobs.run_queue import RunState
from ray_jobs.searching import Search
from ray_jobs.sweep_plan import plan_sweep, sweep_record
from ray_jobs.terms import Comparison, Terms
from search_spaces.early_stopping import EarlyStopping
from search_spaces.expand import expand
from search_spaces.limits import Retries
from search_spaces.spec import Resources, load_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]  # what is shared counts for the first
WORKER, DRIVER = "RayTrainWorker", "ray::ResourceTrainable"
TWO_WORKERS = Resources(workers=2, max_concurrent=1)
ONE_RETRY = Terms(retries=Retries(infrastructure=1))


# ---- slots


@dataclass
class Killer:
    """Kills a process of a run, once in each attempt and when that has trained a step, as often as it is to die."""

    deaths: dict[str, tuple[str, int]]
    """Run id to (title of the process that dies, how often)."""
    hanging: str
    """Run id of the one whose process is only stopped."""
    killed: Counter[str] = field(default_factory=Counter)
    died_in: set[str | None] = field(default_factory=set)
    """Attempts: what is known of a run's progress is that of the one before until the next has trained a step."""
    exposed: list[str] = field(default_factory=list)
    """Sockets that were open to others at the first death."""
    beside: list[str] = field(default_factory=list)
    """Command lines of all processes then."""

    def __call__(self, states: list[RunState]) -> None:
        for state in states:
            title, times = self.deaths.get(state.run_id, ("", 0))
            progress, is_due = state.progress, state.status == "running" and self.killed[state.run_id] < times
            if not is_due or not progress or progress.step < 1 or progress.attempt in self.died_in:
                continue
            if found := find_family(title):
                if not self.killed:
                    self.exposed = wildcard_listeners()
                    self.beside = ask_family(lambda process: " ".join(process.cmdline()))
                self.killed[state.run_id] += 1
                self.died_in.add(progress.attempt)
                os.kill(found[-1], signal.SIGSTOP if state.run_id == self.hanging else signal.SIGKILL)


@dataclass(frozen=True)
class Story:
    """Runs on warm slots with two workers each, one after another, and what became of them."""

    runs: dict[str, RunConfig]
    states: dict[str, RunState]
    killer: Killer
    store: Path


def story_runs(small: dict[str, Any]) -> dict[str, RunConfig]:
    """Short ones, and those that lose a worker, hang, lose one again and again, and lose the driver of their trial."""
    tracking = {"eval_every": 10, "track_every": 10, "spectra_every": 30, "flush_every_s": 0.1}
    saved = {"tracking": tracking, "checkpoint": {"every_steps": 7, "every_s": None}}
    noise = {"name": "orthonoise", "alpha": 0.1, "ns_dtype": "fp32"}
    fields: dict[str, dict[str, Any]] = {
        "muon": {"seed": 1},
        "adamw": {"seed": 2, "optimizer": {"name": "adamw"}},
        "loses a worker": {"seed": 3, "steps": 100, "tracking": {"eval_every": 50}},
        "orthonoise": {"seed": 4, "optimizer": {"name": "orthonoise"}},
        "isotropic": {"seed": 1, "optimizer": {"name": "isotropic"}},
        "hangs": {"seed": 8, "steps": 100, "tracking": {"eval_every": 50}},
        "doomed": {"seed": 5, "steps": 100_000, "tracking": {"eval_every": 100_000}},
        "loses its driver": {"seed": 6, "steps": 100, "optimizer": noise} | saved,
        "last": {"seed": 7},
    }
    return {name: RunConfig.model_validate(small | changes) for name, changes in fields.items()}


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """A Ray of this process, private as that of a sweep."""
    from ray_jobs.connection import connected

    with connected(None, TWO_WORKERS):
        yield


@pytest.fixture(scope="module")
def story(one_ray: None, small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Story:
    from ray_jobs import launch, watcher

    runs, store = story_runs(small), tmp_path_factory.mktemp("story")
    deaths = {"loses a worker": (WORKER, 1), "hangs": (WORKER, 1), "doomed": (WORKER, 2)}
    deaths["loses its driver"] = (DRIVER, 1)
    killer = Killer({runs[name].run_id: death for name, death in deaths.items()}, runs["hangs"].run_id)
    terms = Terms(retries=Retries(infrastructure=1, hang_after_s=20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watcher, "WATCH_EVERY_S", 0.1)  # the runs must still train when the killer comes
        states = launch.run_connected(list(runs.values()), Folder(store), TWO_WORKERS, terms, slots=1, watch=killer)
    assert killer.killed == {runs[name].run_id: times for name, (_, times) in deaths.items()}
    return Story(runs, dict(zip(runs, states, strict=True)), killer, store)


def test_runs_in_a_warm_slot_equal_fresh_ones_whatever_died_in_them(story: Story, tmp_path: Path) -> None:
    """Rows and weights bit for bit, also of the runs whose worker or driver was killed half way."""
    fresh = Folder(tmp_path)
    finished = [config for name, config in story.runs.items() if name != "doomed"]
    for config in finished:
        assert train(config.replace(micro_batches=2), fresh).status == "done"
    assert_same_rows(story.store, tmp_path, [config.run_id for config in finished])
    for config in finished:
        ours, theirs = weights(Folder(story.store), config), weights(fresh, config)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_killed_worker_costs_its_run_a_start_and_the_slot_goes_on(story: Story) -> None:
    before = ["muon", "adamw", "loses a worker", "orthonoise", "isotropic", "doomed"]
    assert [(story.states[name].status, story.states[name].starts) for name in before] == [
        ("done", 1), ("done", 1), ("done", 2), ("done", 1), ("done", 1), ("failed", 3)
    ]  # fmt: skip
    assert len({story.states[name].slot for name in before}) == 1
    attempts = dict(open_store(story.store).runs.select("run_id", "attempts").collect().iter_rows())
    twice = {"loses a worker", "hangs", "doomed", "loses its driver"}
    assert attempts == {config.run_id: 2 if name in twice else 1 for name, config in story.runs.items()}


def test_a_run_that_keeps_losing_its_worker_fails_and_the_next_goes_on(story: Story) -> None:
    errors = dict(open_store(story.store).runs.select("run_id", "error").collect().iter_rows())
    doomed = story.runs["doomed"].run_id
    assert errors.pop(doomed) == "a worker died 2 times in this run; `retries.infrastructure` allows 1"
    assert story.states["doomed"].error == "a worker died 2 times in this run; `retries.infrastructure` allows 1"
    assert set(errors.values()) == {None}


def test_what_ended_each_attempt_is_in_the_ledger(story: Story) -> None:
    rows = open_store(story.store).attempts.sort("attempt").select("run_id", "status", "failure").collect().rows()
    found = {name: [row[1:] for row in rows if row[0] == config.run_id] for name, config in story.runs.items()}
    lost, done = ("lost", "infrastructure"), ("done", None)
    assert found["muon"] == [done]
    assert found["loses a worker"] == found["loses its driver"] == [lost, done]
    assert found["hangs"] == [("lost", "hang"), done]
    assert found["doomed"] == [lost, ("failed", "infrastructure")]
    assert story.states["hangs"].failures == ["hang"]


def test_a_trial_whose_driver_was_killed_goes_on_in_another_slot_with_those_after_it(story: Story) -> None:
    orphan, last, first = (story.states[name] for name in ("loses its driver", "last", "muon"))
    assert (orphan.status, last.status) == ("done", "done")
    assert orphan.slot == last.slot != first.slot


def test_nothing_of_a_sweep_listens_beyond_loopback_but_the_rendezvous(story: Story) -> None:
    """Torch's rendezvous store offers no choice of address."""
    assert len(story.killer.exposed) <= 1
    assert all(WORKER in command for command in story.killer.exposed)


def test_a_sweep_starts_no_process_that_nobody_asks(story: Story) -> None:
    """Each loads Ray while the first run waits for its workers to do so."""
    titles = ("/autoscaler/", "/dashboard.py", "log_monitor.py", "SynchronizationActor")
    assert [command for command in story.killer.beside if any(title in command for title in titles)] == []
    assert any(WORKER in command for command in story.killer.beside)


def test_a_run_that_is_stopped_early_saves_itself_and_leaves_its_workers_warm(
    one_ray: None, small: dict[str, Any], tmp_path: Path
) -> None:
    """ASHA among three, after the baseline, which is the worst: with one slot the first of them goes to its end."""
    from ray_jobs import launch
    from ray_jobs.early_stopping import in_drawn_order

    rule = EarlyStopping(scheduler="asha", grace_steps=20)
    steps = 200
    fields = small | {"steps": steps, "tracking": {"eval_every": 10, "track_every": steps}}

    def runs_of(seed: int) -> tuple[list[RunConfig], Comparison]:
        rates = [1e-5, 0.02, 1e-4, 1.5e-4]
        configs = [
            RunConfig.model_validate(
                fields | {"seed": seed, "optimizer": {"name": "muon", "lr": lr, "embedding_lr": lr}}
            )
            for lr in rates
        ]
        comparison = Comparison(rule, {config.run_id for config in configs[1:]})
        return in_drawn_order(configs, comparison), comparison

    stories = (runs_of(seed) for seed in range(100))
    runs, comparison = next(story for story in stories if story[0][1].optimizer.lr == 0.02)
    states = launch.run_connected(runs, Folder(tmp_path), Resources(), Terms(comparison=comparison), slots=1)
    assert [state.status for state in states] == ["done", "done", "stopped", "stopped"]
    assert len({state.slot for state in states}) == 1
    assert [state.starts for state in states] == [1, 1, 1, 1]
    ends = open_store(tmp_path).runs.sort("started_at").select("run_id", "steps", "error").collect()
    assert ends["run_id"].to_list() == [run.run_id for run in runs]
    assert ends["steps"].to_list()[:2] == [steps, steps]
    assert all(20 <= made < steps for made in ends["steps"].to_list()[2:])
    assert [error and error.partition(":")[0] for error in ends["error"]] == [None, None, *["early stopping"] * 2]
    config = runs[2]  # it has a checkpoint, and goes on from there with the rows of a run that was never stopped
    (again,) = run_here([config], Folder(tmp_path), Resources())
    assert again.status == "done"
    assert rows(tmp_path, "train", [config.run_id])["step"].to_list() == list(range(1, steps + 1))


def test_a_hugging_face_model_has_the_rows_of_this_process(
    one_ray: None, small: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[hf]'")
    from ray_jobs import launch

    config = planned(small, save(tmp_path / "llama", "llama", LLAMA), steps=4)
    (state,) = launch.run_connected([config], Folder(tmp_path / "ray"), Resources(), Terms(), slots=1)
    assert (state.status, state.starts) == ("done", 1)
    train(config, Folder(tmp_path / "here"))
    assert_same_rows(tmp_path / "ray", tmp_path / "here", [config.run_id])


def test_a_search_chooses_for_warm_slots_and_goes_on_where_it_was(
    one_ray: None, small: dict[str, Any], tmp_path: Path
) -> None:
    """Two calls, the first limited and without Ray: none trains what the other did, and the last knew of all before."""
    from ray_jobs import launch

    sample = {"n": 7, "searcher": "optuna", "lr": "loguniform(1e-3, 1)"}
    blocks = [
        {"name": "base", "role": "baseline", "optimizer": "muon"},
        {"name": "rates", "optimizer": "muon", "sample": sample},
    ]
    spec, storage = load_spec(sweep_file(tmp_path, small, blocks, seeds=[1])), Folder(tmp_path / "store")

    def call(at_most: int, run: Callable[..., list[RunState]]) -> list[RunState]:
        planned = plan_sweep(spec, storage)
        write_sweep(storage, sweep_record(planned))
        terms = Terms(search=Search(planned.spec, storage, at_most))
        return run([planned_run.config for planned_run in planned.to_run], storage, Resources(), terms)

    on_ray = partial(launch.run_connected, slots=2)
    calls = [call(3, run_here), call(100, on_ray)]
    states = [state for each in calls for state in each]
    assert [len(each) for each in calls] == [4, 4]
    assert {(state.status, state.starts) for state in states} == {("done", 1)}
    assert len({state.run_id for state in states}) == 8
    assert [len({state.slot for state in each}) for each in calls] == [1, 2]
    record = read_sweep(storage, "test")
    assert record
    assert {run.run_id for run in record.runs} == {state.run_id for state in states}
    assert record.to_choose == 0
    assert call(100, on_ray) == []


# ---- a sweep of the command

LONG = 600  # steps: some seconds, in which the sweep has to be met and interrupted
BLOCKS = [
    {"name": "short", "role": "baseline", "optimizer": "muon"},
    {"name": "long", "optimizer": "adamw", "set": {"steps": LONG}},
    {"name": "huge", "optimizer": "muon", "set": {"model.d_ff": 10**12}},
]


def statuses(store: Path) -> dict[str, str]:
    """By block; of one seed each."""
    return dict(open_store(store).sweep("test").runs.select("block", "status").collect().iter_rows())


POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
FEW_FILES = ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh"]


def interrupt(command: list[str], store: Path, run_id: str, number: int) -> tuple[int, str]:
    """Start the sweep, send it a signal once `run_id` trains again, and return how it ended and what it said."""

    def attempts() -> int:
        return sum(run_id in key for key, _ in Folder(store).list("attempts/"))

    before = attempts()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while attempts() == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in family)
    begin = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - begin < 45
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    assert list(Path(tempfile.gettempdir()).glob(f"muon-{process.pid}-*")) == []
    return process.returncode, stderr


def test_a_signal_while_ray_starts_ends_a_sweep_in_one_line(tmp_path: Path, small: dict[str, Any]) -> None:
    """It comes while C++ connects to the Ray, to the process and to all its group, as shells and `timeout` send it."""
    spec = sweep_file(tmp_path, small, BLOCKS[:1])
    command = [MUON, "sweep", "run", str(spec), "--store", str(tmp_path / "store")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    connecting = f"muon-{process.pid}-*/r/session_2*/logs/python-core-driver*.log"
    while not list(Path(tempfile.gettempdir()).glob(connecting)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in family)
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    *_, opening, blank, last = stderr.splitlines()
    assert opening.startswith("starting Ray"), stderr
    assert (blank, last) == ("", "muon: interrupted; what is finished is kept, the same command continues")
    assert psutil.wait_procs(family, timeout=15)[1] == []
    assert list(Path(tempfile.gettempdir()).glob(f"muon-{process.pid}-*")) == []
    assert statuses(tmp_path / "store") == {}  # nothing began


def test_a_sweep_is_interrupted_beside_another_ray_continued_and_answered_with_the_rows_of_runs_in_this_process(
    tmp_path: Path,
    small: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    one_ray: None,
) -> None:
    """SIGTERM keeps the finished run and leaves no process, nor does SIGKILL; an arm that cannot be built fails.

    All beside another Ray on the machine, that of this process, in the oldest of locales, with few files to open.
    """
    for name, value in POSIX.items():
        monkeypatch.setenv(name, value)
    spec = sweep_file(tmp_path, small, BLOCKS, seeds=[1], resources={"max_concurrent": 1})
    store, here = tmp_path / "Läufe, 結果", tmp_path / "here"
    command = [*FEW_FILES, MUON, "sweep", "run", str(spec), "--store", str(store)]
    (long,) = [run.run_id for run in expand(load_spec(spec)) if run.config.steps == LONG]
    code, stderr = interrupt(command, store, long, signal.SIGTERM)
    assert code == 130, stderr
    assert "Traceback" not in stderr
    assert "the same command continues" in stderr
    assert statuses(store) == {"short": "done", "long": "stopped"}  # the next did not begin
    finished = open_store(store).sweep("test").runs.filter(pl.col("block") == "short").collect()

    assert interrupt(command, store, long, signal.SIGKILL)[0] == -signal.SIGKILL
    again = muon("sweep", "run", str(spec), store=store)
    assert again.returncode == 3, again.stderr  # a run failed
    assert not [word for word in ("WARN", "raylet", "Traceback", "INFO") if word in again.stderr], again.stderr
    assert "failed" in again.stderr
    assert statuses(store) == {"short": "done", "long": "done", "huge": "failed"}
    after = open_store(store).sweep("test")
    assert after.runs.filter(pl.col("block") == "short").collect().equals(finished)
    steps = after.train.filter(pl.col("block") == "long").sort("step").collect()["step"].to_list()
    assert steps == list(range(1, LONG + 1))
    failed = after.runs.filter(pl.col("status") == "failed").collect().row(0, named=True)
    assert [path.name for path in (store / "logs").iterdir()] == [failed["run_id"]]  # the others printed nothing
    log = b"".join(piece.data for piece in LogReader(Folder(store), failed["run_id"]).read()).decode()
    assert log.startswith("Traceback (most recent call last):\n")
    assert log.splitlines()[-1] == failed["error"].splitlines()[-1]

    with pytest.raises(SystemExit) as stop:
        main(["sweep", "run", str(spec), "--store", str(here), "--in-process"])
    assert stop.value.code == 3
    assert capsys.readouterr().out.splitlines()[0] == again.stdout.splitlines()[0] == "test: Does it hold?"
    assert statuses(here) == statuses(store)
    done = after.runs.filter(pl.col("status") == "done").collect()["run_id"].to_list()
    assert len(done) == 2
    assert_same_rows(store, here, done)

    report = muon("report", "test", "-o", str(tmp_path / "report"), store=store)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Does it hold?" in page
    assert page.count("<svg") >= 7  # curves, and a grid for each of six projections


def test_a_sweep_whose_ray_dies_says_so_and_its_run_is_continued(
    one_ray: None, small: dict[str, Any], tmp_path: Path
) -> None:
    """Machines short of memory choose the raylet. It is that of all tests above, so this one comes last."""
    from ray_jobs import connection, launch

    config = RunConfig.model_validate(small | {"steps": LONG, "optimizer": {"name": "adamw"}})

    def kill(states: list[RunState]) -> None:
        if states and states[0].progress and states[0].progress.step > 0:
            for raylet in find_family("/raylet/raylet "):
                os.kill(raylet, signal.SIGKILL)

    begin = time.monotonic()
    with pytest.raises(connection.RayLost, match="raylet"):
        launch.run_connected([config], Folder(tmp_path), Resources(), ONE_RETRY, slots=1, watch=kill)
    assert time.monotonic() - begin < 120
    assert open_store(tmp_path).runs.collect()["status"].to_list() in (["running"], ["stopped"])
    wait_for_others(Folder(tmp_path), [config.run_id], print)  # a worker that saves its run outlives its Ray
    (state,) = run_here([config], Folder(tmp_path), Resources())
    assert state.status == "done"
    assert rows(tmp_path, "train", [config.run_id])["step"].to_list() == list(range(1, LONG + 1))
