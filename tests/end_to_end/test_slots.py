"""Warm slots on a real Ray: what a run computes there, and what the death of a worker costs."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import psutil
import pytest

from analysis.store import open_store
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.train import train
from ray_jobs.launch import Resources, _ray, run_on_ray
from ray_jobs.run_queue import RunState

# isort: split
import ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TIMING = ("attempt", "step_time_s", "tokens_per_s", "elapsed_s")


def rows(store: Path, table: str) -> pl.DataFrame:
    return open_store(store).table(table).drop(TIMING, strict=False).sort("run_id", "seq").collect()


T = TypeVar("T")


def ask_family(question: Callable[[psutil.Process], T]) -> list[T]:
    """The answers of this process and all it started; some end while they are asked."""
    answers = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            answers.append(question(process))
    return answers


def train_workers() -> list[int]:
    """Process ids of the Ray Train workers this process started, through whatever processes lie between."""
    return [pid for pid, command in ask_family(lambda p: (p.pid, " ".join(p.cmdline()))) if "RayTrainWorker" in command]


def wildcard_listeners() -> list[str]:
    """Command lines of the processes of the sweep that listen on more than loopback, one entry a socket."""
    asked = ask_family(lambda p: (" ".join(p.cmdline()), p.net_connections(kind="tcp")))
    sockets = [(command, c) for command, found in asked for c in found if c.status == psutil.CONN_LISTEN]
    assert sockets
    return [command for command, c in sockets if c.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]


def test_runs_in_a_warm_slot_equal_fresh_ones_also_after_a_worker_was_killed(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    """Five runs of two DDP workers, one after another in one slot; a worker dies in the third by SIGKILL.

    Meanwhile nothing listens beyond loopback but torch's rendezvous store, which offers no choice of address.
    """
    fast = [
        RunConfig.model_validate(small | {"seed": seed, "optimizer": {"name": name}})
        for seed, name in [(1, "muon"), (2, "adamw"), (4, "orthonoise"), (1, "isotropic")]
    ]
    slow = RunConfig.model_validate(small | {"seed": 3, "steps": 300, "tracking": {"eval_every": 100}})
    runs = [*fast[:2], slow, *fast[2:]]
    killed: list[int] = []
    exposed: list[str] = []

    def kill_once(states: list[RunState]) -> None:
        progress = next((s.progress for s in states if s.run_id == slow.run_id), None)
        if not killed and progress is not None and progress.step > 10:
            exposed.extend(wildcard_listeners())
            killed.append(train_workers()[-1])
            os.kill(killed[-1], signal.SIGKILL)

    states = run_on_ray(runs, Folder(tmp_path / "ray"), Resources(workers=2, max_concurrent=1), watch=kill_once)

    assert killed
    assert len(exposed) <= 1
    assert all("RayTrainWorker" in command for command in exposed)
    assert [(state.state, state.starts) for state in states] == [
        ("done", 1), ("done", 1), ("done", 2), ("done", 1), ("done", 1)
    ]  # fmt: skip
    assert len({state.slot for state in states}) == 1
    for config in runs:
        train(config.replace(micro_batches=2), Folder(tmp_path / "fresh"))
    for table in ("train", "val", "layers"):
        warm, fresh = rows(tmp_path / "ray", table), rows(tmp_path / "fresh", table)
        assert fresh.height > 0
        assert warm.equals(fresh), table
    attempts = dict(open_store(tmp_path / "ray").runs.select("run_id", "attempts").collect().iter_rows())
    assert attempts == {config.run_id: 2 if config is slow else 1 for config in runs}


def test_a_run_that_keeps_losing_its_worker_fails_and_the_next_goes_on(tmp_path: Path, small: dict[str, Any]) -> None:
    doomed = RunConfig.model_validate(small | {"seed": 1, "steps": 100_000, "tracking": {"eval_every": 100_000}})
    fine = RunConfig.model_validate(small | {"seed": 2})
    killed: list[int] = []

    def kill(states: list[RunState]) -> None:
        running = [s for s in states if s.run_id == doomed.run_id and s.state == "running"]
        if running and len(killed) < running[0].starts and running[0].starts <= 2:
            workers = train_workers()
            if workers and running[0].progress and running[0].progress.step > 5:
                killed.append(workers[0])
                os.kill(killed[-1], signal.SIGKILL)

    states = run_on_ray([doomed, fine], Folder(tmp_path), Resources(max_concurrent=1), max_restarts=1, watch=kill)
    assert [state.state for state in states] == ["failed", "done"]
    assert len(killed) == 2
    errors = dict(open_store(tmp_path).runs.select("run_id", "error").collect().iter_rows())
    assert errors[doomed.run_id] == "a worker died 2 times in this run; `retries.infrastructure` allows 1"
    assert errors[fine.run_id] is None


OTHER_RAY = """
from ray_jobs.launch import Resources, _ray
with _ray(None, Resources()):
    print("up", flush=True)
    input()
"""


def test_what_ray_asks_of_itself_is_answered_beside_another_ray() -> None:
    """Else the place of a trial driver that died beside a second sweep on the machine would never be freed."""

    @ray.remote(num_cpus=0)
    def alive() -> int:
        from ray.util.state import list_nodes

        return len(list_nodes())

    command = [sys.executable, "-c", OTHER_RAY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        with _ray(None, Resources()):
            assert ray.get(alive.remote(), timeout=120) == 1
        other.communicate("\n", timeout=60)
    assert other.returncode == 0
