"""Validation loss and accuracy over a fixed set of windows, the same number at any world size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muon_core.loss import score


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over all predicted tokens."""

    val_loss: float
    """Nats per token."""
    val_accuracy: float
    """Share of tokens whose most likely prediction is right."""


def evaluate(
    model: nn.Module, windows: Tensor, batch_size: int, *, rank: int = 0, world_size: int = 1, in_step: bool = False
) -> Evaluation:
    """Score `model` on `windows` `(n, seq_len + 1)`; leaves it in the mode it was in.

    Batches do not depend on the world size, each is scored by one rank, and their sums meet in one all-reduce that adds
    zeros only: the result is bitwise the same for 1 and N workers. All ranks must call.

    Args:
        model: as a Transformer, from token ids, next tokens and a head to what that makes of them; the bare module
            rather than its DDP wrapper, whose ranks must run in step.
        batch_size: sequences per forward pass.
        in_step: whether a forward pass is one of all ranks, as under FSDP; who has no batch left scores one in vain.
    """
    device = next(model.parameters()).device
    batches = torch.split(windows, batch_size)
    sums = torch.zeros(len(batches), 2, dtype=torch.float64, device=device)  # what `score` gives
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad() if in_step else torch.inference_mode():  # FSDP uses tensors of this pass in the next
            for first in range(0, len(batches), world_size):
                i = first + rank
                if i < len(batches) or in_step:
                    window = batches[min(i, len(batches) - 1)].to(device)
                    found = model(window[:, :-1], window[:, 1:], score)
                    sums[i : i + 1] = found  # of nothing beyond the last
    finally:
        model.train(was_training)
    if world_size > 1:
        dist.all_reduce(sums)
    loss, accuracy = (sums.sum(0) / windows[:, 1:].numel()).tolist()
    return Evaluation(loss, accuracy)
