"""How updates are dealt out to ranks, and what a single process makes of it; the ranks meet in the contract suite."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muon_core.config.optimizers import MuonConfig, OrthoNoiseConfig
from muon_core.optim import sharding
from muon_core.optim.blocks import MatrixBlock, Piece
from muon_core.optim.build import build_optimizers
from muon_core.optim.sharding import Distribution, check_replicas, choose_distribution, deal, flops, replicated, stacks


def blocks(*shapes: tuple[int, int]) -> list[MatrixBlock]:
    return [MatrixBlock(f"w{index}", (Piece(nn.Parameter(torch.zeros(shape))),)) for index, shape in enumerate(shapes)]


def names(dealt: list[list[list[MatrixBlock]]]) -> list[list[list[str]]]:
    return [[[block.name for block in part] for part in parts] for parts in dealt]


def test_flops_by_hand() -> None:
    """Gram 2 m^2 n, its square 2 m^3, the product 2 m^2 n, five times."""
    assert flops(2, 3) == flops(3, 2) == 5 * (2 * 4 * 3 + 2 * 8 + 2 * 4 * 3)


def test_costliest_blocks_are_dealt_first_and_loads_even_out() -> None:
    dealt = deal(blocks((2, 2), (8, 8), (2, 2), (8, 8), (8, 8), (2, 2)), 2)
    assert names(dealt) == [[["w1", "w4"], ["w3"]], [[], ["w0", "w2", "w5"]]]


def test_loads_of_the_88m_model_differ_by_less_than_a_matrix() -> None:
    layer = [(512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048)]
    for world_size in (2, 3, 8):
        dealt = deal(blocks(*(layer * 22)), world_size)
        load = [sum(flops(*block.shape) for parts in dealt for block in parts[rank]) for rank in range(world_size)]
        assert sum(len(part) for parts in dealt for part in parts) == 6 * 22
        assert max(load) - min(load) <= flops(2048, 512)


@pytest.mark.parametrize(("device", "limit"), [("cpu", "CACHED_ENTRIES"), ("meta", "STACK_ENTRIES")])
def test_stacks_hold_equal_shapes_up_to_the_limit_of_their_device(
    monkeypatch: pytest.MonkeyPatch, device: str, limit: str
) -> None:
    monkeypatch.setattr(sharding, limit, 1280)
    with torch.device(device):
        stacked = stacks(blocks((16, 32), (32, 16), (16, 32), (16, 32), (64, 64), (64, 64)))
    names = [[block.name for block in stack] for stack in stacked]
    assert names == [["w0", "w2"], ["w3"], ["w1"], ["w4"], ["w5"]]


def test_sides_that_are_no_multiple_of_16_are_not_stacked_on_a_cpu() -> None:
    shapes = ((16, 8), (16, 8), (17, 16), (17, 16), (16, 16), (16, 16))
    names = [[block.name for block in stack] for stack in stacks(blocks(*shapes))]
    assert names == [["w0"], ["w1"], ["w2"], ["w3"], ["w4", "w5"]]
    with torch.device("meta"):
        assert [len(stack) for stack in stacks(blocks(*shapes))] == [2, 2, 2]


def test_replicated_pairs_every_block_with_its_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "CACHED_ENTRIES", 8)

    def compute(stack: Any) -> Tensor:
        return torch.stack([torch.full(block.shape, float(block.name[1:])) for block in stack])

    portions = replicated(blocks((2, 4), (4, 2), (2, 4)), compute)
    pairs = [pair for stack, updates in portions for pair in zip(stack, updates, strict=True)]
    assert [(block.name, update[0, 0].item()) for block, update in pairs] == [("w0", 0.0), ("w2", 2.0), ("w1", 1.0)]


@pytest.mark.parametrize("wanted", ["auto", "owner", "replicated"])
def test_one_process_shares_nothing_out_and_probes_nothing(wanted: Any) -> None:
    def fail(matrix: Tensor) -> Tensor:
        raise AssertionError("probed")

    assert choose_distribution(wanted, blocks((2, 2)), fail) == Distribution("replicated")


def test_owner_under_as_seed_is_refused() -> None:
    config = OrthoNoiseConfig(mode="as_seed")
    named = [("a", nn.Parameter(torch.zeros(2, 2))), ("b", nn.Parameter(torch.zeros(2)))]
    patterns: Any = [("a", "hidden"), ("b", "vectors")]
    with pytest.raises(ValueError, match="distribute owner: as_seed writes into the momentum of every rank; use auto"):
        build_optimizers(named, config, noise_seed=0, distribute="owner", patterns=patterns)
    assert build_optimizers(named, MuonConfig(), noise_seed=0, patterns=patterns).distribution == Distribution(
        "replicated"
    )


class Ranks:
    """Two ranks in one process: what the first gives to a collective waits there for the second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._given: list[Tensor] = []
        monkeypatch.setattr(sharding.distributed, "world_size", lambda: 2)
        monkeypatch.setattr(sharding.dist, "all_reduce", self._largest)

    def _largest(self, mine: Tensor, op: Any) -> None:
        assert op == sharding.dist.ReduceOp.MAX
        for other in self._given:
            mine.copy_(torch.maximum(mine, other))
        self._given.append(mine.clone())

    def compare(self, *ranks: list[Tensor]) -> None:
        """Check the parameters `w0`, `w1`, ... of each rank in turn; the last one has heard of all."""
        self._given.clear()
        for tensors in ranks:
            check_replicas([(f"w{index}", nn.Parameter(tensor)) for index, tensor in enumerate(tensors)], step=3)


def test_replicas_are_equal_or_the_first_parameter_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a bit, by a sign, or by the places of two values."""
    ranks, same = Ranks(monkeypatch), [torch.ones(3), torch.tensor([1.0, -2.0]), torch.full((2, 2), 1e-8)]
    ranks.compare(same, [tensor.clone() for tensor in same])
    for other, told in (
        ([same[0], torch.tensor([1.0, -2.0 - 2**-22]), same[2]], "w1 and 0 more"),
        ([same[0], torch.tensor([1.0, 2.0]), -same[2]], "w1 and 1 more"),
        ([same[0], torch.tensor([-2.0, 1.0]), same[2]], "w1 and 0 more"),
        ([same[0] + 2**-23, same[1], same[2] * 2], "w0 and 1 more"),
    ):
        for pair in ([same, other], [other, same]):
            with pytest.raises(sharding.ReplicasDiffer, match=f"^weights differ between ranks at step 3: {told}; "):
                ranks.compare(*pair)


def test_one_process_asks_nobody_and_hashes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(sharding, "_bits", fail)
    monkeypatch.setattr(sharding.dist, "all_reduce", fail)
    check_replicas([("w", nn.Parameter(torch.zeros(2)))], step=3)


def test_bits_tell_values_and_places_apart() -> None:
    values = torch.tensor([1.0, 2.0, -3.0])
    same = sharding._bits(values)
    for other in (values.flip(0), values + 1e-7 * values, torch.tensor([1.0, 2.0, 3.0])):
        assert not torch.equal(sharding._bits(other), same)
    for dtype in (torch.bfloat16, torch.float64, torch.uint8):
        assert sharding._bits(values.abs().to(dtype)).shape == (2,)
