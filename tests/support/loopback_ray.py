"""A Ray of its own on loopback, with dashboard, job interface and tokens, as the head of a cluster has them."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
START_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Head:
    """A head that is up."""

    address: str
    """Of its job interface."""
    home: Path
    """HOME of whoever may use it: the token lies there."""
    folder: Path
    """Where it keeps logs and what jobs bring."""

    @property
    def token(self) -> str:
        return (self.home / ".ray" / "auth_token").read_text()

    def ask(self, path: str, method: str = "GET") -> str:
        """What the job interface answers. Raises OSError."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.address}{path}", headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return str(answer.read().decode())


@contextmanager
def head(folder: Path, cpus: int = 2, environment: Mapping[str, str] | None = None) -> Iterator[Head]:
    """A head whose processes end with the block."""
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    port, dashboard, agent = free_port(), free_port(), free_port()
    temporary = tempfile.mkdtemp(prefix="mr", dir="/tmp")  # sockets need a short name
    command = [RAY, "start", "--head", "--block", "--include-dashboard=true", f"--port={port}", f"--num-cpus={cpus}",
               "--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={temporary}",
               f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000",
               "--disable-usage-stats"]  # fmt: skip
    own = {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
    }
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    with open(folder / "head.log", "wb") as log:
        process = subprocess.Popen(command, env=keep | own | dict(environment or {}), stdout=log, stderr=log,
                                   process_group=0)  # fmt: skip
    try:
        found = Head(f"http://127.0.0.1:{dashboard}", home, Path(temporary))
        _wait(found, process, folder / "head.log")
        yield found
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _wait(head: Head, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the job interface answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            head.ask("/api/jobs/")
            return
        time.sleep(0.2)
    raise RuntimeError(f"the head did not start:\n{log.read_text()[-2000:]}")
