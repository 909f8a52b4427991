"""`muon sweep stop`, from another process than the one that runs the sweep."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from support.sweeps import muon_here, standing_still, start_sweep, sweep_file, wait_for_attempts

from muon_core.store.folder import Folder
from muon_core.store.reader import read_statuses
from ray_jobs.elsewhere import LOOK_S

BLOCKS = [{"name": "base", "role": "baseline", "optimizer": "muon"}]


def requests(store: Path) -> list[str]:
    return [key for key, _ in Folder(store).list("stops/")]


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True], ids=["drain", "now"])
def test_a_sweep_is_stopped_by_another_process_and_continued_by_the_same_command(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str], at_once: bool
) -> None:
    """The first run is under way when the request is heard; the others are left.

    A run of a second is over before its process looks for requests again, so that one stands still meanwhile.
    """
    spec = sweep_file(tmp_path, small | {"steps": 60}, BLOCKS, seeds=[1, 2, 3])
    store = tmp_path / "store"
    running = start_sweep(spec, store)
    wait_for_attempts(running, store)
    with standing_still(running):
        asked = muon_here(capsys, "sweep", "stop", "test", *(["--now"] if at_once else []), store=store)
        time.sleep(LOOK_S)
    assert asked.returncode == 0, asked.stderr
    how = "saved at once" if at_once else "trained to the end first"
    assert asked.stderr.startswith(f"asked to stop test; what is under way is {how}: 1 at process {running.pid} on ")
    out, err = running.communicate(timeout=250)
    assert (running.returncode, out) == (130, ""), err
    *_, stopped, hint = err.splitlines()
    assert stopped.startswith("test: stopped by ")
    assert stopped.endswith(" (muon sweep stop)")
    assert hint == f"next: muon sweep run {spec}"
    assert "Traceback" not in err
    *earlier, last = read_statuses(Folder(store)).values()
    assert (set(earlier) <= {"done"}, last, len(earlier) < 2) == (True, "stopped" if at_once else "done", True)
    assert requests(store) == []
    goes_on = muon_here(capsys, "sweep", "run", str(spec), "--in-process", "--limit", "1", store=store)
    assert goes_on.returncode == 0, goes_on.stderr
    assert list(read_statuses(Folder(store)).values()) == ["done"] * (len(earlier) + (1 if at_once else 2))


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_an_old_request_is_not_for_it(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    spec, store = sweep_file(tmp_path, small, BLOCKS), tmp_path / "store"
    Folder(store).put("stops/test/00001.aa.json", json.dumps({"user": "a", "host": "b", "now": True}).encode())
    finished = muon_here(capsys, "sweep", "run", str(spec), "--in-process", store=store)
    assert finished.returncode == 0, finished.stderr
    assert sorted(read_statuses(Folder(store)).values()) == ["done", "done"]
    assert "asked to stop" not in finished.stderr
    idle = muon_here(capsys, "sweep", "stop", "test", store=store)
    assert (idle.returncode, idle.stderr) == (
        0, "nobody trains a run of test now, so there is nothing to stop\nnext: muon status test\n"
    )  # fmt: skip
    assert requests(store) == ["stops/test/00001.aa.json"]
    unknown = muon_here(capsys, "sweep", "stop", "other", store=store)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
