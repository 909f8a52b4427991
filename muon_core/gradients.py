"""Gradients of a step's batch: through DDP, or summed over micro-batches in an order no world size changes.

Float sums depend on their order, and DDP's order depends on the number of workers. The tree fixes it: with four
micro-batches a b c d the sum is (a + b) + (c + d), whether one worker computes all of them, two workers a pair each, or
four one each. Powers of two keep every worker's share a whole subtree, and make the division at the end exact.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from muon_core import distributed

MicroLoss = Callable[[int], Tensor]
"""Mean loss of this rank's micro-batch `index`, nats per token, with its graph."""


# Its twin for the compiler, as those of optimizers: see optim/adamw.py.
_forward = inspect.unwrap(DistributedDataParallel._inside_ddp_forward)
_forward.__dict__.setdefault("__dynamo_disable", _forward)


def replicate(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """`model` under DDP, which asks torch's compiler whether it is to reduce gradients, and by that loads it.

    Where it is not loaded yet nothing is compiled, and the answer is its default.
    """
    devices = [device.index] if device.type == "cuda" else None
    if "torch._dynamo" in sys.modules:
        return DistributedDataParallel(model, device_ids=devices)
    torch._dynamo = SimpleNamespace(utils=SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer"))
    try:
        return DistributedDataParallel(model, device_ids=devices)
    finally:
        del torch._dynamo  # torch finds the real one when it is asked for it


def ddp_gradients(replica: nn.Module, micro_loss: MicroLoss, num_local: int) -> Tensor:
    """Leave the mean gradient in `p.grad`; returns the mean loss over all ranks.

    Gradients of this rank's micro-batches are added up in place, DDP averages over ranks: fast, and equal between world
    sizes up to the order of the sums. (FSDP does after every micro-batch: whole gradients would not fit.)
    """
    total: Tensor | None = None
    for index in range(num_local):
        waits = isinstance(replica, DistributedDataParallel) and index < num_local - 1
        with replica.no_sync() if waits else nullcontext():  # type: ignore[operator]
            loss = micro_loss(index) / num_local
            loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return distributed.sum_over_ranks(total / distributed.world_size())


def tree_gradients(parameters: Sequence[nn.Parameter], micro_loss: MicroLoss, num_local: int) -> Tensor:
    """The same, bitwise equal at every world size: all micro-batches are summed as one pairwise tree.

    Each rank sums its own block of micro-batches, a subtree since counts are powers of two; the ranks' sums are
    gathered and every rank adds them in the same order. Costs a gradient copy per level of the tree, and an all-gather.
    """
    local = _tree_sum(_flat_gradient(parameters, micro_loss(index)) for index in range(num_local))
    parts = [local]
    if distributed.world_size() > 1:
        parts = [torch.empty_like(local) for _ in range(distributed.world_size())]
        dist.all_gather(parts, local)
    mean = _tree_sum(parts) / (num_local * len(parts))  # a power of two: exact
    offset = 0
    for parameter in parameters:
        parameter.grad = mean[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    return mean[-1]


def _flat_gradient(parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Gradient of every parameter in one vector, with the loss behind."""
    gradients = torch.autograd.grad(loss, parameters)
    return torch.cat([*(gradient.flatten() for gradient in gradients), loss.detach().reshape(1)])


def _tree_sum(parts: Iterable[Tensor]) -> Tensor:
    """Sum of 2^n tensors as a balanced tree, holding at most n + 1 of them at a time."""
    pending: list[tuple[int, Tensor]] = []  # (level, sum of 2^level parts), as a binary counter carries
    for part in parts:
        level = 0
        while pending and pending[-1][0] == level:
            part = pending.pop()[1] + part
            level += 1
        pending.append((level, part))
    assert len(pending) == 1, "the number of parts is no power of two"
    return pending[0][1]
