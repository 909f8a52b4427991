"""cluster.yaml brought up in an emulated AWS account whose instances are hosts of this machine.

The tests are one story, in order, in one account; each prints what it measured. `make test-cluster` runs them. What the
emulation has not: capacity, but for what a test takes away, real rights, images, GPUs, and the time all of that takes.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.ec2 import KEY_PAIR, REGION, VENV, ZONES, Account, account
from cluster.hosts import Host, network
from cluster.local_cluster import PATH, ROOT, Followed, install, log_in_to_what_is_installed
from cluster.waiting import say, until
from servers.s3_servers import S3Server

pytestmark = pytest.mark.timeout(1800)
SHIPPED = ROOT / "cluster.yaml"
COPY = "/root/cluster.yaml"  # on the laptop
TEXT = ROOT / "docs" / "clusters.md"
IDLE_MINUTES = 0.5
ANSWER_S = 300.0  # a worker, on two cores that others use too


def for_hosts(shipped: dict[str, Any]) -> dict[str, Any]:
    """The shipped configuration for hosts: they have an environment already, and one address each."""
    config = copy.deepcopy(shipped)
    log_in_to_what_is_installed(config)
    config["auth"]["ssh_private_key"] = "~/.ssh/id_ed25519"
    config["provider"]["use_internal_ips"] = True
    config["idle_timeout_minutes"] = IDLE_MINUTES
    for kind in config["available_node_types"].values():
        kind["node_config"]["KeyName"] = KEY_PAIR  # which Ray makes where none is named
    return config


def furnish(home: Path, made: Account) -> None:
    """What every machine has: as in a cluster of machines one has, its credentials those of the account."""
    install(home, S3Server("moto", made.endpoint, made.access_key, made.secret_key, 0))
    uv = home / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text("#!/bin/sh\nexit 1\n")  # never called: there is an environment
    uv.chmod(0o755)


@dataclass(frozen=True)
class Story:
    """An account, and what is typed on the laptop."""

    account: Account
    laptop: Host
    ending: ExitStack

    def typed(self, *words: str) -> str:
        """What a command prints that is typed in the folder of the project, and that must succeed."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=ANSWER_S)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def command(self, *words: str) -> list[str]:
        """What types it."""
        settings = {"RAY_UP_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
        return self.laptop.command(*words, folder=str(ROOT), PATH=f"{VENV}:{PATH}", **settings)

    @property
    def head(self) -> Host:
        """The only instance there is all the time."""
        return next(iter(self.account.hosts.values()))

    def demand(self) -> Followed:
        """Begin to wait for a worker with a GPU: see `demand.py`."""
        script = str(ROOT / "tests" / "cluster" / "demand.py")
        followed = Followed(self.head.command("python", script, PATH=PATH, RAY_AUTH_MODE="token"))
        self.ending.callback(followed.end)
        return followed

    def worker(self) -> dict[str, Any]:
        """The instance that runs beside the head."""
        _, worker = self.account.instances("pending", "running")
        return worker


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    """An account in which what the text says has been done once, and a laptop with the file."""
    visible = sorted({Path(sys.base_prefix), Path(sys.prefix), Path(sys.prefix).resolve(), ROOT})
    with ExitStack() as stack:
        net = stack.enter_context(network())
        made = stack.enter_context(account(net, furnish, visible))
        laptop = Host("laptop", 0, net, made.install, visible)
        stack.callback(laptop.cut)
        laptop.start()
        config = for_hosts(yaml.safe_load(SHIPPED.read_text()))
        (laptop.home / Path(COPY).name).write_text(yaml.safe_dump(config))
        shutil.copy(net.private_key, laptop.home / ".ssh" / "id_ed25519")
        yield Story(made, laptop, stack.enter_context(ExitStack()))


def asked_since(story: Story, before: int) -> list[tuple[str, str, bool]]:
    """Type, market and whether it was refused, of each request after the first `before`."""
    return [(each.type, each.market, each.refused) for each in story.account.asked()[before:]]


def tags(described: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in described["Tags"]}


def check_instance(story: Story, instance: dict[str, Any], profile: str, kind: str) -> None:
    """Profile, tags, disk, zone and group of one are those of the file."""
    assert instance["IamInstanceProfile"]["Arn"].endswith(f"instance-profile/{profile}")
    own = tags(instance)
    assert (own["project"], own["ray-cluster-name"], own["ray-user-node-type"]) == ("muon-sweeps", "muon-sweeps", kind)
    assert instance["Placement"]["AvailabilityZone"] in {f"{REGION}{zone}" for zone in ZONES}
    assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["ray-autoscaler-muon-sweeps"]
    (disk,) = instance["BlockDeviceMappings"]
    (volume,) = story.account.ec2.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
    shipped = yaml.safe_load(SHIPPED.read_text())["available_node_types"][kind]["node_config"]
    asked = shipped["BlockDeviceMappings"][0]["Ebs"]
    assert (volume["Size"], volume["VolumeType"]) == (asked["VolumeSize"], asked["VolumeType"])
    assert disk["Ebs"]["DeleteOnTermination"]
    assert tags(volume)["project"] == "muon-sweeps"


def test_what_the_text_has_done_once_per_account_is_done(story: Story) -> None:
    section = TEXT.read_text().partition("### Once per account")[2].partition("\n### ")[0]
    script = "".join(part.partition("```")[0] for part in section.split("```sh\n")[1:])
    lines = re.sub("^aws service-quotas .*", "", script, flags=re.MULTILINE)  # which moto has not for EC2
    story.typed("bash", "-ec", lines.replace("YOUR.OWN.IP.ADDRESS", story.laptop.address))
    iam = story.account.client("iam")
    for name in ("muon-head", "muon-worker"):
        (role,) = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
        assert role["RoleName"] == name
    ruled = story.account.ec2.describe_security_groups(GroupNames=["ray-autoscaler-muon-sweeps"])["SecurityGroups"]
    open_to = [each["CidrIp"] for rule in ruled[0]["IpPermissions"] for each in rule["IpRanges"]]
    assert open_to == [f"{story.laptop.address}/32"]
    assert (story.laptop.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_the_head_is_on_demand_with_its_own_role(story: Story) -> None:
    began = time.time()
    story.typed("ray", "up", COPY, "--no-config-cache", "-y")
    say(f"{time.time() - began:.1f} s: `ray up` has returned")
    (request,) = story.account.asked()
    shipped = yaml.safe_load(SHIPPED.read_text())["available_node_types"]["head"]["node_config"]
    assert (request.type, request.market, request.zone) == ("m5.xlarge", "on-demand", f"{REGION}a")
    assert (request.profile, request.image) == ("muon-head", shipped["ImageId"])
    (head,) = story.account.instances("running")
    assert "InstanceLifecycle" not in head
    check_instance(story, head, "muon-head", "head")
    groups = story.account.ec2.describe_security_groups(GroupNames=["ray-autoscaler-muon-sweeps"])["SecurityGroups"]
    assert len(groups) == 1, "Ray took the one that was made beforehand"


def test_a_worker_that_no_zone_has_is_answered_by_the_next_type(story: Story) -> None:
    story.account.lack("g5.2xlarge spot")
    before, began = len(story.account.asked()), time.time()
    demand = story.demand()
    until("a worker has answered", lambda: not demand.is_going, ANSWER_S)
    answered = time.time()
    asked = asked_since(story, before)
    assert asked[:-1] == [("g5.2xlarge", "spot", True)] * 5, "Ray's number of tries"
    assert asked[-1] == ("g6.2xlarge", "spot", False)
    assert {each.zone for each in story.account.asked()[before:-1]} == {f"{REGION}{zone}" for zone in ZONES}
    worker = story.worker()
    first, *_, granted = story.account.asked()[before:]
    switched_on = story.account.switched_on[worker["InstanceId"]]
    for at, what in (
        (first.at, "the first type is asked for"),
        (granted.at, "the next one is granted"),
        (switched_on, "the instance takes logins"),
        (answered, "its worker has answered"),
    ):
        say(f"{at - began:.1f} s: {what}")
    assert worker["InstanceLifecycle"] == "spot"
    assert demand.text.splitlines()[-1].split() == ["g6.2xlarge", "1", worker["PrivateIpAddress"]]
    check_instance(story, worker, "muon-worker", "gpu_2_spot_g6")


def test_a_worker_without_work_goes(story: Story) -> None:
    began = time.time()
    until("the worker has been ended", lambda: len(story.account.instances("pending", "running")) == 1, ANSWER_S)
    say(f"{time.time() - began:.1f} s: the worker is gone, with `idle_timeout_minutes: {IDLE_MINUTES}`")
    assert [each["InstanceType"] for each in story.account.instances("running")] == ["m5.xlarge"]


def test_where_there_is_no_spot_worker_one_on_demand_is_taken(story: Story) -> None:
    story.account.lack("g5.2xlarge spot", "g6.2xlarge spot")
    before, began = len(story.account.asked()), time.time()
    demand = story.demand()
    until("a worker has answered", lambda: not demand.is_going, ANSWER_S)
    say(f"{time.time() - began:.1f} s: a worker on demand has answered")
    asked = asked_since(story, before)
    assert asked == [("g6.2xlarge", "spot", True)] * 5 + [("g5.2xlarge", "on-demand", False)], (
        "the first still stands back"
    )
    worker = story.worker()
    assert "InstanceLifecycle" not in worker
    assert demand.text.splitlines()[-1].split() == ["g5.2xlarge", "0", worker["PrivateIpAddress"]]
    check_instance(story, worker, "muon-worker", "gpu_1_on_demand_g5")


def test_down_leaves_nothing_that_costs_money(story: Story) -> None:
    began = time.time()
    down = Followed(story.command("ray", "down", COPY, "-y"))
    story.ending.callback(down.end)
    until("nothing runs", lambda: not story.account.instances("pending", "running"), ANSWER_S)
    say(f"{time.time() - began:.1f} s: nothing runs")
    assert down.wait(ANSWER_S) == 0, down.text
    say(f"{time.time() - began:.1f} s: `ray down` has returned")
    assert {each["State"]["Name"] for each in story.account.instances()} <= {"shutting-down", "terminated"}
    assert len(story.account.instances()) == 3
    section = TEXT.read_text().partition("## AWS")[2].partition("### Back to zero")[2].partition("```sh\n")[2]
    looks = section.partition("```")[0].partition("\n")[2]
    until("the text's search for leftovers prints nothing", lambda: not story.typed("bash", "-ec", looks).strip(), 60)
