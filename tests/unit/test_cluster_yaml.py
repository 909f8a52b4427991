"""The cluster file is one that Ray accepts, and keeps what it promises about money and access."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def test_cluster_file_passes_rays_validator(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def test_rays_validator_refuses_a_misspelt_field(config: dict[str, Any]) -> None:
    config["idle_timeout_minuts"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(config))


def test_workers_are_spot_and_start_from_none(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    worker = config["available_node_types"]["gpu_worker"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert worker["min_workers"] == 0
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["resources"]["GPU"] == 1


def test_dashboard_stays_on_loopback_and_every_node_asks_for_a_token(config: dict[str, Any]) -> None:
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert not [line for line in starts if "dashboard-host" in line]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
