"""A Ray cluster of its own on loopback, as `ray start` makes one: what only a real head answers is asked of it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 60.0
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # despite its name: addresses on loopback stay what they are


@dataclass(frozen=True)
class RayCluster:
    """A head on loopback."""

    address: str
    token: str
    folder: Path
    """Where it keeps sockets and logs."""


@contextlib.contextmanager
def ray_cluster(token: str = "") -> Iterator[RayCluster]:
    """A head with one CPU that lets in who has `token`, or anybody; ended with all its processes."""
    folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))  # sockets need short names
    cluster = RayCluster(f"127.0.0.1:{_free_port()}", token, folder)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    command = [RAY, "start", "--head", f"--port={cluster.address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1",
               f"--temp-dir={folder}", "--num-cpus=1", "--object-store-memory=80000000", "--include-dashboard=false",
               "--include-log-monitor=false", "--no-monitor",
               "--disable-usage-stats", "--block"]  # fmt: skip
    head = subprocess.Popen(
        command,
        env=clean | access | LOOPBACK | {"HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    )
    try:
        _wait_until_up(head, folder)
        yield cluster
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # workers, in groups of their own, end with their raylet
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(head: subprocess.Popen[bytes], folder: Path) -> None:
    """`ray start` notes the address of its cluster once all its servers run."""
    deadline = time.monotonic() + START_S
    while not (folder / "ray_current_cluster").exists():
        assert head.poll() is None, "ray start has ended"
        assert time.monotonic() < deadline, "ray start does not come to an end"
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
