"""Whose gradients are clipped, by which norm, and that they stay as they are."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from muon_core.config.optimizers import AdamWConfig, MuonConfig, OddSetting
from muon_core.optim.build import build_optimizers
from muon_core.optim.clipping import clipped
from muon_core.optim.optimizers import Optimizers


def params(*gradients: torch.Tensor | None) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(2, 2)) for _ in gradients]
    for param, gradient in zip(made, gradients, strict=True):
        param.grad = gradient
    return made


@pytest.mark.parametrize("max_norm", [0.5, 1000.0])
def test_clipped_has_the_bits_of_torch_and_puts_gradients_back(max_norm: float) -> None:
    gradients = [torch.randn(2, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    ours, theirs = params(*gradients), params(*(gradient.clone() for gradient in gradients))
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    before = [gradient.clone() for gradient in gradients]
    with clipped(ours, max_norm):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            assert torch.equal(mine.grad, other.grad)
    for mine, gradient, values in zip(ours, gradients, before, strict=True):
        assert mine.grad is gradient
        assert torch.equal(gradient, values)


def test_clipped_without_gradients_does_nothing() -> None:
    (param,) = params(None)
    with clipped([param], 1.0):
        assert param.grad is None


def test_gradients_come_back_after_an_error() -> None:
    gradient = torch.ones(2, 2)
    (param,) = params(gradient)
    with pytest.raises(KeyError), clipped([param], 1.0):
        raise KeyError
    assert param.grad is gradient


def optimizers(config: Any) -> tuple[Optimizers, dict[str, nn.Parameter]]:
    named = {"embedding.weight": nn.Parameter(torch.zeros(2, 2)), "blocks.0.w.weight": nn.Parameter(torch.zeros(2, 2))}
    for param in named.values():
        param.grad = torch.full((2, 2), 3.0)  # each of norm 6, both of norm 6 sqrt 2
    patterns: Any = [("embedding.weight", "vectors"), ("blocks.*", "hidden")]
    return build_optimizers(named.items(), config, noise_seed=0, patterns=patterns), named


def seen_gradients(config: Any) -> list[float]:
    """Size of a gradient entry as Muon's momentum (without memory) and AdamW's first moment (0.1 of it) saw it."""
    both, named = optimizers(config)
    both.step(0)
    hidden, vectors = both.hidden.state[named["blocks.0.w.weight"]], both.vectors.state[named["embedding.weight"]]
    first = hidden.get("momentum_buffer", hidden.get("exp_avg", torch.zeros(1)) * 10)
    return [float(first.flatten()[0]), float(vectors["exp_avg"].flatten()[0]) * 10]


@pytest.mark.parametrize(
    ("clipping", "expected"), [("none", [3, 3]), ("adamw_only", [3, 0.5]), ("all", [0.5 / 2**0.5, 0.5 / 2**0.5])]
)
def test_policy_decides_who_is_clipped_under_muon(clipping: Any, expected: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = seen_gradients(MuonConfig(clipping=clipping, momentum=0.0))
    assert seen == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("clipping", "size"), [("none", 3.0), ("adamw_only", 0.5 / 2**0.5), ("all", 0.5 / 2**0.5)])
def test_both_policies_clip_all_where_all_is_adamw(clipping: Any, size: float) -> None:
    assert seen_gradients(AdamWConfig(clipping=clipping)) == pytest.approx([size, size], rel=1e-4)


def test_clipping_all_under_muon_warns() -> None:
    with pytest.warns(OddSetting, match=r"clipping all at norm 1 under muon: .* adamw_only clips where it matters"):
        optimizers(MuonConfig(clipping="all"))
    optimizers(MuonConfig(clipping="adamw_only"))
    optimizers(AdamWConfig(clipping="all"))
