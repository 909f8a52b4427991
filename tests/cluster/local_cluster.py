"""The cluster of cluster-local.yaml on hosts of this machine, with a laptop and an S3 server that all of them reach."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster.hosts import SYSTEM_PATH, Host, hosts, network
from servers.s3_servers import BUCKET, S3Server, running

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "cluster-local.yaml"
COPY = "/root/cluster-local.yaml"  # on the laptop
STORE = f"s3://{BUCKET}/results"
CPUS = 2  # of each host, however many this machine has
PATH = f"/root/.venv/bin:{SYSTEM_PATH}"
UP_TIMEOUT_S, COMMAND_TIMEOUT_S = 180.0, 300.0


def tested(shipped: dict[str, Any], head: str, workers: list[str]) -> dict[str, Any]:
    """The shipped configuration for these addresses.

    Beside them the user differs, and what hosts have before: an environment, which sees the code where it is copied to,
    and a number of CPUs.
    """
    config = copy.deepcopy(shipped)
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    log_in_to_what_is_installed(config)
    starts = config["worker_start_ray_commands"]
    _replace(starts, "ray start ", starts[-1].replace("ray start ", f"ray start --num-cpus={CPUS} "))
    return config


def log_in_to_what_is_installed(config: dict[str, Any]) -> None:
    """Change a configuration to hosts as `install` leaves them: for root, the environment there, the code as copied."""
    config["auth"]["ssh_user"] = "root"
    _replace(
        config["setup_commands"],
        "pip install",
        "grep -q muon ~/.bashrc || sed -i '1i export PYTHONPATH=$HOME/muon' ~/.bashrc",
    )


def _replace(commands: list[str], holding: str, by: str) -> None:
    (place,) = [number for number, command in enumerate(commands) if holding in command]
    commands[place] = by


class Followed:
    """A command that runs on the laptop, and what it prints, line by line, as it comes."""

    def __init__(self, command: list[str]) -> None:
        self.lines: list[tuple[float, str]] = []
        """Seconds since 1970, and what was printed then."""
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend((time.time(), line.rstrip()) for line in self._process.stdout)

    @property
    def text(self) -> str:
        """All it printed so far."""
        return "\n".join(line for _, line in self.lines)

    @property
    def is_going(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        code = self._process.wait(timeout_s)
        self._reader.join()
        return code

    def end(self) -> None:
        """Follow it no longer. What it started on a host must have ended, with the host at the latest."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass(slots=True)
class Cluster:
    """Hosts, and what is typed on the laptop."""

    head: Host
    workers: list[Host]
    laptop: Host
    s3: S3Server
    ending: ExitStack
    """Closed when all hosts are off."""

    def typed(self, *words: str) -> str:
        """What a command prints that is typed in the folder of the project, and that must succeed."""
        command = self._laptop(*words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def up(self) -> None:
        """As the head of the file says."""
        self.typed("ray", "up", COPY, "--no-config-cache", "-y")

    def down(self) -> None:
        """As the head of the file says."""
        self.typed("ray", "down", COPY, "-y")

    def start_sweep(self, spec: Path) -> Followed:
        """Submit the sweep of the file `spec`, or go on with it, and follow it to its end."""
        return self.submit(spec, "--tunnel", COPY, "--follow")

    def submit(self, spec: Path, *options: str) -> Followed:
        """Type `muon sweep submit` with a copy of `spec`."""
        shutil.copy(spec, self.laptop.home)
        words = ["muon", "sweep", "submit", f"/root/{spec.name}", *options]
        return self.follow(self._laptop(*words, "--store", STORE, "--yes"))

    def watch_nodes(self) -> Followed:
        """Follow which nodes Ray takes for alive: see `watch_nodes.py`."""
        script = ROOT / "tests" / "cluster" / "watch_nodes.py"
        return self.follow(self.head.command("python", str(script), PATH=PATH, RAY_AUTH_MODE="token"))

    def follow(self, command: list[str]) -> Followed:
        """Start `command`, which ends with the cluster at the latest."""
        followed = Followed(command)
        self.ending.callback(followed.end)
        return followed

    def _laptop(self, *words: str) -> list[str]:
        settings = {"RAY_UP_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
        return self.laptop.command(*words, folder=str(ROOT), PATH=PATH, **settings)


@contextmanager
def cluster(*workers: str) -> Iterator[Cluster]:
    """Hosts for a head, these workers and a laptop, all on, with the configuration, and none of them with Ray yet."""
    visible = sorted({Path(sys.base_prefix), Path(sys.prefix), Path(sys.prefix).resolve(), ROOT})
    with ExitStack() as stack:
        net = stack.enter_context(network())
        s3 = stack.enter_context(running("ministack", net.folder / "s3", host=net.gateway))
        ending = stack.enter_context(ExitStack())
        names = ["head", *workers, "laptop"]
        head, *others, laptop = stack.enter_context(hosts(net, names, lambda home: install(home, s3), visible))
        config = tested(yaml.safe_load(SHIPPED.read_text()), head.address, [worker.address for worker in others])
        (laptop.home / Path(COPY).name).write_text(yaml.safe_dump(config))
        shutil.copy(net.private_key, laptop.home / ".ssh" / "id_ed25519")
        made = Cluster(head, others, laptop, s3, ending)
        made.typed("bash", "-c", "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
        yield made


def install(home: Path, s3: S3Server) -> None:
    """What every machine has: a user's files as the system gives them, the environment, and credentials for S3."""
    for name in (".bashrc", ".profile"):
        shutil.copy(Path("/etc/skel", name), home)
    (home / ".venv").symlink_to(sys.prefix)
    (home / ".aws").mkdir(mode=0o700)
    keys = f"aws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    (home / ".aws" / "credentials").write_text(f"[default]\n{keys}")
    (home / ".aws" / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
