"""Starts S3 servers on loopback, on disk: for the tests, and for a user who wants to try one.

Usage: python tests/servers/s3_servers.py [swift|ministack|ceph] [FOLDER]
swift and ministack live in `.venv-s3`, which `make s3-servers` installs; ceph_server.py tells where Ceph is looked for.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config

HERE = Path(__file__).parent
VENV = HERE.parents[1] / ".venv-s3" / "bin"
START_TIMEOUT_S = 120  # a new Ceph cluster takes 15 s on an idle machine
STOP_TIMEOUT_S = 30
LOOPBACK = "127.0.0.1"
BUCKET = "muon"
NAMES = ("swift", "ministack", "ceph")
ACCESS_KEY, SECRET = "test:tester", "testing"


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server that answers at `endpoint`, with a bucket named `BUCKET`."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment must hold."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def command(name: str, folder: Path, port: int, host: str = LOOPBACK) -> tuple[list[str], dict[str, str]]:
    """Arguments and extra environment that start the server `name`; only ministack has other hosts than loopback."""
    if name != "ministack":
        assert host == LOOPBACK, name
        python = {"swift": VENV / "python", "ceph": sys.executable}[name]
        return [str(python), str(HERE / f"{name}_server.py"), str(folder), str(port), ACCESS_KEY, SECRET], {}
    settings = {"BIND_HOST": host, "GATEWAY_PORT": str(port), "S3_PERSIST": "1", "S3_DATA_DIR": str(folder)}
    return [str(VENV / "ministack")], settings | {"SERVICES": "s3", "PERSIST_STATE": "0"}


@contextmanager
def running(name: str, folder: Path, port: int | None = None, host: str = LOOPBACK) -> Iterator[S3Server]:
    """The server `name` at the address `host`, its objects in `folder`, until the block ends. Raises RuntimeError."""
    port = port or free_port()
    arguments, settings = command(name, folder, port, host)
    if not Path(arguments[0]).exists():
        raise RuntimeError(f"{arguments[0]} is missing; run `make s3-servers`")
    folder.mkdir(parents=True, exist_ok=True)
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "PYTHON"))}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(arguments, env=keep | settings, stdout=log, stderr=log, cwd=folder)
    server = S3Server(name, f"http://{host}:{port}", ACCESS_KEY, SECRET, process.pid)
    try:
        _wait(server, process, folder / "server.log")
        s3 = client(server)
        if BUCKET not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
            s3.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def client(server: S3Server):  # type: ignore[no-untyped-def]  # boto3 has no class to name here
    """A plain boto3 client, independent of the code under test."""
    config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=config,
    )


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    _, _, place = server.endpoint.partition("://")
    host, _, port = place.partition(":")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    told = log.read_text(errors="replace").strip()
    raise RuntimeError(f"{server.name} did not start; its log {log} ends:\n{told[-2000:]}")


def main() -> None:
    """Run one server until interrupted and print what to export."""
    name = sys.argv[1] if len(sys.argv) > 1 else "ministack"
    if name not in NAMES:
        sys.exit(f"unknown server {name!r}; choose {' or '.join(NAMES)}")
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else f"build/{name}").absolute()
    try:
        with running(name, folder) as server:
            print(f"# {name} keeps its objects in {folder}; stop it with Ctrl-C. In another terminal:")
            for key, value in server.environment.items():
                print(f"export {key}={shlex.quote(value)}")
            print(f"muon sweep run search_spaces/demo.yaml --store s3://{BUCKET}/demo", flush=True)
            os.waitpid(server.pid, 0)
    except RuntimeError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
