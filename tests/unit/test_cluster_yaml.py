"""The cluster files are ones that Ray accepts, and keep what they promise about money, access and lost nodes."""

import json
import re
import shlex
import subprocess
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import ray_jobs.ray_settings  # noqa: F401  before ray, whose settings of this process are those of its first import

# isort: split
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from ray.autoscaler._private.loader import load_function_or_class
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilityRecord,
    NodeAvailabilitySummary,
    UnavailableNodeInformation,
)
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config
from test_docs import blocks, check_command, shell_lines

from ray_jobs.node_choice import score
from ray_jobs.prices import OURS, load_prices

ROOT = Path(__file__).parents[2]
AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "cluster-local.yaml"
NOTICED_MS = 15_000

each_file = pytest.mark.parametrize("file", [AWS, LOCAL], ids=lambda file: file.name)


@pytest.fixture
def config() -> dict[str, Any]:
    """That of AWS."""
    return load(AWS)


def load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return loaded


def workers(config: dict[str, Any]) -> dict[str, Any]:
    """Its types of workers."""
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def starts(file: Path) -> list[str]:
    """What starts Ray, on the head and on a worker."""
    config = load(file)
    lines = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    found = [line for line in lines if "ray start" in line]
    assert len(found) == 2
    return found


def head_commands(file: Path = AWS) -> list[list[str]]:
    """The words of each command in the comment above the configuration."""
    comment = file.read_text().partition("cluster_name:")[0]
    indented = "\n".join(re.findall(r"^#   +(.*)$", comment, re.MULTILINE)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in indented.splitlines()]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


@each_file
def test_cluster_files_pass_rays_validator(file: Path) -> None:
    validate_config(prepare_config(load(file)))


@each_file
def test_rays_validator_refuses_a_misspelt_field(file: Path) -> None:
    config = load(file) | {"idle_timeout_minuts": 5}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(config))


def test_workers_start_from_none_and_spot_ones_come_before_those_on_demand(config: dict[str, Any]) -> None:
    kinds = config["available_node_types"]
    assert "InstanceMarketOptions" not in kinds[config["head_node_type"]]["node_config"]
    markets = []
    for kind in workers(config).values():
        assert kind["min_workers"] == 0
        markets.append(kind["node_config"].get("InstanceMarketOptions"))
    assert markets == [{"MarketType": "spot"}, {"MarketType": "spot"}, None]


def test_types_of_workers_have_the_same_resources_and_are_as_large(config: dict[str, Any]) -> None:
    """Else Ray would choose by size."""
    prices = load_prices(str(OURS))
    for kind in workers(config).values():
        price = prices.nodes[kind["node_config"]["InstanceType"]]
        assert kind["resources"] == {"CPU": price.cpus, "GPU": price.gpus} == {"CPU": 8, "GPU": 1}


def chosen(config: dict[str, Any], scorer: Any, workers: int, *refused: str) -> dict[str, int]:
    """What Ray's autoscaler asks for, types in `refused` having been refused in this order."""
    records = {
        name: NodeAvailabilityRecord(name, False, at, UnavailableNodeInformation("InsufficientInstanceCapacity", ""))
        for at, name in enumerate(refused, 1)
    }
    summary = NodeAvailabilitySummary(records)
    types, head = config["available_node_types"], config["head_node_type"]
    demand = [{"CPU": 1.0, "GPU": 1.0}] * workers
    found, left = get_nodes_for(
        types, {head: 1}, head, workers, demand, partial(scorer, node_availability_summary=summary)
    )
    assert left == []
    return dict(found)


def test_a_type_that_aws_has_not_is_answered_by_the_next_in_the_order_of_the_file(config: dict[str, Any]) -> None:
    head, _ = starts(AWS)
    path = head.partition("RAY_AUTOSCALER_UTILIZATION_SCORER=")[2].split()[0]
    scorer = load_function_or_class(path)
    order = list(workers(config))
    for refused in range(len(order)):
        assert chosen(config, scorer, 8, *order[:refused]) == {order[refused]: 8}
    assert chosen(config, scorer, 2, *order) == {order[0]: 2}, "the oldest refusal"
    assert chosen(config, scorer, 2, *order[1:], order[0]) == {order[1]: 2}


def test_ray_alone_would_ask_for_the_refused_type_again(config: dict[str, Any]) -> None:
    """Once this fails, `ray_jobs/node_choice.py` may go."""
    first, *_ = workers(config)
    assert chosen(config, _default_utilization_scorer, 2, first) == {first: 2}


