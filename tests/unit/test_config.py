"""A run's identity: what changes it, what must not, and the ids that stores out there already hold."""

from typing import Any

import pytest

from muon_core.config.run import RunConfig


@pytest.mark.parametrize(
    ("optimizer", "run_id"),
    [
        ("adamw", "adamw-s42-7f967e25"),
        ("muon", "muon-s42-c1e9c0b5"),
        ("orthonoise", "orthonoise-a0.05-s42-3d04e569"),
        ("isotropic", "isotropic-a0.05-s42-d9cf4b92"),
        ("damped", "damped-a0.05-s42-2431c5a1"),
        ("nolah", "nolah-s42-6566d08f"),
    ],
)
def test_default_runs_keep_the_ids_of_earlier_releases(optimizer: str, run_id: str) -> None:
    """A failure here means that every store's runs would be trained again: only a changed result is worth that."""
    assert RunConfig.model_validate({"optimizer": {"name": optimizer}}).run_id == run_id


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batches": 2},
        {"micro_batches": "auto"},
        {"compile": True},
        {"reduction": "tree"},
        {"distribute": "owner"},
        {"parallel": "fsdp"},
        {"check_replicas_every": 0},
        {"tracking": {"eval_every": 1}},
        {"checkpoint": {"every_steps": 3}},
        {"spike": {"above": 2.0}},
    ],
)
def test_how_a_run_is_carried_out_is_no_part_of_its_identity(changes: dict[str, Any]) -> None:
    assert RunConfig.model_validate(changes).run_id == RunConfig().run_id


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ({}, {"spike": {"action": "end"}}),
        ({"spike": {"action": "end"}}, {"spike": {"action": "end", "above": 2.0}}),
        ({"model": {"dropout": 0.1}}, {"micro_batches": 2}),
        ({}, {"precision": "bf16"}),
        ({}, {"seeds": {"noise": 1}}),
    ],
)
def test_what_changes_a_result_changes_the_id(base: dict[str, Any], changes: dict[str, Any]) -> None:
    assert RunConfig.model_validate(base).run_id != RunConfig.model_validate(base | changes).run_id


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"reduction": "tree"}, "set reduction: ddp"),
        ({"distribute": "replicated"}, "set distribute: owner or auto"),
        ({"optimizer": {"name": "x", "reference": "torch.optim:Rprop", "source_sha256": ""}}, "set parallel: ddp"),
    ],
)
def test_what_shares_cannot_do_is_refused(changes: dict[str, Any], remedy: str) -> None:
    RunConfig.model_validate(changes)
    with pytest.raises(ValueError, match=f"parallel fsdp .*; {remedy}"):
        RunConfig.model_validate({"parallel": "fsdp"} | changes)


def test_more_workers_than_layers_are_refused_under_shares() -> None:
    config = RunConfig(batch_size=20, parallel="fsdp")
    config.check_workers(4)
    with pytest.raises(ValueError, match="deals 4 layers to 5 workers, some of which would have none; use at most 4"):
        config.check_workers(5)


def test_dropout_with_as_many_micro_batches_as_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"dropout 0\.1 draws masks for each micro-batch, .*; set micro_batches to a number"
    ):
        RunConfig.model_validate({"model": {"dropout": 0.1}, "micro_batches": "auto"})


def test_dropout_with_fewer_micro_batches_than_workers_is_refused() -> None:
    config = RunConfig.model_validate({"model": {"dropout": 0.1}})
    config.check_workers(1)
    with pytest.raises(ValueError, match="set micro_batches to a multiple of 2"):
        config.check_workers(2)
