"""What optimizers of any class keep: their groups' values, what they average, and what no checkpoint can hold."""

from typing import Any

import pytest
import torch
from torch import nn

from muon_core.optim.optimizers import Optimizers
from muon_core.optim.own_state import OWN, OwnState
from muon_core.resume import _copy


class Keeping(torch.optim.Optimizer):
    """Keeps of each parameter and of its group what it is given."""

    def __init__(self, params: Any, state: dict[str, Any] | None = None, **group: Any) -> None:
        super().__init__(params, {"lr": 0.5, "weight_decay": 0.0} | group)
        self.kept = state or {}

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
            for param in group["params"]:
                self.state[param].update(self.kept)


class Naming(Keeping):
    momentum_key = "ema"


def optimizers(cls: type[Keeping] = Keeping, **kept: Any) -> Optimizers:
    return Optimizers(cls([("w", nn.Parameter(torch.ones(2, 3)))], kept), None)


@pytest.mark.parametrize(
    ("value", "other"),
    [(1, 2), (1, 1.0), (torch.zeros(2), torch.ones(2)), ([torch.zeros(2)], [torch.ones(2)]), ((1,), (1, 2)), (None, 1)],
)
def test_values_of_groups_that_changed_are_saved_and_put_back(value: Any, other: Any) -> None:
    first, second = (Keeping([nn.Parameter(torch.ones(2))], value=value, hook=print) for _ in range(2))
    own, new = OwnState(first, leave_out=("lr",)), OwnState(second, leave_out=("lr",))
    assert own.save() == {}
    first.param_groups[0] |= {"lr": 9.0, "value": other}
    assert own.save()["groups"][0].keys() == {"value"}
    new.load(own.save())
    assert type(second.param_groups[0]["value"]) is type(other)
    assert str(second.param_groups[0]["value"]) == str(other)
    assert second.param_groups[0]["lr"] == 0.5


def test_a_count_in_a_group_is_part_of_the_saved_state() -> None:
    first, second = optimizers(), optimizers()
    assert first.state_dict().keys() == {"w"}
    for step in range(3):
        first.step(step)
    assert first.state_dict()[OWN] == {"groups": [{"seen": 3}]}
    second.load_state_dict(first.state_dict(), first.kept())
    second.step(3)
    assert second.hidden.param_groups[0]["seen"] == 4


@pytest.mark.parametrize(
    ("cls", "kept", "found"),
    [
        (Keeping, {"exp_avg": torch.ones(2, 3)}, "exp_avg"),
        (Keeping, {"momentum_buffer": torch.ones(2, 3), "exp_avg": torch.zeros(2, 3)}, "momentum_buffer"),
        (Naming, {"ema": torch.ones(2, 3), "exp_avg": torch.zeros(2, 3)}, "ema"),
        (Naming, {"exp_avg": torch.ones(2, 3)}, "exp_avg"),
        (Keeping, {"ema": torch.ones(2, 3)}, None),
        (Keeping, {"exp_avg": torch.ones(3)}, None),
        (Keeping, {"exp_avg": torch.ones(2, 3, dtype=torch.uint8)}, None),
    ],
)
def test_what_it_averages_has_a_known_name_or_the_one_that_its_class_says(
    cls: type[Keeping], kept: dict[str, Any], found: str | None
) -> None:
    made = optimizers(cls, **kept)
    before = made.momenta()
    assert before is not None
    assert before["w"].abs().max() == 0
    made.step(0)
    momenta = made.momenta()
    assert momenta is None if found is None else momenta is not None and momenta["w"] is kept[found]


def test_an_optimizer_without_a_rate_has_no_schedule() -> None:
    made = optimizers()
    del made.hidden.param_groups[0]["lr"]
    alone = Optimizers(made.hidden, None)
    alone.set_lr_multiplier(0.5)
    assert alone.hidden_lr is None


def test_what_no_checkpoint_can_hold_is_named() -> None:
    held = {"optimizers": {"w": {"a": torch.ones(1), "b": [1, (2.0, None)], "c": "text", "d": True}}}
    copied = _copy(held)
    assert copied["optimizers"]["w"]["a"] is not held["optimizers"]["w"]["a"]
    assert copied["optimizers"]["w"]["b"] == [1, (2.0, None)]
    held["optimizers"]["w"]["b"] = {"rule": print}
    with pytest.raises(ValueError, match=r"^optimizers w b rule is a builtin_function_or_method, which no checkpoint"):
        _copy(held)
