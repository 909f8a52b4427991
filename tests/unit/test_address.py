"""`--address` and RAY_ADDRESS: what is refused before a cluster is joined, and who joins none."""

import errno
import json
import os
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import test_cli
from support.sweeps import sweep_file
from test_cli import Muon

from muon_core.store.folder import Folder
from ray_jobs.address import check_address, check_loopback, check_store, probe

muon = test_cli.muon
SWEEP = "version: 1\nname: one\nseeds: [1]\nblocks: [{name: b, role: baseline, optimizer: muon}]\n"


@pytest.fixture
def spec(muon: Muon, tmp_path: Path) -> str:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return "sweep.yaml"


@pytest.mark.parametrize("address", ["auto", "localhost:6379", "10.0.0.5:1", "head.example.org:65535", "[::1]:6379"])
def test_addresses_are_auto_or_host_and_port(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    "address", ["10.0.0.5", ":6379", "10.0.0.5:", "head:0", "head:65536", "head:port", "http://head:8265", " "]
)
def test_an_address_that_is_none_is_refused_in_one_line(muon: Muon, spec: str, address: str) -> None:
    refused = muon("sweep", "run", spec, "--address", address, "--yes")
    assert refused.code == 2
    assert refused.err == (
        f"muon: Ray address {' '.join(repr(address).split())}: give host:port, such as 10.0.0.5:6379, or auto on a "
        "node of it\n"
    )


def test_a_machine_without_loopback_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    check_loopback()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1 does not answer \(Network is .*\); `ip link set lo up`"):
        check_loopback()


def test_ray_client_is_refused_with_the_remedy(muon: Muon, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    refused = muon("sweep", "run", spec, "--yes")
    assert refused.code == 2
    assert refused.err.startswith("muon: Ray address 'ray://head:10001': sweeps do not run through Ray Client; run ")
    assert refused.err.count("\n") == 1


def test_a_folder_is_no_store_for_another_machine(muon: Muon, spec: str, tmp_path: Path) -> None:
    refused = muon("sweep", "run", spec, "--address", "10.0.0.5:6379", "--yes")
    assert refused.code == 2
    assert refused.err == (
        f"muon: the runs would write to {tmp_path / 'results'} on several machines, each to a disk of its own; "
        "give --store s3://bucket/prefix, or --shared-folder if all nodes share this folder\n"
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("address", ["auto", "localhost:6379", "127.0.0.1:6379", "[::1]:6379"])
def test_a_folder_may_serve_a_cluster_on_this_machine(tmp_path: Path, address: str) -> None:
    check_store(Folder(tmp_path), address)


def test_a_head_that_does_not_answer_is_told_at_once(muon: Muon, spec: str, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else answers there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = muon("sweep", "run", spec, "--address", address, "--shared-folder", "--yes")
    assert refused.code == 7
    assert (
        refused.err == f"muon: cannot reach Ray: nothing answers at {address} (Connection refused); is the head up?\n"
    )
    assert not list((tmp_path / "results").rglob("*.json"))


def test_probe_finds_who_listens_and_leaves_auto_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe(f"127.0.0.1:{server.getsockname()[1]}")
    probe("auto")


def test_local_is_rays_word_for_no_cluster(
    muon: Muon, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []
    launch = types.ModuleType("ray_jobs.launch")

    def run_on_ray(*_: Any, address: str | None, **__: Any) -> list[Any]:
        given.append((address, os.environ.get("RAY_ADDRESS")))
        return []

    launch.run_on_ray = run_on_ray  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray_jobs.launch", launch)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    spec = sweep_file(tmp_path, small, [{"name": "b", "role": "baseline", "optimizer": "muon"}])
    muon("sweep", "run", str(spec))
    assert given == [(None, None)]


def test_pretrain_keeps_its_ray_private_whatever_cluster_there_is(tmp_path: Path, small: dict[str, Any]) -> None:
    """Ray reads its settings at import: the launcher is replaced by one that tells what it would have been given."""
    script = (
        "import json, os, sys, types\n"
        "def run_on_ray(*_, **__):\n"
        "    import ray_jobs.ray_settings\n"
        "    print(json.dumps({name: value for name, value in os.environ.items() if name.startswith('RAY_')}))\n"
        "    raise SystemExit(0)\n"
        "launch = types.ModuleType('ray_jobs.launch')\n"
        "launch.run_on_ray = run_on_ray\n"
        "sys.modules['ray_jobs.launch'] = launch\n"
        "from ray_jobs.cli.main import main\n"
        "main(['pretrain', 'run.yaml', '--workers', '2'])\n"
    )
    (tmp_path / "run.yaml").write_text(json.dumps(small))  # JSON is YAML
    unset = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = unset | {"RAY_ADDRESS": "10.0.0.5:6379"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    settings = json.loads(done.stdout)
    assert "RAY_ADDRESS" not in settings
    assert settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # loopback
    assert settings["RAY_AUTH_MODE"] == "token"
    assert len(settings["RAY_AUTH_TOKEN"]) == 64
