"""An ssh tunnel to the dashboard of a cluster's head, which listens on loopback there; open while a block is entered.

ssh runs `cat` there, which reads from this process: should this one be killed, cat comes to the end of its input, and
the tunnel closes by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

DASHBOARD_PORT = 8265
OPEN_S = 15.0  # until it is open
CLOSE_S = 5.0
HEAD_S = 30.0  # until the provider has said where the head is
# The hosts of a cluster are new each time, so Ray looks at no host keys either.
OPTIONS = {
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": os.devnull,
    "LogLevel": "ERROR",
    "BatchMode": "yes",
    "IdentitiesOnly": "yes",
    "ExitOnForwardFailure": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "15",
}


@contextlib.contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """Address of the dashboard of the cluster in the file `cluster`, through a tunnel that ends with the block.

    Raises: ValueError for a file that says not enough; ConnectionError if there is no head, or no way to it.
    """
    config = _read(cluster)
    head = config["provider"].get("head_ip") or _ask_for_head(cluster)
    port = _free_port()
    with tempfile.TemporaryFile() as errors, _ssh(config, str(head), port, errors) as process:
        _wait_until_open(process, port, str(head), errors)
        yield f"http://127.0.0.1:{port}"


def ssh_command(config: Mapping[str, Any], head: str, port: int) -> list[str]:
    """ssh to `head`, as the user and with the key that `config` names, forwarding `port` to the dashboard."""
    auth = config["auth"]
    options = dict(OPTIONS)
    if proxy := auth.get("ssh_proxy_command"):
        options["ProxyCommand"] = str(proxy)
    arguments = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    keys = [word for key in _keys(config) for word in ("-i", key)]
    forward = f"127.0.0.1:{port}:127.0.0.1:{DASHBOARD_PORT}"
    return ["ssh", "-T", *arguments, *keys, "-L", forward, f"{auth['ssh_user']}@{head}", "cat"]


def _read(cluster: Path) -> dict[str, Any]:
    """The file of a cluster, with what the tunnel needs of it."""
    try:
        config = yaml.safe_load(cluster.read_text(encoding="utf-8"))
        _ = config["provider"]["type"], config["auth"]["ssh_user"]
    except OSError as error:
        raise ValueError(f"{cluster}: cannot be read: {error.strerror}; give the file of `ray up`") from error
    except (yaml.YAMLError, LookupError, TypeError, UnicodeError) as error:
        raise ValueError(f"{cluster}: has no provider.type or auth.ssh_user; give the file of `ray up`") from error
    return dict(config)


def _keys(config: Mapping[str, Any]) -> list[str]:
    """Private keys that may open the head: the one that is named, else those that Ray made for the region."""
    if named := config["auth"].get("ssh_private_key"):
        return [str(Path(named).expanduser())]
    region = config["provider"].get("region")
    if not region:
        return []  # ssh has keys of its own to try
    return sorted(map(str, Path("~/.ssh").expanduser().glob(f"ray-autoscaler*{region}*.pem")))


def _ask_for_head(cluster: Path) -> str:
    """Its address, by Ray, which asks the provider."""
    command = [str(Path(sys.executable).with_name("ray")), "get-head-ip", str(cluster)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=HEAD_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(f"{cluster}: the provider did not say in {HEAD_S:.0f} s where the head is") from error
    lines = answer.stdout.strip().splitlines()
    if answer.returncode or not lines:
        said = (answer.stderr.strip() or answer.stdout.strip() or "no answer").splitlines()[-1]
        raise ConnectionError(f"{cluster}: no head is found ({said}); `ray up {cluster}` starts one")
    return lines[-1].strip()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextlib.contextmanager
def _ssh(config: Mapping[str, Any], head: str, port: int, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, in a group of its own, for Ctrl-C is not meant for it."""
    try:
        process = subprocess.Popen(
            ssh_command(config, head, port),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            process_group=0,
        )
    except FileNotFoundError as error:
        raise ConnectionError("ssh is not installed; install it, or open a tunnel and give its --address") from error
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # and what it went through, as a ProxyCommand
        try:
            process.communicate(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_until_open(process: subprocess.Popen[bytes], port: int, head: str, errors: IO[bytes]) -> None:
    deadline = time.monotonic() + OPEN_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    errors.seek(0)
    said = (errors.read().decode(errors="replace").strip().splitlines() or ["no answer"])[-1]
    raise ConnectionError(f"no ssh tunnel to {head}: {said}; is the head up, and its key the one of the cluster file?")
