"""Whole runs of 200 steps: every optimizer ends finite, and as_seed ends finite or says why not."""

import math
from pathlib import Path
from typing import Any

import pytest

from analysis.tables import open_store
from muon_core.config import OPTIMIZERS, RunConfig
from muon_core.optim.as_seed import NonFiniteMomentum
from muon_core.storage import Folder
from muon_core.train import train

pytestmark = pytest.mark.slow
STEPS: dict[str, Any] = {"steps": 200, "tracking": {"eval_every": 100, "track_every": 10}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_200_steps_end_finite_and_healthy(tmp_path: Path, run_config: RunConfig, name: str) -> None:
    outcome = train(run_config.replace(optimizer={"name": name}, **STEPS), Folder(tmp_path))
    assert (outcome.status, outcome.steps) == ("done", 200)
    assert outcome.final is not None
    assert outcome.final.val_loss < math.log(512) - 1
    health = open_store(tmp_path).table("health").collect()
    assert health.height == 20 * 2 * 6
    assert health["cos_previous_update"].is_not_null().all()
    assert float((health["gradient_agreement"] > 0).sum()) > 0.9 * health.height
    assert open_store(tmp_path).runs.collect()["health"].to_list() == [None]


@pytest.mark.parametrize("name", ["orthonoise", "isotropic", "nolah"])
def test_200_steps_as_seed_end_finite_or_say_why_not(tmp_path: Path, run_config: RunConfig, name: str) -> None:
    config = run_config.replace(optimizer={"name": name, "mode": "as_seed"}, **STEPS)
    try:
        outcome = train(config, Folder(tmp_path))
    except NonFiniteMomentum as error:
        message = str(error)
    else:
        assert outcome.status == "done"
        assert outcome.final is not None
        assert math.isfinite(outcome.final.val_loss)
        return
    assert message.startswith("as_seed momentum of blocks.")
    assert "sigma_max was " in message
    (run,) = open_store(tmp_path).runs.collect().to_dicts()
    assert run["status"] == "failed"
    assert message in run["error"]


def test_fallback_keeps_a_run_alive_and_is_flagged(tmp_path: Path, run_config: RunConfig) -> None:
    """Noise that as_seed does not survive: it goes on as SGD, and the summary says so."""
    optimizer = {"name": "orthonoise", "mode": "as_seed", "alpha": 50.0, "rank_threshold": 1.0}
    config = run_config.replace(
        optimizer=optimizer | {"on_nonfinite": "sgd_fallback"}, steps=20, tracking={"track_every": 5}
    )
    assert train(config, Folder(tmp_path)).status == "done"
    health = open_store(tmp_path).table("health").collect()
    assert health.filter(step=20)["num_fallbacks"].sum() > 0
    (flag,) = open_store(tmp_path).runs.collect()["health"].to_list()
    assert flag.startswith("runaway momentum: ")
