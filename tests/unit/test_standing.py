"""How runs stand by the ledger and their end records: stores made by hand, looked at again and again."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.analysis_fixtures import FakeRun, write_run, write_store
from support.sweeps import MUON

from analysis.standing import Follower, Standing
from analysis.store import open_store
from muon_core.pace import time_left
from muon_core.store.folder import Folder
from muon_core.store.ledger import LOCAL, Rate, new_entry, read_entries, write_entry

STEPS = {"config_json": '{"steps": 200}'}
GOING = {"first_step": 0, "step": 50, "steps": 200, "val_loss": 4.25, "seconds": 25.0}
DEAD = {"pid": os.getpid(), "born": "another process's"}


def look(root: Path, sweep: str = "demo") -> Standing:
    return Follower(open_store(root).sweep(sweep)).look()


def statuses(standing: Standing) -> dict[str, str]:
    return {run.run_id: run.status for run in standing.runs}


def fake(seed: int, entry: dict[str, Any] | None = None, **facts: Any) -> FakeRun:
    """A run of Muon that is done, or, with `entry`, has not ended."""
    status = "done" if entry is None else None
    val = {0: 6.9, 200: 3.0 + seed / 10} if entry is None else {0: 6.9}
    return FakeRun("muon", seed, val, status, entry=entry or {}, facts=STEPS | facts)


def test_a_running_run_is_where_its_last_sign_of_life_says(tmp_path: Path) -> None:
    write_store(tmp_path, [fake(1, GOING)])
    (run,) = look(tmp_path).runs
    assert (run.status, run.step, run.steps, run.val_loss, run.attempts) == ("running", 50, 200, 4.25, 1)
    assert run.pid == os.getpid()
    assert run.silent_s is not None


@pytest.mark.parametrize("entry", [DEAD, {"machine": "another", "seen_at": 0.0}], ids=["gone", "silent"])
def test_a_run_whose_process_went_without_a_word_is_interrupted(tmp_path: Path, entry: dict[str, Any]) -> None:
    write_store(tmp_path, [fake(1, GOING | entry)])
    (path,) = (tmp_path / "ledger").rglob("*.json")
    os.utime(path, (time.time() - 600,) * 2)
    (run,) = look(tmp_path).runs
    assert (run.status, run.step, run.val_loss, run.silent_s) == ("interrupted", 50, 4.25, None)


def test_a_follower_sees_what_changed_since_it_looked(tmp_path: Path) -> None:
    storage = write_store(tmp_path, [fake(1, GOING)], unstarted=1)
    follower = Follower(open_store(storage).sweep("demo"))
    assert follower.look().counts == {"running": 1, "planned": 1}
    (entry,) = read_entries(storage)
    write_entry(storage, replace(entry, step=150, val_loss=3.5))
    (run, _) = follower.look().runs
    assert (run.step, run.val_loss) == (150, 3.5)
    write_entry(storage, replace(entry, status="done"))
    write_run(storage, replace(fake(1), val={0: 6.9, 200: 3.1}))
    after = follower.look()
    assert after.counts == {"done": 1, "planned": 1}
    assert after.best is not None
    assert (after.best.arm, after.best.value, after.best.runs, after.best.planned) == ("muon", 3.1, 1, 2)
    assert not after.is_over


def test_time_left_is_that_of_the_runs_under_way_and_to_come(tmp_path: Path) -> None:
    """Done ones took 20 s; one under way has 150 of 200 steps to do at 2 steps a second; one is to come."""
    write_store(tmp_path, [fake(1), fake(2, GOING)], unstarted=1)
    assert look(tmp_path).left_s == pytest.approx(75 + (20 + 100) / 2)
    write_store(tmp_path / "idle", [fake(1)], unstarted=1)
    assert look(tmp_path / "idle").left_s is None


def test_time_left_fills_the_places_that_become_free() -> None:
    assert time_left([10, 30], [15, 10]) == 35
    assert time_left([10], []) == 10


def test_money_is_that_of_all_attempts_and_what_is_under_way(tmp_path: Path) -> None:
    storage = write_store(tmp_path, [fake(1), fake(2, GOING | {"rate": Rate(usd_per_hour=36.0)})])
    ended = replace(new_entry("muon-s1-0badcafe", "00001.ab", Rate(usd_per_hour=3.6)), status="done", seconds=1000.0)
    write_entry(storage, ended)
    standing = look(tmp_path)
    assert standing.usd == pytest.approx(1.0 + 0.25)
    assert standing.committed_usd == pytest.approx(0.75)
    write_entry(storage, replace(ended, attempt="00002.ab", rate=replace(LOCAL, usd_per_hour=None)))
    assert look(tmp_path).usd is None


def test_the_best_arm_follows_the_goal_and_metric_of_the_sweep(tmp_path: Path) -> None:
    runs = [fake(1), fake(2), FakeRun("adamw", 1, {0: 2.0, 100: 1.0, 200: 9.0}, facts=STEPS)]
    write_store(tmp_path, runs)
    best = look(tmp_path).best
    assert best is not None
    assert (best.arm, best.value, best.runs, best.planned) == ("muon", pytest.approx(3.15), 2, 2)
    for metrics, arm, value in (
        ({"primary": "val_loss", "goal": "max", "at": "final"}, "adamw", 9.0),
        ({"primary": "val_loss", "goal": "min", "at": "best"}, "adamw", 1.0),
    ):
        write_store(tmp_path, runs, sweep=f"by-{value}", metrics=metrics)
        best = look(tmp_path, f"by-{value}").best
        assert best is not None
        assert (best.arm, best.value) == (arm, value)


def test_a_store_that_may_only_be_read_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from muon_core.store.storage import StoreUnwritable

    write_store(tmp_path, [fake(1, GOING)])

    def refuse(*_: Any) -> None:
        raise StoreUnwritable("read-only")

    monkeypatch.setattr(Folder, "put", refuse)
    assert look(tmp_path).counts == {"running": 1}


def watch(root: Path, *options: str) -> "subprocess.Popen[str]":
    command = [MUON, "status", "demo", "--watch", "--store", str(root), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_watch_tells_each_change_in_a_line_and_ends_with_the_last_run(tmp_path: Path) -> None:
    storage = write_store(tmp_path, [fake(1, GOING)])
    with watch(tmp_path) as plain, watch(tmp_path, "--json") as machine:
        assert plain.stdout is not None
        assert machine.stdout is not None
        assert "demo: 1 running; ETA 1:15; " in plain.stdout.readline()
        first = json.loads(machine.stdout.readline())
        (entry,) = read_entries(storage)
        write_run(storage, fake(1))
        write_entry(storage, replace(entry, status="done"))
        out, err = plain.communicate(timeout=60)
        told = [first, *map(json.loads, machine.communicate(timeout=60)[0].splitlines())]
    assert (plain.returncode, machine.returncode) == (0, 0)
    assert "demo: 1 done; 0 USD spent" in out.splitlines()[0]
    assert out.splitlines()[-1].split()[:2] == ["done", "muon-s1-0badcafe"]
    assert err.splitlines()[-1].startswith("next: muon runs show muon-s1-0badcafe")
    assert (told[0]["counts"], told[0]["runs"][0]["step"]) == ({"running": 1}, 50)
    assert (told[-1]["counts"], told[-1]["best"]["value"]) == ({"done": 1}, 3.1)
    assert {look["sweep"] for look in told} == {"demo"}


@pytest.mark.slow
def test_ctrl_c_ends_a_watch_in_one_line(tmp_path: Path) -> None:
    write_store(tmp_path, [fake(1, GOING)])
    with watch(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip().count("\n")) == (130, 0)
