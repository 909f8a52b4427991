"""Hosts on this machine: Linux namespaces on a bridge of their own, each with sshd, a disk, and a power switch.

A host has its own processes, network, and folders /root, /tmp, /run and /dev/shm; the rest is this machine's. Other
hosts reach it by its address alone, and when it is cut off, it is gone without a word, as a machine without power is.
All of it ends with the block that made it, and with the process, however that ends; only the bridge of one that was
killed stays.

Usage: python hosts.py   (exits with a line that says what this machine lacks for it)
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INIT = Path(__file__).with_name("host_init.sh")
NEEDED = {
    "ip": "iproute2",
    "rsync": "rsync",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "uptime": "procps",
}
"""Commands and the Debian packages they are in."""
UP_TIMEOUT_S = 30.0
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str | None:
    """A line that says what this machine lacks to have hosts; None if nothing."""
    if os.geteuid() != 0:
        return "hosts are namespaces, which only root makes: run it as root, or in a container that is privileged"
    packages = {package for name, package in NEEDED.items() if not shutil.which(name, path=SYSTEM_PATH)}
    if packages:
        return f"hosts need {' and '.join(sorted(packages))}: apt-get install {' '.join(sorted(packages))}"
    tried = subprocess.run(["unshare", "-nmpui", "--fork", "true"], capture_output=True, text=True)
    return f"this machine makes no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True, slots=True)
class Network:
    """A bridge of this machine; its first address is this machine's own, where hosts find what runs outside of them."""

    bridge: str
    subnet: ipaddress.IPv4Network
    folder: Path
    """Where disks and keys lie; the hosts see it too."""

    @property
    def gateway(self) -> str:
        return str(self.subnet[1])

    @property
    def private_key(self) -> Path:
        """Lets into every host."""
        return self.folder / "user"


