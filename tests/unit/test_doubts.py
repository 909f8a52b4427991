"""What is odd is said once; what is usual, and every preset, is not."""

import re
from typing import Any

import pytest

from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from search_spaces.doubts import doubts, gate_doubts
from search_spaces.expand import expand
from search_spaces.spec import parse_spec


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tracking": {"eval_every": 500}}, "tracking.eval_every is 500 and a run has 200 steps: there will be"),
        ({"tracking": {"spectra_every": 201}}, "there will be `spectra` rows of step 0 and of the last step alone"),
        ({"checkpoint": {"every_s": None, "every_steps": 300}}, "checkpoint.every_steps is 300 .* can be continued"),
        ({"schedule": {"warmup_steps": 1000}}, "the full learning rate is never reached"),
        ({"optimizer": {"name": "muon", "lr": 1e9}}, r"muon: lr is 1e\+09: weights will not stay finite"),
        ({"optimizer": {"name": "orthonoise", "clipping": "all"}}, "clipping all at norm 1 under orthonoise: Muon's"),
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


@pytest.mark.parametrize(("name", "clipping"), [("adamw", "all"), ("muon", "adamw_only")])
def test_clipping_what_it_is_for_is_usual(name: str, clipping: str) -> None:
    assert doubts([RunConfig.model_validate({"optimizer": {"name": name, "clipping": clipping}})]) == []


def test_a_checkpoint_by_the_clock_is_one() -> None:
    assert doubts([RunConfig.model_validate({"checkpoint": {"every_steps": 300}})]) == []


SWEEP = """\
version: 1
name: hunt
seeds: [1, 2]
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - {name: other, optimizer: adamw, AXES}
"""


@pytest.mark.parametrize(
    "axes",
    [
        "grid: {lr: [0.1, 0.2, 0.3, 0.4, 0.5]}",
        "zip: {lr: [0.1, 0.2, 0.3, 0.4, 0.5], embedding_lr: [1, 2, 3, 4, 5]}",
        'sample: {n: 5, lr: "loguniform(1e-3, 1)"}',
    ],
)
def test_an_optimizer_that_alone_is_tuned_is_odd(axes: str) -> None:
    configs = [run.config for run in expand(parse_spec(SWEEP.replace("AXES", axes)))]
    assert doubts(configs) == ["adamw: lr has 5 values, muon's 1: unequal tuning favours the first"]


def test_optimizers_that_are_tuned_alike_or_not_at_all_are_not() -> None:
    fixed = SWEEP.replace("AXES", "grid: {weight_decay: [0, 0.1]}")
    both = fixed.replace("grid: {", "grid: {lr: [0.1, 0.2], ") + "  - {name: m, optimizer: muon, grid: {lr: [1, 2]}}\n"
    assert [doubts([run.config for run in expand(parse_spec(text))]) for text in (fixed, both)] == [[], []]


GATED = """\
version: 1
name: hunt
seeds: [1, 2]
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - {name: noise, optimizer: orthonoise}
  - {name: other, optimizer: adamw}
gates: [{name: signal, kind: superior, of: OF}]
"""
ALONE = "gate signal: no control (isotropic) separates noise from its structure; add a block of it"


@pytest.mark.parametrize(("of", "said"), [("block:noise", [ALONE]), ('"*"', [ALONE]), ("block:other", [])])
def test_noise_that_must_win_needs_a_control(of: str, said: list[str]) -> None:
    text = GATED.replace("OF", of)
    assert gate_doubts(parse_spec(text)) == said
    assert gate_doubts(parse_spec(text.replace("superior", "non_inferior").replace("}]", ", margin: 5%}]"))) == []
    controlled = text.replace("gates:", "  - {name: c, role: control, optimizer: isotropic}\ngates:")
    assert gate_doubts(parse_spec(controlled)) == []