def test_work_that_fits_nowhere_and_work_without_gpus_are_scored_as_by_ray() -> None:
    none = NodeAvailabilitySummary({})
    gpu, cpu = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}
    assert score(cpu, [{"GPU": 1.0}], "cpu", node_availability_summary=none) is None
    refused = NodeAvailabilitySummary({"cpu": NodeAvailabilityRecord("cpu", False, 1.0, None)})
    with_gpu = score(gpu, [{"CPU": 1.0}], "gpu", node_availability_summary=refused)
    without = score(cpu, [{"CPU": 1.0}], "cpu", node_availability_summary=refused)
    assert with_gpu
    assert without
    assert without > with_gpu, "a refusal sends no work without GPUs to nodes that have them"


@each_file
def test_dashboard_stays_on_loopback_and_every_node_asks_for_a_token(file: Path) -> None:
    for line in starts(file):
        assert "dashboard-host" not in line
        assert "RAY_AUTH_MODE=token" in line.partition("ray start")[0]
    config = load(file)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert ["ray", "get-auth-token", "--generate", "&&", "chmod", "600", "~/.ray/auth_token"] in head_commands(file)


@each_file
def test_a_lost_node_is_noticed_in_time_and_a_busy_one_has_ten_seconds(file: Path) -> None:
    head, _ = starts(file)
    period, timeout, failures = (
        int(head.partition(f"RAY_health_check_{name}=")[2].split()[0].rstrip(";"))
        for name in ("period_ms", "timeout_ms", "failure_threshold")
    )
    assert 10_000 < failures * (period + timeout) < NOTICED_MS


def test_a_machine_that_comes_back_without_the_token_starts_no_ray() -> None:
    """Ray of a head without it would let anybody in."""
    for group in ("head_start_ray_commands", "worker_start_ray_commands"):
        first, *_ = load(LOCAL)[group]
        done = subprocess.run(["bash", "-c", first], env={"HOME": "/nonexistent"}, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "this machine is empty, run ray down, then ray up\n")


@pytest.mark.parametrize(("failures", "code"), [(0, 0), (2, 0), (9, 1)])
def test_a_worker_whose_ray_does_not_start_tries_again_and_leaves_nothing_of_it(
    tmp_path: Path, failures: int, code: int
) -> None:
    """Ray gives a machine up for good whose start fails once."""
    _, worker = starts(LOCAL)
    ray = tmp_path / "ray"
    ray.write_text(f"#!/bin/sh\necho $1 >> calls\ntest $1 = stop || test $(grep -c start calls) -gt {failures}\n")
    ray.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    done = subprocess.run(["bash", "-c", worker], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().split()
    assert calls == ["start", "stop"] * min(failures, 5) + ["start"] * (code == 0)


def test_machines_one_has_are_brought_up_as_their_file_says() -> None:
    up, down = (
        words for words in head_commands(LOCAL) if {"up", "down"} & set(words) and "cluster-local.yaml" in words
    )
    assert up == ["RAY_UP_enable_autoscaler_v2=0", "ray", "up", "cluster-local.yaml", "--no-config-cache", "-y"]
    assert down == ["ray", "down", "cluster-local.yaml", "-y"]


def test_workers_run_the_gpu_image_that_is_current_and_the_head_a_plain_one(config: dict[str, Any]) -> None:
    head = config["available_node_types"]["head"]["node_config"]["ImageId"]
    assert head == "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    assert {kind["node_config"]["ImageId"] for kind in workers(config).values()} == {
        "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
    }


def test_all_workers_may_start_at_once(config: dict[str, Any]) -> None:
    assert config["upscaling_speed"] >= config["max_workers"]
    assert {kind["max_workers"] for kind in workers(config).values()} == {config["max_workers"]}


def test_what_is_started_is_tagged_ends_with_its_disk_and_tells_its_role_to_no_guest(config: dict[str, Any]) -> None:
    """A request that some service of an instance was talked into has no token of the metadata's."""
    for kind in config["available_node_types"].values():
        node = kind["node_config"]
        tags = {spec["ResourceType"]: spec["Tags"] for spec in node["TagSpecifications"]}
        project = [{"Key": "project", "Value": config["cluster_name"]}]
        assert tags == {"instance": project, "volume": project}
        assert all(disk["Ebs"]["DeleteOnTermination"] for disk in node["BlockDeviceMappings"])
        assert node["MetadataOptions"]["HttpTokens"] == "required"
    assert f"Name=tag:project,Values={config['cluster_name']}" in (ROOT / "docs" / "clusters.md").read_text()


def test_one_python_and_one_installer_serve_head_and_workers(config: dict[str, Any]) -> None:
    assert config["head_setup_commands"] == []
    assert "worker_setup_commands" not in config
    lines = "\n".join(config["setup_commands"])
    assert "apt" not in lines
    (venv,) = [line for line in config["setup_commands"] if " venv " in line]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert "--managed-python --python 3.11" in venv
    assert Version("3.11") in SpecifierSet(python)
    assert re.search(r"astral\.sh/uv/\d+\.\d+\.\d+/install\.sh", lines), "another uv may know another Python 3.11"


