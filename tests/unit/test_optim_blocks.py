"""What is orthogonalized as one: whole matrices, fused attention, single heads."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muon_core.config.optimizers import MuonConfig
from muon_core.optim.blocks import merge_qkvo, per_head, whole
from muon_core.optim.build import build_optimizers
from muon_core.optim.muon import Muon, original
from muon_core.optim.newton_schulz import polar_factor

SHAPES = {"q": (8, 6), "k": (4, 6), "v": (4, 6), "o": (6, 8)}
UP = "blocks.0.mlp.up.weight"


def attention() -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    named = [(f"blocks.0.attention.{name}.weight", nn.Parameter(torch.zeros(s))) for name, s in SHAPES.items()]
    named.append((UP, nn.Parameter(torch.zeros(12, 6))))
    for _, param in named:
        param.grad = torch.randn(param.shape)
    return named


def stepped(named: list[tuple[str, nn.Parameter]], partition: Any) -> dict[str, Tensor]:
    """Weights after the first step at lr 1 with the polar factor: minus what was orthogonalized."""
    Muon(named, lr=1.0, weight_decay=0.0, momentum=0.0, orthogonalize=polar_factor, partition=partition).step()
    return {name.split(".")[-2]: param.detach() for name, param in named}


def gradient(named: list[tuple[str, nn.Parameter]], name: str) -> Tensor:
    (grad,) = (param.grad for key, param in named if key.endswith(f".{name}.weight"))
    assert grad is not None
    return grad


def test_merged_attention_is_one_matrix_of_heads_by_residual() -> None:
    named = attention()
    fused = torch.cat([gradient(named, "q"), gradient(named, "k"), gradient(named, "v"), gradient(named, "o").T])
    expected = -original(24, 6) * polar_factor(fused)
    weights = stepped(named, merge_qkvo)
    merged = torch.cat([weights["q"], weights["k"], weights["v"], weights["o"].T])
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights["up"], -original(12, 6) * polar_factor(gradient(named, "up")), rtol=0, atol=1e-5)


def test_heads_are_orthogonalized_one_by_one() -> None:
    named = attention()
    weights = stepped(named, partial(per_head, head_size=4))
    for name, head in (("q", slice(4, 8)), ("k", slice(0, 4))):
        expected = -polar_factor(gradient(named, name)[head])
        torch.testing.assert_close(weights[name][head], expected, rtol=0, atol=1e-5)
    expected = -original(6, 4) * polar_factor(gradient(named, "o")[:, 4:])
    torch.testing.assert_close(weights["o"][:, 4:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("partition", [whole, merge_qkvo, partial(per_head, head_size=2)])
def test_every_entry_is_in_one_block(partition: Any) -> None:
    named = attention()
    with torch.no_grad():
        for block in partition(named):
            for piece in block.pieces:
                piece.of(piece.parameter).add_(1)
    assert all(torch.equal(param, torch.ones_like(param)) for _, param in named)
    names = [block.name for block in partition(named)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("partition", [merge_qkvo, partial(per_head, head_size=4)])
def test_missing_gradient_leaves_its_matrix_alone(partition: Any) -> None:
    named = attention()
    named[1][1].grad = None
    weights = stepped(named, partition)
    assert torch.equal(weights["k"], torch.zeros(4, 6))
    assert all((weights[name] != 0).any() for name in ("q", "v", "o", "up"))


def test_options_that_do_not_fit_are_refused() -> None:
    named = attention()
    with pytest.raises(ValueError, match=r"attention\.q\.weight of shape \(8, 6\) does not divide into heads of 5"):
        per_head(named, head_size=5)
    for partition in (merge_qkvo, partial(per_head, head_size=4)):
        with pytest.raises(ValueError, match=r"finds no matrix named like attention\.q\.weight in a\.weight"):
            partition([("a.weight", nn.Parameter(torch.zeros(2, 2)))])
    with pytest.raises(ValueError, match="per_head needs the model's head size"):
        build_optimizers(named, MuonConfig(attention_blocks="per_head"), noise_seed=0, patterns=[("*", "hidden")])


@pytest.mark.parametrize(("option", "count"), [("whole", 5), ("merge_qkvo", 2), ("per_head", 2 + 1 + 1 + 2 + 1)])
def test_config_chooses_the_blocks(option: Any, count: int) -> None:
    named = [*attention(), ("embedding.weight", nn.Parameter(torch.zeros(3, 6)))]
    patterns: Any = [("embedding.weight", "vectors"), ("blocks.*", "hidden")]
    config = MuonConfig(attention_blocks=option)
    hidden: Any = build_optimizers(named, config, noise_seed=0, head_size=4, patterns=patterns).hidden
    assert len(hidden.all_blocks) == count
