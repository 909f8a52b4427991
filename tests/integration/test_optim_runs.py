"""Whole runs: 200 steps of every optimizer, as_seed ones that say why they failed, and two ranks that drift apart."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.ranks import run_ranks
from torch import Tensor

from analysis.store import open_store
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.run import RunConfig
from muon_core.optim.as_seed import NonFiniteMomentum
from muon_core.optim.optimizers import Optimizers
from muon_core.optim.sharding import ReplicasDiffer
from muon_core.store.folder import Folder
from muon_core.train import train

pytestmark = pytest.mark.slow
MATRICES = 6


@pytest.fixture
def long_run(run_config: RunConfig) -> RunConfig:
    """200 steps of a model of one layer, with 20 measurements."""
    one_layer = run_config.model.replace(num_layers=1)
    return run_config.replace(model=one_layer, steps=200, tracking={"eval_every": 100, "track_every": 10})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_200_steps_end_finite_and_healthy(tmp_path: Path, long_run: RunConfig, name: str) -> None:
    outcome = train(long_run.replace(optimizer={"name": name}), Folder(tmp_path))
    assert (outcome.status, outcome.steps) == ("done", 200)
    assert outcome.final is not None
    assert outcome.final.val_loss < math.log(512) - 1
    health = open_store(tmp_path).table("health").collect()
    assert health.height == 20 * MATRICES
    assert health["cos_previous_update"].is_not_null().all()
    assert float((health["gradient_agreement"] > 0).sum()) > 0.9 * health.height
    assert open_store(tmp_path).runs.collect()["health"].to_list() == [None]


@pytest.mark.parametrize("name", ["orthonoise", "isotropic", "nolah"])
def test_200_steps_as_seed_end_finite_or_say_why_not(tmp_path: Path, long_run: RunConfig, name: str) -> None:
    config = long_run.replace(optimizer={"name": name, "mode": "as_seed"})
    try:
        outcome = train(config, Folder(tmp_path))
    except NonFiniteMomentum as error:
        message = str(error)
    else:
        assert outcome.status == "done"
        assert outcome.final is not None
        assert math.isfinite(outcome.final.val_loss)
        if name != "orthonoise":  # no cubic steps, which alone diverge: large singular values are no fault
            assert open_store(tmp_path).runs.collect()["health"].to_list() == [None]
            assert open_store(tmp_path).table("health").collect()["num_divergent"].null_count() == 20 * MATRICES
        return
    assert message.startswith("as_seed momentum of blocks.")
    assert "sigma_max was " in message
    assert "; use mode well_posed, a smaller lr" in message
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


def one_strays(rank: int, config: str, store: str) -> None:
    """One of two ranks; a weight of rank 1 is changed by a bit or two after step 4. Both notice at step 6."""
    step = Optimizers.step

    def straying(self: Optimizers, number: int, **options: Any) -> dict[str, Tensor]:
        updates = step(self, number, **options)
        if (rank, number) == (1, 3):
            self.hidden.param_groups[0]["params"][2].data[0, 0] += 1e-6
        return updates

    Optimizers.step = straying  # type: ignore[method-assign,assignment]
    with pytest.raises(ReplicasDiffer, match=r"weights differ between ranks at step 6: .* look for a rank with other"):
        train(RunConfig.model_validate_json(config), Folder(store))


def test_ranks_that_drift_apart_fail_the_run_and_the_probe_is_recorded(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(check_replicas_every=3)
    run_ranks(2, tmp_path / "rendezvous", one_strays, config.model_dump_json(), str(tmp_path / "store"))
    (run,) = open_store(tmp_path / "store").runs.collect().to_dicts()
    assert run["status"] == "failed"
    assert "ReplicasDiffer: weights differ between ranks at step 6: " in run["error"]
    probe = json.loads(run["distribution_json"])
    assert probe["mode"] == ("owner" if probe["gather_s"] < probe["compute_s"] else "replicated")
