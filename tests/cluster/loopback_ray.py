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
ATTEMPTS = 3


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
    home, temporary = folder / "home", Path(tempfile.mkdtemp(prefix="mr", dir="/tmp"))  # sockets need a short name
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    own = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
           "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"}  # fmt: skip
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    with _started(home, temporary, cpus, keep | own | dict(environment or {})) as found:
        yield found
    shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _started(home: Path, temporary: Path, cpus: int, environment: dict[str, str]) -> Iterator[Head]:
    """The processes of a head; Ray gives up after thirty seconds, which may be too few on a busy machine."""
    for attempt in range(ATTEMPTS):
        log, ports = temporary / f"start{attempt}.log", [free_port() for _ in range(3)]
        command = [RAY, "start", "--head", "--block", "--include-dashboard=true", "--node-ip-address=127.0.0.1",
                   f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}",
                   f"--num-cpus={cpus}", f"--temp-dir={temporary}", "--object-store-memory=100000000",
                   "--disable-usage-stats"]  # fmt: skip
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, process_group=0)
        found = Head(f"http://127.0.0.1:{ports[1]}", home, temporary)
        try:
            if _is_up(found, process, log):
                yield found
                return
        finally:
            _end(process)
    raise RuntimeError(f"the head did not start:\n{log.read_text()[-2000:]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With all of its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _is_up(head: Head, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    """Wait until it has started, job interface and all; False if it gives up."""
    while process.poll() is None:
        if b"Ray runtime started" in log.read_bytes():
            with suppress(OSError):
                head.ask("/api/jobs/")
                return True
        time.sleep(0.2)
    return False
