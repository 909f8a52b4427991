"""What is odd is said once; what is usual, and every preset, is not."""

import re
from typing import Any

import pytest

from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from search_spaces.doubts import doubts


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tracking": {"eval_every": 500}}, "tracking.eval_every is 500 and a run has 200 steps: there will be"),
        ({"tracking": {"spectra_every": 201}}, "there will be `spectra` rows of the last step alone"),
        ({"checkpoint": {"every_s": None, "every_steps": 300}}, "checkpoint.every_steps is 300 .* can be continued"),
        ({"schedule": {"warmup_steps": 1000}}, "the full learning rate is never reached"),
        ({"optimizer": {"name": "muon", "lr": 1e9}}, r"muon: lr is 1e\+09: weights will not stay finite"),
        ({"optimizer": {"name": "adamw", "embedding_lr": 1e-9}}, "adamw: embedding_lr is 1e-09: weights will hardly"),
    ],
)  # fmt: skip
def test_what_is_odd_is_said_once(fields: dict[str, Any], said: str) -> None:
    runs = [RunConfig.model_validate(fields | {"seed": seed}) for seed in (1, 2)]
    (doubt,) = doubts(runs)
    assert re.search(said, doubt)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_not(preset: str) -> None:
    assert doubts([RunConfig.model_validate(PRESETS[preset])]) == []


def test_a_default_period_longer_than_a_short_run_is_nobodys_mistake() -> None:
    assert doubts([RunConfig(steps=5)]) == []


def test_a_checkpoint_by_the_clock_is_one() -> None:
    assert doubts([RunConfig.model_validate({"checkpoint": {"every_steps": 300}})]) == []
