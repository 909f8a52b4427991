"""Checkpoints on a real S3 server: a run that dies there and is taken up again equals one that trained in a folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from servers.whole_tables import assert_same_tables
from support.saved_runs import steps_reported, train_until, weights

from muon_core import checkpoint
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.store.keys import parse_checkpoint
from muon_core.store.open import open_storage
from muon_core.store.storage import Storage
from muon_core.train import train

ON_MINISTACK = pytest.mark.parametrize("s3_server", [pytest.param("ministack", marks=pytest.mark.s3)], indirect=True)


@pytest.fixture
def config(small: dict[str, Any]) -> RunConfig:
    """A run with noise, momentum and peaks, two milestones and a checkpoint each other step."""
    config = RunConfig.model_validate(
        small | {"optimizer": {"name": "orthonoise", "alpha": 0.1, "ns_dtype": "fp32"}, "steps": 12}
    )
    milestones = [config.tokens_per_step * step for step in (3, 11)]
    return config.replace(checkpoint={"every_steps": 2, "keep_last": 2, "milestones": milestones})


def objects(storage: Storage, config: RunConfig) -> list[tuple[str, int, int]]:
    """(name, step, number of the attempt) of each checkpoint."""
    keys = [key for key, _ in storage.list(f"checkpoints/{config.run_id}/")]
    return [(told.name, told.step, int(told.attempt[:5])) for key in keys if (told := parse_checkpoint(key))]


@ON_MINISTACK
def test_a_run_that_dies_on_s3_and_finds_its_newest_checkpoint_torn_equals_one_in_a_folder(
    s3_url: str, tmp_path: Path, config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    bucket, folder = open_storage(s3_url), Folder(tmp_path)
    third, eleventh = (checkpoint.milestone_name(step, step * config.tokens_per_step) for step in (3, 11))
    train_until(bucket, config, 9)
    assert objects(bucket, config) == [("latest", 6, 1), ("latest", 8, 1), (third, 3, 1)]
    torn = checkpoint.saved(bucket, config.run_id)[0].key
    bucket.put(torn, bucket.get(torn)[:500])
    assert steps_reported(bucket, config)[0] == 6
    assert f"checkpoint {torn} is torn or was changed (500 bytes); that of step 6 is read instead" in caplog.messages
    train(config, folder)
    kept = [("latest", 10, 2), ("latest", 12, 2), ("model", 12, 2), (eleventh, 11, 2), (third, 3, 1)]
    assert objects(bucket, config) == kept
    assert [(name, step) for name, step, _ in objects(folder, config)] == [(name, step) for name, step, _ in kept]
    assert_same_tables(bucket.url, folder.url)
    ours, theirs = weights(folder, config), weights(bucket, config)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    stored = RunConfig.model_validate_json(bucket.get(f"checkpoints/{config.run_id}/config.json"))
    assert stored == config


@ON_MINISTACK
def test_a_run_begun_again_on_s3_clears_what_was_given_up(s3_url: str, config: RunConfig) -> None:
    bucket = open_storage(s3_url)
    train(config, bucket)
    train_until(bucket, config, 5, resume=False)
    eleventh = checkpoint.milestone_name(11, 11 * config.tokens_per_step)
    third = checkpoint.milestone_name(3, 3 * config.tokens_per_step)
    begun = [("latest", 2, 2), ("latest", 4, 2), ("model", 12, 1), (eleventh, 11, 1), (third, 3, 2)]
    assert objects(bucket, config) == begun
    assert steps_reported(bucket, config)[0] == 4
    ended = [("latest", 10, 3), ("latest", 12, 3), ("model", 12, 3), (eleventh, 11, 3), (third, 3, 2)]
    assert objects(bucket, config) == ended
