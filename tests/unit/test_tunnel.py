"""The ssh tunnel to a cluster's head: what ssh is asked for, and that it ends with whoever opened it."""

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from ray_jobs.tunnel import ssh_command, tunnel

# A program in the place of ssh that listens where it is told to, until its input ends.
SSH = f"""#!{sys.executable}
import os, socket, sys
forward = sys.argv[sys.argv.index("-L") + 1].split(":")
if sys.argv[-2].endswith("@denied"):
    sys.exit("denied: Permission denied (publickey).")
server = socket.create_server((forward[0], int(forward[1])))
sys.stdin.buffer.read()
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a cluster whose head is 10.0.0.5, and that program first in PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    path = tmp_path / "cluster.yaml"
    path.write_text("cluster_name: a\nprovider: {type: local, head_ip: 10.0.0.5}\nauth: {ssh_user: me}\n")
    return path


def is_open(address: str) -> bool:
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def test_ssh_goes_to_the_head_with_the_user_and_key_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"provider": {"type": "local"}, "auth": {"ssh_user": "me", "ssh_private_key": "~/key"}}
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ssh_command(config, "10.0.0.5", 4321)
    assert command[0] == "ssh"
    assert command[-6:] == ["-i", f"{tmp_path}/key", "-L", "127.0.0.1:4321:127.0.0.1:8265", "me@10.0.0.5", "cat"]
    assert "ExitOnForwardFailure=yes" in command
    (tmp_path / ".ssh").mkdir()
    for name in (
        "ray-autoscaler_us-west-2.pem",
        "ray-autoscaler_2_us-west-2.pem",
        "ray-autoscaler_eu-west-1.pem",
        "id",
    ):
        (tmp_path / ".ssh" / name).touch()
    aws = {"provider": {"type": "aws", "region": "us-west-2"}, "auth": {"ssh_user": "ubuntu", "ssh_proxy_command": "p"}}
    command = ssh_command(aws, "h", 1)
    keys = [Path(word).name for before, word in pairwise(command) if before == "-i"]
    assert keys == ["ray-autoscaler_2_us-west-2.pem", "ray-autoscaler_us-west-2.pem"]
    assert "ProxyCommand=p" in command


def test_a_tunnel_is_open_in_its_block_and_closed_after_it_however_that_ends(cluster: Path) -> None:
    with tunnel(cluster) as address:
        assert is_open(address)
    assert not is_open(address)
    opened: list[str] = []

    def interrupted() -> None:
        with tunnel(cluster) as address:
            opened.append(address)
            assert is_open(address)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not is_open(*opened)


def test_a_tunnel_ends_with_a_killed_process(cluster: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ray_jobs.tunnel import tunnel\n"
        "with tunnel(Path(sys.argv[1])) as address: print(address, flush=True); time.sleep(250)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(cluster)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert is_open(address)
        process.send_signal(signal.SIGKILL)
    while is_open(address):
        time.sleep(0.05)


def test_no_way_to_the_head_is_told_in_the_words_of_ssh(cluster: Path) -> None:
    cluster.write_text(cluster.read_text().replace("10.0.0.5", "denied"))
    with pytest.raises(
        ConnectionError, match=r"no ssh tunnel to denied: denied: Permission denied \(publickey\)\.; is"
    ):
        tunnel(cluster).__enter__()


@pytest.mark.parametrize("text", ["", "provider: {type: local}", "a: [", "auth: {ssh_user: me}\nprovider: 3"])
def test_a_file_that_describes_no_cluster_is_told(cluster: Path, text: str) -> None:
    cluster.write_text(text)
    with pytest.raises(ValueError, match=r"cluster\.yaml: has no provider\.type or auth\.ssh_user; give the file of"):
        tunnel(cluster).__enter__()