@dataclass(slots=True)
class Host:
    """A machine that can be switched on and cut off.

    Args:
        install: puts what it has before anybody logs in into the home of root, given as a folder of this machine.
        visible: folders of this machine that it sees although one of its own lies above.
    """

    name: str
    number: int
    network: Network
    install: Callable[[Path], None]
    visible: Sequence[Path]
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    first_process: int = field(default=0, init=False)
    """Its id on this machine; with it all others of the host end."""

    @property
    def address(self) -> str:
        return str(self.network.subnet[10 + self.number])

    @property
    def home(self) -> Path:
        """Its /root, seen from outside."""
        return self._disk / "root"

    @property
    def _disk(self) -> Path:
        return self.network.folder / self.name

    @property
    def _link(self) -> str:
        return f"{self.network.bridge}h{self.number}"

    def start(self, *, empty: bool = False) -> None:
        """Switch it on and return when it takes logins: with its disk, or as new. Raises RuntimeError."""
        if empty:
            shutil.rmtree(self._disk, ignore_errors=True)
        if not self._disk.exists():
            self._fill()
        environment = {"PATH": SYSTEM_PATH, "NAME": self.name, "ADDRESS": self.address, "DISK": str(self._disk)}
        environment |= {"GATEWAY": self.network.gateway, "KEYS": str(self.network.folder)}
        environment |= {"VISIBLE": "\n".join(map(str, self.visible)), "HOME": "/root"}
        with (self.network.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                # It ends when this process does, and all of its own with it.
                ["setpriv", "--pdeathsig", "KILL", "unshare", "-nmpui", "--fork", "--kill-child", "--mount-proc",
                 "bash", str(INIT)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + UP_TIMEOUT_S
        self.first_process = self._find_first_process(deadline)
        inside = ["name", "eth0", "address", card(self.address), "netns", str(self.first_process)]
        ip("link", "add", self._link, "type", "veth", "peer", *inside)
        ip("link", "set", self._link, "master", self.network.bridge, "up")
        while self._ssh("true").returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} takes no logins:\n{self.log()}")
            time.sleep(0.1)

    def cut(self) -> None:
        """Cut it off and kill all it runs at once: nobody is told, /run and /dev/shm are lost. Off, it stays off."""
        if self._process is None:
            return
        subprocess.run(["ip", "link", "delete", self._link], capture_output=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first_process or self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process, self.first_process = None, 0

    def command(self, *words: str, folder: str = "/root", **environment: str) -> list[str]:
        """What runs `words` on it in `folder`, as root, without a login."""
        settings = {"HOME": "/root", "PATH": SYSTEM_PATH, "LANG": "C.UTF-8"} | environment
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", f"--wdns={folder}"]
        variables = (f"{name}={value}" for name, value in settings.items())
        return ["nsenter", "-t", str(self.first_process), *spaces, "env", "-i", *variables, *words]

    def log(self) -> str:
        """What its first process and sshd said, the end of it."""
        return (self.network.folder / f"{self.name}.log").read_text(errors="replace")[-2000:]

    def _fill(self) -> None:
        for name in ("root", "tmp", "kept"):
            (self._disk / name).mkdir(parents=True)
        (self._disk / "tmp").chmod(0o1777)
        (self.home / ".ssh").mkdir(mode=0o700)
        shutil.copy(self.network.private_key.with_suffix(".pub"), self.home / ".ssh" / "authorized_keys")
        self.install(self.home)

    def _find_first_process(self, deadline: float) -> int:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while not (found := children.read_text().split()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{self.log()}")
            time.sleep(0.02)
        return int(found[0])

    def _ssh(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=2", "BatchMode=yes"]
        flags = [flag for option in options for flag in ("-o", option)]
        return subprocess.run(
            ["ssh", *flags, "-i", str(self.network.private_key), f"root@{self.address}", *words], capture_output=True
        )


@contextlib.contextmanager
def hosts(
    network: Network, names: Sequence[str], install: Callable[[Path], None], visible: Sequence[Path]
) -> Iterator[list[Host]]:
    """Hosts of these names, all on, until the block is left. Raises RuntimeError."""
    made = [Host(name, number, network, install, visible) for number, name in enumerate(names)]
    try:
        for host in made:
            host.start()
        yield made
    finally:
        for host in made:
            host.cut()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A bridge with a name and a subnet that nobody else uses, and a folder with keys; both go with the block."""
    # On a disk, and in none of the folders that hosts have to themselves.
    folder = Path(tempfile.mkdtemp(prefix="muon-hosts-", dir="/var/tmp"))
    try:
        for key in ("user", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        bridge, subnet = _bridge()
        try:
            yield Network(bridge, subnet, folder)
        finally:
            ip("link", "delete", bridge)
    finally:
        shutil.rmtree(folder)


def _bridge() -> tuple[str, ipaddress.IPv4Network]:
    for number in range(200, 250):
        bridge, subnet = f"muon{number}", ipaddress.IPv4Network(f"10.{number}.0.0/24")
        if not any(subnet.overlaps(route) for route in _routes()):
            with contextlib.suppress(RuntimeError):  # another one took the name in this moment
                ip("link", "add", bridge, "address", card(str(subnet[1])), "type", "bridge")
                ip("address", "add", f"{subnet[1]}/{subnet.prefixlen}", "dev", bridge)
                ip("link", "set", bridge, "up")
                return bridge, subnet
    raise RuntimeError("no subnet 10.200.0.0/24 to 10.249.0.0/24 is free; remove bridges left behind: ip link delete")


def card(address: str) -> str:
    """The card's address of who has this address.

    It stays when a host is started again, and when one is cut off, where a bridge by itself would take that of another
    port: whoever has heard of the old one looks for it for a minute.
    """
    return f"02:00:{':'.join(f'{byte:02x}' for byte in ipaddress.ip_address(address).packed)}"


def _routes() -> list[ipaddress.IPv4Network]:
    routes: list[dict[str, Any]] = json.loads(ip("-json", "-4", "route", "show", "table", "all"))
    targets = (route["dst"] for route in routes if route["dst"] != "default")
    return [ipaddress.IPv4Network(target, strict=False) for target in targets]


def ip(*words: str) -> str:
    """What `ip` prints. Raises RuntimeError with what it complains of."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(missing())
