"""Runs that die on the way and are taken up again from what they saved, and the weights they end with."""

import io

import pytest
import torch

from muon_core.config.run import RunConfig
from muon_core.progress import Progress
from muon_core.store.reader import list_keys
from muon_core.store.storage import Storage
from muon_core.train import train


class Killed(BaseException):
    """Stands for the death of the process: nothing of the run's own code may answer it."""


def train_until(storage: Storage, config: RunConfig, step: int, *, resume: bool = True) -> None:
    """Train to `step` and die there, before anything of that step is saved."""

    def die(progress: Progress) -> bool:
        if progress.step == step:
            raise Killed
        return True

    with pytest.raises(Killed):
        train(config, storage, report=die, resume=resume)


def steps_reported(storage: Storage, config: RunConfig) -> list[int]:
    """Train to the end; the steps on the way, of which the first tells where the run was taken up."""
    seen: list[int] = []
    assert train(config, storage, report=lambda progress: seen.append(progress.step) is None).status == "done"
    return seen


def weights(storage: Storage, config: RunConfig) -> dict[str, torch.Tensor]:
    """Of the run at its end, by parameter name; there must be one object of them."""
    (key,) = list_keys(storage, f"checkpoints/{config.run_id}/model/")
    model: dict[str, torch.Tensor] = torch.load(io.BytesIO(storage.get(key)), weights_only=True)["model"]
    return model
