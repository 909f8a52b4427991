"""Two invocations of one sweep: each run is trained once, and both end with the answer."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweeps import MUON, muon, sweep_file

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


def _start(spec: Path, store: Path) -> "subprocess.Popen[str]":
    command = [MUON, "sweep", "run", str(spec), "--in-process"]
    environment = os.environ | {"MUON_STORE": str(store)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _spec(folder: Path, small: dict[str, Any], steps: int) -> Path:
    return sweep_file(folder, small | {"steps": steps}, BLOCKS, seeds=[1, 2])


@pytest.mark.parametrize("later", [False, True], ids=["at the same moment", "while the first trains"])
def test_each_run_is_trained_once_and_both_print_the_answer(small: dict[str, Any], tmp_path: Path, later: bool) -> None:
    spec, store = _spec(tmp_path, small, 60), tmp_path / "store"
    first = _start(spec, store)
    while later and not read_entries(Folder(store)):
        time.sleep(0.1)
    second = _start(spec, store)
    answers = [process.communicate(timeout=250) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert "2/2" in answers[0][0]
    entries = read_entries(Folder(store))
    assert [entry.status for entry in entries] == ["done"] * 2
    assert len({entry.run_id for entry in entries}) == 2


def test_a_killed_invocation_leaves_its_run_to_the_one_that_waits(small: dict[str, Any], tmp_path: Path) -> None:
    spec, store = _spec(tmp_path, small, 300), tmp_path / "store"
    first = _start(spec, store)
    while not any(entry.first_step is not None for entry in read_entries(Folder(store))):
        time.sleep(0.1)
    plan = muon("sweep", "plan", str(spec), store=store)
    assert "1 running, 1 planned" in plan.stdout
    assert "elsewhere: 1 run" in plan.stdout
    second = _start(spec, store)
    while len({entry.run_id for entry in read_entries(Folder(store))}) < 2:
        time.sleep(0.1)
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
