"""An AWS account on this machine: instances that its emulated EC2 runs are hosts, and what it was asked for is kept."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from cluster.hosts import Host, Network
from servers.s3_servers import free_port

HERE = Path(__file__).parent
VENV = HERE.parents[1] / ".venv-ec2" / "bin"
REGION = "us-west-2"
ZONES = ("a", "b", "c")
KEY_PAIR = "laptop"
START_S, LOOK_S, END_S = 120.0, 0.3, 30.0
METADATA = "169.254.169.254"


@dataclass(frozen=True, slots=True)
class Request:
    """One for instances."""

    type: str
    market: str
    zone: str
    profile: str | None
    image: str
    refused: bool
    at: float
    """Seconds since 1970."""


@dataclass
class Account:
    """What can be asked of it, and what it lacks."""

    network: Network
    endpoint: str
    install: Callable[[Path], None]
    """Of every instance, as of hosts."""
    visible: Sequence[Path]
    access_key: str = "testing"
    secret_key: str = "testing"
    hosts: dict[str, Host] = field(default_factory=dict)
    """By instance; all that ever ran."""
    switched_on: dict[str, float] = field(default_factory=dict)
    """When each took logins, seconds since 1970."""
    _metadata: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ec2 = self.client("ec2")

    @property
    def _folder(self) -> Path:
        return self.network.folder / "ec2"

    def client(self, service: str) -> Any:
        """A client of one of its services."""
        keys = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
        connect: Any = boto3.client  # whose stubs want the name of the service as a literal
        return connect(service, endpoint_url=self.endpoint, region_name=REGION, **keys)

    def lack(self, *kinds: str) -> None:
        """Refuse `TYPE MARKET` from now on, and nothing else."""
        (self._folder / "lacking").write_text("\n".join(kinds))

    def asked(self) -> list[Request]:
        """Every request for instances, in order."""
        lines = (self._folder / "asked").read_text().splitlines()
        return [Request(**json.loads(line)) for line in lines]

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """Those in these states, or all it has a record of, the oldest first."""
        filters = [{"Name": "instance-state-name", "Values": list(states)}] if states else []
        pages = self.ec2.describe_instances(Filters=filters)["Reservations"]
        return [instance for page in pages for instance in page["Instances"]]

    def follow(self) -> None:
        """Switch on what has been started since, and cut off what has been ended."""
        for instance in self.instances():
            name, is_running = instance["InstanceId"], instance["State"]["Name"] == "running"
            if is_running and name not in self.hosts:
                self._start(instance)
            elif not is_running and name in self.hosts:
                self.hosts[name].cut()

    def _start(self, instance: dict[str, Any]) -> None:
        number = int(instance["PrivateIpAddress"].rpartition(".")[2]) - 10
        host = Host(instance["InstanceId"], number, self.network, self.install, self.visible)
        assert host.address == instance["PrivateIpAddress"]
        host.start(empty=True)
        self.switched_on[host.name] = time.time()
        subprocess.run(host.command("ip", "address", "add", f"{METADATA}/32", "dev", "lo"), check=True)
        facts = [instance["InstanceType"], instance.get("InstanceLifecycle", "on-demand")]
        server = host.command("/root/.venv/bin/python", str(HERE / "metadata_server.py"), *facts)
        self._metadata.append(subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        self.hosts[instance["InstanceId"]] = host

    def close(self) -> None:
        """Cut all off."""
        for host in self.hosts.values():
            host.cut()
        for server in self._metadata:
            server.wait()


@contextlib.contextmanager
def account(network: Network, install: Callable[[Path, Account], None], visible: Sequence[Path]) -> Iterator[Account]:
    """A new account: a subnet in each zone, all on `network`, and a key pair, whose private half is the network's."""
    port = free_port()
    made = Account(network, f"http://{network.gateway}:{port}", lambda home: install(home, made), visible)
    folder = network.folder / "ec2"
    folder.mkdir()
    (folder / "asked").touch()
    made.lack()
    if not VENV.exists():
        raise RuntimeError(f"{VENV} is missing; run `make test-cluster`")
    command = [str(VENV / "python"), str(HERE / "ec2_server.py"), network.gateway, str(port), str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    stopped = threading.Event()
    try:
        _wait_for(network.gateway, port, server, folder / "log")
        _furnish(made)
        follower = threading.Thread(target=_follow, args=(made, stopped))
        follower.start()
        try:
            yield made
        finally:
            stopped.set()
            follower.join()
    finally:
        made.close()
        server.terminate()
        server.wait(END_S)


def _follow(made: Account, stopped: threading.Event) -> None:
    while not stopped.wait(LOOK_S):
        made.follow()


def _wait_for(address: str, port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex((address, port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the emulated EC2 did not start; its log ends:\n{log.read_text(errors='replace')[-2000:]}")


def _furnish(made: Account) -> None:
    """As a new account is, on addresses of the network: one VPC, the default one, with a subnet in each zone."""
    ec2 = made.ec2
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    ec2.associate_vpc_cidr_block(VpcId=vpc, CidrBlock=str(made.network.subnet))
    _, *parts = made.network.subnet.subnets(prefixlen_diff=2)  # the first is this machine's and the laptop's
    for zone, part in zip(ZONES, parts, strict=True):
        ec2.create_subnet(VpcId=vpc, CidrBlock=str(part), AvailabilityZone=f"{REGION}{zone}")
    public = made.network.private_key.with_suffix(".pub").read_bytes()
    ec2.import_key_pair(KeyName=KEY_PAIR, PublicKeyMaterial=public)
