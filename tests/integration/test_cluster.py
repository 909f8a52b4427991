"""A real head on loopback that wants a token: who may join it, what others are told, and how `muon doctor` sees it."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from servers.fixtures import Servers, fresh_url
from support.ray_cluster import LOOPBACK, RayCluster, ray_cluster
from support.sweeps import MUON, sweep_file

from muon_core.store.folder import Folder
from muon_core.store.storage import StoreUnwritable
from ray_jobs.same_store import marked

pytestmark = [pytest.mark.ray, pytest.mark.slow]
FREED_S = 30.0  # for Ray to see that a driver is gone, and to end what was its
TOKEN = "0123456789abcdef" * 4
COPY = "copy ~/.ray/auth_token of its head to the same place here and `chmod 600` it, or set RAY_AUTH_TOKEN"


@pytest.fixture(scope="module")
def ours() -> ModuleType:
    """Imported here: every process of a parallel run reads every file of tests, and Ray takes seconds to load."""
    from ray_jobs import cluster

    return cluster


@pytest.fixture(scope="module")
def head(ours: ModuleType) -> Iterator[RayCluster]:
    with ray_cluster(TOKEN) as started:
        yield started


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: RayCluster) -> Path:
    """A user on the head's machine without settings of Ray's."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "MUON_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in LOOPBACK.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def write_token(home: Path, token: str = TOKEN) -> Path:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text(token)
    path.chmod(0o600)
    return path


def refusal(ours: ModuleType, address: str) -> str:
    with pytest.raises(ConnectionError) as refused:
        ours.check_cluster(address)
    return str(refused.value)


