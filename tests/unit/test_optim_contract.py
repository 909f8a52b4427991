"""The contract finds what is wrong with an optimizer: one that keeps everything, and one for each way to break it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from muon_core.optim.adamw import AdamW
from muon_core.optim.contract import (
    IN_BF16,
    IN_ONE_PROCESS,
    PROMISES,
    Finding,
    Problem,
    check,
    differing,
    falls,
    keeps_state,
    leaves_gradients,
    passes_over,
    repeats,
    resumes,
    steps_alike,
)
from muon_core.optim.optimizers import Optimizers
from muon_core.optim.param_groups import NamedParameters, assign

LR = 0.2


class Momentum(torch.optim.Optimizer):
    """Keeps everything; subclasses below do not."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if self.passed_over(param):
                    continue
                param.sub_(group["lr"] * self.average(param))

    def passed_over(self, param: Tensor) -> bool:
        return param.grad is None

    def average(self, param: Tensor) -> Tensor:
        """Of the gradient."""
        state = self.state[param]
        average: Tensor = state.setdefault("momentum_buffer", torch.zeros_like(param))
        if param.grad is None:
            raise TypeError("no gradient\nto average")
        return average.lerp_(param.grad, 0.5)


class Frozen(Momentum):
    def average(self, param: Tensor) -> Tensor:
        return torch.zeros_like(param)


class Dicing(Momentum):
    def average(self, param: Tensor) -> Tensor:
        return super().average(param) + 1e-3 * torch.rand_like(param)


class Forgetting(Momentum):
    """Its momentum is its own, and no state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.own: dict[Tensor, Tensor] = {}

    def average(self, param: Tensor) -> Tensor:
        assert param.grad is not None
        return self.own.setdefault(param, torch.zeros_like(param)).lerp_(param.grad, 0.5)


class Growing(Momentum):
    """Its state is none that a file gives back."""

    def average(self, param: Tensor) -> Tensor:
        self.state[param]["hook"] = open  # no tensor and no number
        return super().average(param)


class Touching(Momentum):
    def average(self, param: Tensor) -> Tensor:
        assert param.grad is not None
        param.grad.mul_(0.5)
        return super().average(param)


class Assuming(Momentum):
    def passed_over(self, param: Tensor) -> bool:
        return False


class Ranked(Momentum):
    def average(self, param: Tensor) -> Tensor:
        return super().average(param) * (1 + (dist.get_rank() if dist.is_initialized() else 0))


class Single(Momentum):
    def average(self, param: Tensor) -> Tensor:
        return super().average(param) @ torch.eye(param.size(1))


def build(named: NamedParameters, *, cls: Callable[[Any], torch.optim.Optimizer]) -> Optimizers:
    groups = assign(named)
    return Optimizers(cls(groups["hidden"]), AdamW(groups["vectors"], lr=LR, weight_decay=0.0))


def new(cls: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype = torch.float32) -> Callable[[], Problem]:
    return partial(Problem, partial(build, cls=cls), dtype)


def test_a_good_optimizer_keeps_every_promise() -> None:
    found = list(check(partial(build, cls=Momentum)))
    assert found == [Finding(name, None, None) for name in [*(promise.name for promise in PROMISES), IN_BF16]]


BROKEN: dict[Any, tuple[Callable[..., str | None], str]] = {
    Frozen: (partial(falls, rates=(1.0, 10.0)), "after 150 steps blocks.0.square.weight has 100% of its loss left"),
    Dicing: (repeats, "blocks.0.square.weight differs"),
    Forgetting: (resumes, "blocks.0.square.weight differs"),
    Touching: (leaves_gradients, "the gradient of blocks.0.square.weight is another after the step"),
    Ranked: (steps_alike, "on rank 1 weights/blocks.0.square.weight differs"),
}


@pytest.mark.parametrize("cls", BROKEN)
def test_a_broken_promise_is_told_by_what_is_seen(cls: Any) -> None:
    promise, seen = BROKEN[cls]
    assert promise(new(cls)) == seen


def test_what_an_optimizer_raises_is_a_finding_with_its_cost() -> None:
    """One that takes every gradient for granted, and one that knows float32 alone; the rest is kept."""
    found = {one.promise: one for one in check(partial(build, cls=Assuming), IN_ONE_PROCESS) if one.seen}
    assert found.keys() == {"None gradients", IN_BF16}
    assert found["None gradients"].seen == "TypeError: to average"
    assert found["None gradients"].costs == "a parameter without gradient ends the run, or moves"
    assert found[IN_BF16].seen == "None gradients: TypeError: to average"
    (only,) = (one for one in check(partial(build, cls=Single), IN_ONE_PROCESS) if one.seen)
    assert only.promise == IN_BF16
    assert (only.seen or "").startswith("falls on a quadratic: RuntimeError: ")


def test_a_state_that_no_file_gives_back_is_a_finding() -> None:
    with pytest.raises(Exception, match="weights_only"):
        keeps_state(new(Growing))
    assert keeps_state(new(Momentum)) is None
    assert passes_over(new(Momentum)) is None


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, None),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).bfloat16()}, "a differs"),
        ({"a": {"b": torch.ones(2)}}, {"a": {"b": torch.zeros(2)}}, "a/b differs"),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, "a has c on one side only"),
        ({"a": [torch.ones(2), 1]}, {"a": [torch.ones(2), 2]}, "a/1 differs"),
        ({"a": [1]}, {"a": [1, 2]}, "a differs"),
        ({"a": 1}, {"a": 1.0}, "a differs"),
    ],
)
def test_differing_names_the_first_difference(one: Any, other: Any, where: str | None) -> None:
    assert differing(one, other) == where
