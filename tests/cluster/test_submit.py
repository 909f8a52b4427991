"""`muon sweep submit` to a Ray on loopback, with the dashboard and the tokens of a cluster's head.

Each job costs twenty CPU seconds to start, so one sweep lives through all of it.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.loopback_ray import Head, head
from support.sweeps import MUON, sweep_file

from analysis.store import open_store
from muon_core.code_state import code_state
from muon_core.store.folder import Folder
from muon_core.store.keys import changes_key
from muon_core.store.ledger import read_entries
from muon_core.store.reader import read_statuses
from muon_core.store.sweeps import read_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
BLOCKS = [{"name": "base", "role": "baseline", "optimizer": "muon"}]
SECRET = "zQ8-of-whoever-submits-it"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head whose nodes have PYTHONPATH lead to code that nobody should import."""
    folder = tmp_path_factory.mktemp("cluster")
    for package in ("muon_core", "search_spaces", "ray_jobs", "analysis"):
        (folder / "old" / package).mkdir(parents=True)
        (folder / "old" / package / "__init__.py").write_text("raise ImportError('old code')\n")
    with head(folder, cpus=1, environment={"PYTHONPATH": str(folder / "old")}) as found:
        yield found


def test_a_sweep_is_submitted_joined_stopped_and_submitted_again_to_its_end(
    cluster: Head, tmp_path: Path, small: dict[str, Any]
) -> None:
    tracking = {"eval_every": 250, "track_every": 250}
    spec, store = sweep_file(tmp_path, small | {"steps": 500, "tracking": tracking}, BLOCKS), tmp_path / "store"
    environment = os.environ | {"HOME": str(cluster.home), "AWS_SECRET_ACCESS_KEY": SECRET}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    command = [MUON, "sweep", "submit", str(spec), "--store", str(store), "--address", cluster.address, "--yes"]

    def submit(*options: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True, env=environment)

    def submitted(*options: str) -> tuple[int, str, str]:
        process = submit(*options)
        out, err = process.communicate(timeout=280)
        assert "Traceback" not in err
        return process.returncode, out, err

    code, out, err = submitted()
    assert (code, out) == (0, ""), err
    (job,) = jobs(cluster)
    _, told, hint = err.splitlines()
    assert told.startswith(f"submitted job {job['submission_id']}: commit ")
    for part in ("muon status test --watch", "muon logs muon-s1-", f"muon sweep stop test --store {store}"):
        assert part in hint
    assert set(read_statuses(Folder(store))) == set()
    assert read_sweep(Folder(store), "test") is not None  # `muon status` knows it before the job does

    follower = submit("--follow")
    wait_for_a_step(store)
    assert json.loads(cluster.ask(f"/api/jobs/{job['submission_id']}/stop", "POST")) == {"stopped": True}
    out, err = follower.communicate(timeout=280)
    assert (follower.returncode, "joined job muon-test-" in err, "sent with another" in err) == (130, True, False), err
    assert "interrupted; what is finished is kept" in out
    assert "stopped" in read_statuses(Folder(store)).values()
    assert {entry.status for entry in read_entries(Folder(store))} == {"stopped"}

    code, out, err = submitted("-f")
    assert (code, err.splitlines()[-1]) == (0, f"job {job['submission_id']} has ended with exit code 0"), out
    assert "interrupted" not in out  # which the earlier job of this id has printed
    assert "arm  " in out
    assert out.splitlines()[-1] == f"next: muon report test -o report --store {store}"
    runs = open_store(store).runs.select("status", "attempts", "commit", "diff_hash").collect()
    commit, diff_hash = code_state()
    assert sorted(runs["status"]) == ["done", "done"]
    assert max(runs["attempts"]) == 2
    assert set(zip(runs["commit"], runs["diff_hash"], strict=True)) == {(commit, diff_hash)}
    assert commit
    kept = {key for key, _ in Folder(store).list("code/")}
    assert kept == ({changes_key(diff_hash)} if diff_hash else set())
    assert Folder(store).list("marks/") == []
    assert len(Folder(store).list("sweeps/test/")) == 1  # the job's record names the corpus as it is called here

    code, out, err = submitted("-f")
    assert (code, out) == (0, "")
    assert err.splitlines()[1:] == ["nothing is left to train", f"next: muon report test -o report --store {store}"]
    told_of = [cluster.ask("/api/jobs/"), *map(text, [*files(store), *files(cluster.folder)])]
    assert len(told_of) > 10
    assert [part[:200] for part in told_of if SECRET in part or cluster.token in part] == []


@pytest.mark.parametrize("token", [None, "wrong"], ids=["missing", "wrong"])
def test_a_token_that_is_missing_or_wrong_is_told_in_a_line(
    cluster: Head, tmp_path: Path, small: dict[str, Any], token: str | None
) -> None:
    spec = sweep_file(tmp_path, small, BLOCKS)
    environment = os.environ | {"HOME": str(tmp_path), "MUON_STORE": str(tmp_path / "store")}
    if token:
        environment["RAY_AUTH_TOKEN"] = token
    command = [MUON, "sweep", "submit", str(spec), "--address", cluster.address, "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    what = "does not take the token of RAY_AUTH_TOKEN" if token else "asks for a token, and there is none in ~/.ray/"
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (7, "", 2)
    assert f"muon: cannot reach Ray: the cluster at {cluster.address} {what}" in done.stderr
    assert "copy the head's ~/.ray/auth_token" in done.stderr


def jobs(cluster: Head) -> list[dict[str, Any]]:
    return [job for job in json.loads(cluster.ask("/api/jobs/")) if job["type"] == "SUBMISSION"]


def wait_for_a_step(store: Path) -> None:
    while not any(entry.step > 0 for entry in read_entries(Folder(store))):
        time.sleep(0.1)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")
