"""Checkpoints on a real S3 server: a run that dies there and is taken up again equals one that trained in a folder."""

import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from analysis.tables import open_store
from muon_core import checkpoint
from muon_core.config import RunConfig
from muon_core.layout import parse_checkpoint
from muon_core.progress import Progress
from muon_core.storage import Folder, Storage, open_storage
from muon_core.tables import SERIES
from muon_core.train import train

TIMING = ("attempt", "step_time_s", "tokens_per_s", "elapsed_s")
ON_MINISTACK = pytest.mark.parametrize("s3_server", [pytest.param("ministack", marks=pytest.mark.s3)], indirect=True)


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.fixture
def config(small: dict[str, Any]) -> RunConfig:
    """A run with noise, momentum and peaks, two milestones and a checkpoint each other step."""
    config = RunConfig.model_validate(
        small | {"optimizer": {"name": "orthonoise", "alpha": 0.1, "ns_dtype": "fp32"}, "steps": 12}
    )
    milestones = [config.tokens_per_step * step for step in (3, 11)]
    return config.replace(checkpoint={"every_steps": 2, "keep_last": 2, "milestones": milestones})


def train_until(storage: Storage, config: RunConfig, step: int, *, resume: bool = True) -> None:
    """Train to `step` and die there, before anything of that step is saved."""

    def die(progress: Progress) -> bool:
        if progress.step == step:
            raise Killed
        return True

    with pytest.raises(Killed):
        train(config, storage, report=die, resume=resume)


def first_step(storage: Storage, config: RunConfig) -> int:
    """Train to the end; the step at which the run was taken up."""
    seen: list[int] = []
    assert train(config, storage, report=lambda progress: seen.append(progress.step) is None).status == "done"
    return seen[0]


def objects(storage: Storage, config: RunConfig) -> list[tuple[str, int, int]]:
    """(name, step, number of the attempt) of each checkpoint."""
    keys = [key for key, _ in storage.list(f"checkpoints/{config.run_id}/")]
    return [(told.name, told.step, int(told.attempt[:5])) for key in keys if (told := parse_checkpoint(key))]


def rows(storage: Storage, table: str) -> pl.DataFrame:
    return open_store(storage.url).table(table).drop(TIMING, strict=False).sort("seq").collect()


def weights(storage: Storage, config: RunConfig) -> dict[str, torch.Tensor]:
    ((key, _),) = storage.list(f"checkpoints/{config.run_id}/model/")
    model: dict[str, torch.Tensor] = torch.load(io.BytesIO(storage.get(key)), weights_only=True)["model"]
    return model


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
    assert first_step(bucket, config) == 6
    assert f"checkpoint {torn} is torn or was changed (500 bytes); that of step 6 is read instead" in caplog.messages
    train(config, folder)
    kept = [("latest", 10, 2), ("latest", 12, 2), ("model", 12, 2), (eleventh, 11, 2), (third, 3, 1)]
    assert objects(bucket, config) == kept
    assert [(name, step) for name, step, _ in objects(folder, config)] == [(name, step) for name, step, _ in kept]
    for table in SERIES:
        assert rows(folder, table).height > 0
        assert rows(folder, table).equals(rows(bucket, table)), table
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
    assert first_step(bucket, config) == 4
    ended = [("latest", 10, 3), ("latest", 12, 3), ("model", 12, 3), (eleventh, 11, 3), (third, 3, 2)]
    assert objects(bucket, config) == ended