CURL = """#!/bin/sh
for last; do :; done
case $last in
  */api/token) echo secret;;
  */meta-data/*) case "$*" in *"X-aws-ec2-metadata-token: secret"*) cat "$ANSWERS/${last##*/}";; *) exit 22;; esac;;
  *) exit 22;;
esac
"""


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"instance-type": "g6.2xlarge", "instance-life-cycle": "spot"}, "g6.2xlarge 1 token"),
        ({"instance-type": "g5.2xlarge", "instance-life-cycle": "on-demand"}, "g5.2xlarge 0 token"),
        ({}, "unknown 0 token"),
    ],
    ids=["spot", "on demand", "no answer"],
)
def test_a_worker_is_charged_as_what_its_instance_says_it_is(
    answers: dict[str, str], told: str, tmp_path: Path
) -> None:
    """One that does not answer has no price, which is said, and not the price of a machine that is ours."""
    _, start = starts(AWS)
    commands = {"curl": CURL, "ray": '#!/bin/sh\necho "$MUON_NODE_TYPE $MUON_NODE_SPOT $RAY_AUTH_MODE $*"\n'}
    for name, script in commands.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    for name, answer in answers.items():
        (tmp_path / name).write_text(answer)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ANSWERS": str(tmp_path), "RAY_HEAD_IP": "10.0.0.1"}
    done = subprocess.run(
        ["bash", "-c", f"ulimit() {{ :; }}; {start}"], env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{told} start --address=10.0.0.1:6379\n", done.stderr


def aws_lines(service: str) -> list[list[str]]:
    """The words of each command of the AWS command line in the text that is for `service`."""
    lines = shell_lines(ROOT / "docs" / "clusters.md")
    return [words for words in lines if words[:2] == ["aws", service]]


def test_every_command_to_aws_names_the_region_of_the_file(config: dict[str, Any]) -> None:
    """The region of one's profile may be another, and what is made there is not what Ray finds."""
    region = config["provider"]["region"]
    lines = [words for words in shell_lines(ROOT / "docs" / "clusters.md") if words[0] == "aws"]
    for words in lines:
        assert option(words, "--region") == ("us-east-1" if words[1] == "budgets" else region), "budgets have no other"
    text = "".join(blocks(ROOT / "docs" / "clusters.md", "sh"))
    assert text.count("aws ") == text.count("--region ") > len(lines), "also where one stands inside of another"
    zones = config["provider"]["availability_zone"].split(",")
    assert len(zones) > 1
    assert all(zone[:-1] == region for zone in zones)


def policy(name: str) -> list[dict[str, Any]]:
    """The statements of one."""
    statements: list[dict[str, Any]] = json.loads((ROOT / "aws" / f"{name}-policy.json").read_text())["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return statements


def several(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["head", "bucket"])
def test_policies_allow_named_actions_and_all_resources_for_looking_only(name: str) -> None:
    for statement in policy(name):
        actions = several(statement["Action"])
        assert all(re.fullmatch(r"(ec2|s3|ssm|iam):[A-Za-z]+", action) for action in actions)
        if "*" in several(statement["Resource"]):
            assert all(action.startswith("ec2:Describe") for action in actions)


def test_the_head_may_start_the_types_of_the_file_end_its_own_and_hand_on_the_role_of_workers(
    config: dict[str, Any],
) -> None:
    by_sid = {statement["Sid"]: statement for statement in policy("head")}
    kinds = {kind["node_config"]["InstanceType"] for kind in workers(config).values()}
    assert set(by_sid["StartWorkers"]["Condition"]["StringEquals"]["ec2:InstanceType"]) == kinds
    own = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": config["cluster_name"]}}
    ending = [each for each in policy("head") if "ec2:TerminateInstances" in several(each["Action"])]
    assert [each["Condition"] for each in ending] == [own]
    assert by_sid["HandWorkersTheirRole"]["Resource"] == "arn:aws:iam::*:role/muon-worker"
    ((service, name),) = {
        tuple(kind["node_config"]["ImageId"].partition("resolve:ssm:")[2].split("/")[1:3])
        for kind in config["available_node_types"].values()
    }
    assert by_sid["LookImagesUp"]["Resource"] == f"arn:aws:ssm:*::parameter/{service}/{name}/*"


def test_the_text_makes_the_profiles_of_the_file_and_workers_may_use_the_bucket_only(config: dict[str, Any]) -> None:
    given: dict[str, list[str]] = {}
    for words in aws_lines("iam"):
        if words[2] == "put-role-policy":
            given.setdefault(option(words, "--role-name"), []).append(option(words, "--policy-document"))
    bucket = "$(sed s/MY-BUCKET/$BUCKET/ aws/bucket-policy.json)"
    assert given == {"muon-worker": [bucket], "muon-head": [bucket, "file://aws/head-policy.json"]}
    resources = {resource for statement in policy("bucket") for resource in several(statement["Resource"])}
    assert resources == {"arn:aws:s3:::MY-BUCKET", "arn:aws:s3:::MY-BUCKET/*"}
    for kind, names in (("role", given), ("instance-profile", given)):
        made = [words for words in aws_lines("iam") if words[2] == f"create-{kind}"]
        assert {option(words, f"--{kind}-name") for words in made} == set(names)
    added = [words for words in aws_lines("iam") if words[2] == "add-role-to-instance-profile"]
    assert {option(words, "--role-name"): option(words, "--instance-profile-name") for words in added} == {
        name: name for name in given
    }
    head = config["available_node_types"]["head"]["node_config"]
    assert head["IamInstanceProfile"] == {"Name": "muon-head"}
    profiles = [kind["node_config"]["IamInstanceProfile"] for kind in workers(config).values()]
    assert profiles == [{"Name": "muon-worker"}] * 3


def test_quotas_are_those_of_all_workers_and_the_alarm_is_valid(config: dict[str, Any]) -> None:
    asked = [words for words in aws_lines("service-quotas") if words[2] == "request-service-quota-increase"]
    vcpus = 8 * config["max_workers"]
    assert {option(words, "--quota-code"): int(option(words, "--desired-value")) for words in asked} == {
        "L-3819A6DF": vcpus,
        "L-DB2E81BA": vcpus,
    }
    (budget,) = aws_lines("budgets")
    assert json.loads(option(budget, "--budget"))["BudgetType"] == "COST"
    (notification,) = json.loads(option(budget, "--notifications-with-subscribers"))
    assert notification["Subscribers"]


def test_costs_of_the_text_are_those_of_the_table(config: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "clusters.md").read_text().partition("### What it costs")[2].partition("###")[0]
    kinds = [kind["node_config"]["InstanceType"] for kind in config["available_node_types"].values()]
    prices = load_prices(str(OURS)).nodes
    rows = {what: float(usd) for what, usd in re.findall(r"^\| ([^|]+) \|[^|]*\| ([\d.]+)", text, re.MULTILINE)}
    told = {name.group(1): usd for what, usd in rows.items() if (name := re.search("`(.*)`", what))}
    assert told == {name: prices[name].usd_per_hour for name in kinds}
    head, *others = kinds
    address = rows["a public address, each node"]
    worker = max(told[name] for name in others) + rows["a worker's disk, 150 GB at 0.08 a month"] + address
    assert f"at most {config['max_workers'] * worker + told[head] + address:.1f} USD" in text


def test_the_group_made_beforehand_is_the_one_ray_takes_and_lets_ssh_in_from_one_address(
    config: dict[str, Any],
) -> None:
    from ray.autoscaler._private.aws.config import SECURITY_GROUP_TEMPLATE

    create, ssh, inside = (words for words in aws_lines("ec2") if "--group-name" in words)
    group = SECURITY_GROUP_TEMPLATE.format(config["cluster_name"])
    assert {option(words, "--group-name") for words in (create, ssh, inside)} == {group}
    assert (option(ssh, "--port"), option(ssh, "--cidr")) == ("22", "YOUR.OWN.IP.ADDRESS/32")
    assert (option(inside, "--protocol"), option(inside, "--source-group")) == ("all", group)


@each_file
def test_what_is_mounted_is_what_the_package_needs_and_no_caches_or_results(file: Path) -> None:
    """Ray hashes every file below a mount, excluded or not, so a mount of the whole folder would count them."""
    config = load(file)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    mounts = {remote: local for remote, local in config["file_mounts"].items() if "auth_token" not in remote}
    assert mounts == {f"~/muon/{name}": f"./{name}" for name in packages | files}
    assert all((ROOT / local).exists() for local in mounts.values())
    assert config["rsync_exclude"] == ["**/__pycache__"]
    assert any(line.endswith("-c ~/muon/constraints.txt -e ~/muon") for line in config["setup_commands"])


@each_file
def test_the_sweep_of_the_comment_is_submitted_to_this_cluster_and_writes_to_s3(file: Path) -> None:
    (words,) = (words for words in head_commands(file) if words[:3] == ["muon", "sweep", "submit"])
    assert option(words, "--tunnel") == file.name
    assert option(words, "--store").startswith("s3://")
    check_command(words)
