"""The cluster files are ones that Ray accepts, and keep what they promise about money, access and lost nodes."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import ray_jobs.ray_settings  # noqa: F401  before ray, whose settings of this process are those of its first import

# isort: split
from ray.autoscaler._private.util import prepare_config, validate_config
from test_docs import check_command

ROOT = Path(__file__).parents[2]
AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "cluster-local.yaml"
ROLE = "ray-autoscaler-v1"
NOTICED_MS = 15_000

each_file = pytest.mark.parametrize("file", [AWS, LOCAL], ids=lambda file: file.name)


@pytest.fixture
def config() -> dict[str, Any]:
    """That of AWS."""
    return load(AWS)


def load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return loaded


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


def test_workers_are_spot_and_start_from_none(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    worker = config["available_node_types"]["gpu_worker"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert worker["min_workers"] == 0
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["resources"]["GPU"] == 1


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
    images = {name: kind["node_config"]["ImageId"] for name, kind in config["available_node_types"].items()}
    assert images == {
        "head": "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
        "gpu_worker": "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/"
        "ami-id",
    }


def test_all_workers_may_start_at_once(config: dict[str, Any]) -> None:
    assert config["upscaling_speed"] >= config["max_workers"]
    assert config["available_node_types"]["gpu_worker"]["max_workers"] == config["max_workers"]


def test_the_head_may_look_images_up_and_hand_its_role_to_workers(config: dict[str, Any]) -> None:
    worker = config["available_node_types"]["gpu_worker"]["node_config"]
    assert worker["IamInstanceProfile"] == {"Name": ROLE}
    attach, put = (words for words in head_commands() if words[:2] == ["aws", "iam"])
    assert attach[2] == "attach-role-policy"
    assert option(attach, "--policy-arn") == "arn:aws:iam::aws:policy/AmazonSSMReadOnlyAccess"
    assert put[2] == "put-role-policy"
    assert option(attach, "--role-name") == option(put, "--role-name") == ROLE
    (statement,) = json.loads(option(put, "--policy-document"))["Statement"]
    assert statement == {"Effect": "Allow", "Action": "iam:PassRole", "Resource": f"arn:aws:iam::*:role/{ROLE}"}


def test_the_group_made_beforehand_is_the_one_ray_takes_and_lets_ssh_in_from_one_address(
    config: dict[str, Any],
) -> None:
    from ray.autoscaler._private.aws.config import SECURITY_GROUP_TEMPLATE

    create, ssh, inside = (words for words in head_commands() if words[:2] == ["aws", "ec2"])
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
def test_the_sweep_of_the_comment_joins_the_cluster_and_writes_to_s3(file: Path) -> None:
    (run,) = (words for words in head_commands(file) if words[:2] == ["ray", "exec"] and "--tmux" in words)
    words = shlex.split(run[-1])
    assert words[:3] == ["muon", "sweep", "run"]
    assert option(words, "--address") == "auto"
    assert option(words, "--store").startswith("s3://")
    check_command(words)