def test_a_token_file_is_enough_to_join(ours: ModuleType, head: RayCluster, home: Path) -> None:
    """Ray itself would want RAY_AUTH_MODE, too."""
    write_token(home)
    cluster = ours.check_cluster(head.address)
    assert cluster.head == head.address
    assert cluster.wants_token
    assert [node.address for node in cluster.nodes] == ["127.0.0.1"]
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, f"wants its token, and ~/.ray/auth_token has none; {COPY}"),
        ({"RAY_AUTH_MODE": "token"}, f"wants its token, and ~/.ray/auth_token has none; {COPY}"),
        ({"RAY_AUTH_TOKEN_PATH": "/nonexistent/token"},
         f"wants its token, and RAY_AUTH_TOKEN_PATH=/nonexistent/token has none; {COPY}"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": TOKEN},
         "wants its token; unset RAY_AUTH_MODE here, or set it to token"),
    ],
)  # fmt: skip
def test_who_lacks_the_token_is_told_where_it_should_lie(
    ours: ModuleType, head: RayCluster, settings: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert refusal(ours, head.address) == f"the cluster at {head.address} {said}"


def test_a_wrong_token_is_called_so(ours: ModuleType, head: RayCluster, home: Path) -> None:
    write_token(home, "f" * 64)
    said = f"the token in ~/.ray/auth_token is not that of the cluster at {head.address}; {COPY}"
    assert refusal(ours, head.address) == said


def test_what_is_no_head_is_told_apart_from_one(
    ours: ModuleType, head: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        said = refusal(ours, address)
        server.shutdown()
        thread.join()
    assert said == (
        f"what listens at {address} is no head of a Ray cluster (UNAVAILABLE); give the address of its head, with port "
        "6379 unless `ray start --port` says another"
    )


def test_versions_that_differ_from_the_heads_are_both_told(ours: ModuleType, head: RayCluster, home: Path) -> None:
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    def publish(versions: dict[str, Any]) -> None:
        with grpc.insecure_channel(head.address) as channel:
            gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVPut(
                gcs_service_pb2.InternalKVPutRequest(
                    key=b"CLUSTER_METADATA", namespace=b"cluster", value=json.dumps(versions).encode(), overwrite=True
                ),
                metadata=[("authorization", f"Bearer {TOKEN}")],
                timeout=10,
            )

    write_token(home)
    own = ours.check_cluster(head.address).versions
    right = {"ray_version": own["ray"], "python_version": own["python"]}
    publish(right | {"ray_version": "2.1.0"})
    try:
        said = refusal(ours, head.address)
    finally:
        publish(right)
    assert said == (
        f"the cluster at {head.address} has Ray 2.1.0 and Python {own['python']}, this process Ray {own['ray']} and "
        f"Python {own['python']}; install the same here and on every node"
    )


def test_a_machine_that_is_no_node_of_the_cluster_is_told_so(
    ours: ModuleType, head: RayCluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_token(home)
    monkeypatch.setattr(ours.services, "find_node_ids", lambda: {"of-another-cluster"})
    assert refusal(ours, head.address).startswith(
        f"this machine is no node of the cluster at {head.address}; run `muon` on one that is, its head for one"
    )


def muon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MUON, *arguments], capture_output=True, text=True, timeout=250, cwd=os.environ["HOME"])


def test_a_sweep_is_refused_in_one_line_before_anything_is_written(
    head: RayCluster, home: Path, small: dict[str, Any]
) -> None:
    write_token(home, "f" * 64)
    spec = sweep_file(home, small, [{"name": "b", "role": "baseline", "optimizer": "muon"}])
    refused = muon("sweep", "run", str(spec), "--address", head.address, "--store", str(home / "results"), "--yes")
    assert refused.returncode == 7
    assert refused.stderr == (
        f"muon: cannot reach Ray: the token in ~/.ray/auth_token is not that of the cluster at {head.address}; {COPY}\n"
    )
    assert not list((home / "results").rglob("*.json"))


def test_the_doctor_finds_a_cluster_sound(head: RayCluster, home: Path) -> None:
    write_token(home)
    seen = muon("doctor", "--address", head.address, "--store", str(home / "results"))
    lines = [line.split(maxsplit=2) for line in seen.stdout.splitlines()]
    wrong = [line for line in lines if line[0] != "OK"]
    assert all(text.startswith("ports") for *_, text in wrong), seen.stdout  # of other Rays on this machine
    assert seen.returncode == (7 if wrong else 0)
    here = [text.split()[0] for _, where, text in lines if where == "here"]
    there = [text.split()[0] for _, where, text in lines if where == "127.0.0.1"]
    assert here == ["ray", "token", "store"]
    assert there == ["versions", "packages", "gpus", "disk", "shared", "open", "store", "clock", "ports"]
    assert "wanted, and the one in ~/.ray/auth_token is right" in seen.stdout
    assert not list((home / "results").rglob("*doctor*"))


def test_the_doctor_looks_this_machine_over(home: Path) -> None:
    (home / "results").touch()  # a file, where a folder should be
    seen = muon("doctor", "--store", str(home / "results"), "--json")
    told = json.loads(seen.stdout)
    assert [check["check"] for check in told["checks"]] == [
        "python", "packages", "gpus", "loopback", "ray's folder", "disk", "shared memory", "open files", "store",
        "clock", "ports",
    ]  # fmt: skip
    wrong = {check["check"]: check["text"] for check in told["checks"] if not check["ok"]}
    assert wrong.pop("store").startswith(f"cannot write to {home / 'results'}: Not a directory; ")
    assert wrong.keys() <= {"ports"}  # of other Rays on this machine
    assert not told["ok"]
    assert seen.returncode == 7
    assert seen.stderr.splitlines()[-1] == f"next: mend it, then muon doctor --store {home / 'results'}"


def test_a_node_without_the_package_is_told_so() -> None:
    from ray.exceptions import RayError

    from ray_jobs.nodes import explain

    raised = (
        "The remote function failed to import on the worker. This may be because needed library dependencies are not "
        "installed in the worker environment:\n\nModuleNotFoundError: No module named 'ray_jobs.node_checks'\n"
    )
    said = "muon-jobs of this version is not installed there; install the same on all nodes"
    assert explain(RayError(raised)) == said
    assert explain(RayError("The worker died.\nOut of memory.\n")) == "RayError: Out of memory."


def test_a_node_says_why_it_cannot_train(tmp_path: Path) -> None:
    from ray_jobs.checks import versions
    from ray_jobs.node_checks import why_not

    ours, theirs, wanted = str(tmp_path / "ours"), str(tmp_path / "theirs"), versions()
    with marked(Folder(ours), "nodes-1") as mark:
        assert why_not(ours, mark, wanted) is None
        other_ray = why_not(ours, mark, wanted | {"ray": "2.59.0"})
        other_store = why_not(theirs, mark, wanted)
    here = socket.gethostname()
    assert isinstance(other_ray, ConnectionError)
    assert str(other_ray).startswith(f"{here}: ray is {wanted['ray']}, not 2.59.0, as on the node that was asked")
    assert isinstance(other_store, StoreUnwritable)
    assert str(other_store).startswith(f"{here} finds another store at {theirs} than the process that started")


@pytest.mark.s3
def test_a_sweep_whose_workers_have_no_credentials_ends_in_one_line(
    head: RayCluster, home: Path, small: dict[str, Any], s3_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune hands on keys that stand in the environment, and no others."""
    write_token(home)
    settings = dict(s3_servers.get("swift").environment)
    keys = [f"{name.lower()} = {settings.pop(name)}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    (home / "credentials").write_text("\n".join(["[default]", *keys]))
    for name, value in (settings | {"AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials")}).items():
        monkeypatch.setenv(name, value)
    spec = sweep_file(home, small, [{"name": "b", "role": "baseline", "optimizer": "muon"}])
    ended = muon("sweep", "run", str(spec), "--address", head.address, "--store", fresh_url(), "--yes")
    last = ended.stderr.splitlines()[-1]
    assert "no AWS credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in last
    assert ended.returncode == 7


@pytest.mark.s3
def test_the_doctor_finds_a_node_without_credentials(
    head: RayCluster, home: Path, s3_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_token(home).chmod(0o644)
    for name, value in s3_servers.get("swift").environment.items():
        monkeypatch.setenv(name, value)
    seen = muon("doctor", "--address", head.address, "--store", fresh_url(), "--json")
    assert seen.returncode == 7
    checks = json.loads(seen.stdout)["checks"]
    wrong = {(check["where"], check["check"]): check["text"] for check in checks if not check["ok"]}
    token, store = wrong.pop(("here", "token")), wrong.pop(("127.0.0.1", "store"))
    assert wrong.keys() <= {("127.0.0.1", "ports")}
    assert token == "others on this machine can read ~/.ray/auth_token; chmod 600 ~/.ray/auth_token"
    assert "no AWS credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID" in store


HELD = """
import json, logging, sys
import ray
from ray.util import placement_group_table
ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
groups = [facts["name"] for facts in placement_group_table().values() if facts["state"] != "REMOVED"]
actors = [facts["ActorClassName"] for facts in ray._private.state.actors().values() if facts["State"] != "DEAD"]
print(json.dumps([groups, actors, ray.available_resources().get("CPU", 0)]))
"""


def held(head: RayCluster) -> tuple[list[str], list[str], float]:
    """Names of the placement groups on the cluster, classes of its actors, and how many CPUs are free."""
    asked = [sys.executable, "-c", HELD, head.address]
    seen = subprocess.run(
        asked, env=os.environ | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True, check=True
    )
    groups, actors, free = json.loads(seen.stdout)
    return groups, actors, free


def test_a_sweep_whose_driver_is_killed_leaves_nothing_on_the_cluster(
    head: RayCluster, home: Path, small: dict[str, Any]
) -> None:
    """It has more slots than places, so that one of them waits for room."""
    write_token(home)
    blocks = [{"name": "muon", "role": "baseline", "optimizer": "muon"}]
    spec = sweep_file(home, small | {"steps": 200}, blocks, resources={"max_concurrent": 2})
    command = [MUON, "sweep", "run", str(spec), "--address", head.address, "--yes", "--store", str(home / "results")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stderr
        assert any("  start " in line for line in driver.stderr)  # a run trains
        groups, actors, free = held(head)
        driver.kill()
    assert len(groups) >= 2  # those of the slots, one of which has its place
    assert "RunQueue" in actors
    assert free == 0
    deadline = time.monotonic() + FREED_S
    while held(head) != ([], [], 1):
        assert time.monotonic() < deadline, held(head)
