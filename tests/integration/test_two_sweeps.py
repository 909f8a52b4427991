"""Two invocations of one sweep: each run is trained once, and both end with the answer."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweeps import Forked, muon_here, standing_still, start_sweep, sweep_file, wait_for_attempts

from muon_core.store.folder import Folder
from muon_core.store.ledger import LOCAL, close_entry, new_entry, read_entries, write_entry
from muon_core.store.reader import read_statuses
from ray_jobs.breaker import Breaker
from ray_jobs.money import money
from ray_jobs.sweep_plan import plan_sweep
from ray_jobs.sweep_run import Place, train_all
from search_spaces.expand import expand
from search_spaces.spec import load_spec

pytestmark = pytest.mark.slow

BLOCKS = [{"name": "base", "role": "baseline", "optimizer": "muon"}]


def _spec(folder: Path, small: dict[str, Any], steps: int) -> Path:
    return sweep_file(folder, small | {"steps": steps}, BLOCKS, seeds=[1, 2])


def _end(process: Forked) -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=250)
    return subprocess.CompletedProcess(process.args, process.returncode or 0, out, err)


def _assert_each_run_was_trained_once(store: Path, *ended: "subprocess.CompletedProcess[str]") -> None:
    assert [each.returncode for each in ended] == [0, 0], ended
    first, second = (each.stdout for each in ended)
    assert first == second
    assert "2/2" in first
    entries = read_entries(Folder(store))
    assert [entry.status for entry in entries] == ["done"] * 2
    assert len({entry.run_id for entry in entries}) == 2


def test_two_at_the_same_moment_train_each_run_once_and_print_the_answer(small: dict[str, Any], tmp_path: Path) -> None:
    spec, store = _spec(tmp_path, small, 20), tmp_path / "store"
    processes = [start_sweep(spec, store) for _ in range(2)]
    _assert_each_run_was_trained_once(store, *map(_end, processes))


def test_one_that_comes_while_the_first_trains_takes_the_other_run_and_prints_the_answer(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, store = _spec(tmp_path, small, 60), tmp_path / "store"
    first = start_sweep(spec, store)
    wait_for_attempts(first, store)
    second = muon_here(capsys, "sweep", "run", str(spec), "--in-process", store=store)
    _assert_each_run_was_trained_once(store, _end(first), second)


def test_a_killed_invocation_leaves_its_run_to_the_one_that_waits(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first stands still, so that it has its run as long as the second takes to come to the other one."""
    spec, store = _spec(tmp_path, small, 60), tmp_path / "store"
    first = start_sweep(spec, store)
    wait_for_attempts(first, store)
    with standing_still(first):
        plan = muon_here(capsys, "sweep", "plan", str(spec), store=store)
        assert "1 running, 1 planned" in plan.stdout
        assert "elsewhere: 1 run" in plan.stdout
        second = start_sweep(spec, store)
        wait_for_attempts(second, store, 2)
        first.kill()
    first.communicate()
    answer, chatter = second.communicate(timeout=250)
    assert second.returncode == 0, chatter
    assert "2/2" in answer
    statuses = sorted(entry.status for entry in read_entries(Folder(store)))
    assert statuses == ["done", "done", "lost"]


def test_a_run_whose_process_is_gone_before_this_one_waits_is_taken_over(small: dict[str, Any], tmp_path: Path) -> None:
    storage = Folder(tmp_path / "store")
    spec = load_spec(sweep_file(tmp_path, small, BLOCKS, seeds=[1]))
    (run,) = expand(spec)
    theirs = replace(new_entry(run.run_id, "00001.aa", LOCAL), machine="elsewhere")
    write_entry(storage, theirs)
    planned = plan_sweep(spec, storage)
    assert [run.run_id for run in planned.elsewhere] == [run.run_id]
    close_entry(storage, theirs, "lost")
    here = Place(in_process=True)
    ended = train_all(planned, [], storage, money(planned, storage), Breaker(), here, print, wait=True)
    assert (ended.kept, ended.failed) == ({}, {})
    assert read_statuses(storage) == {run.run_id: "done"}
