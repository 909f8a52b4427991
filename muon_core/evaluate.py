"""Validation loss and accuracy over a fixed set of windows, the same number at any world size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over all predicted tokens."""

    val_loss: float
    """Nats per token."""
    val_accuracy: float
    """Share of tokens whose most likely prediction is right."""


@torch.inference_mode()
def evaluate(model: nn.Module, windows: Tensor, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Evaluation:
    """Score `model` on `windows` `(n, seq_len + 1)`; leaves it in the mode it was in.

    Batches do not depend on the world size, each is scored by one rank, and their sums meet in one all-reduce that adds
    zeros only: the result is bitwise the same for 1 and N workers. All ranks must call.

    Args:
        model: token ids to logits, the bare module rather than its DDP wrapper, whose ranks must run in step.
        batch_size: sequences per forward pass.
    """
    device = next(model.parameters()).device
    batches = torch.split(windows, batch_size)
    sums = torch.zeros(len(batches), 2, dtype=torch.float64, device=device)  # (nats, tokens predicted right)
    was_training = model.training
    model.eval()
    try:
        for i in range(rank, len(batches), world_size):
            sums[i] = _score(model, batches[i].to(device))
    finally:
        model.train(was_training)
    if world_size > 1:
        dist.all_reduce(sums)
    loss, accuracy = (sums.sum(0) / windows[:, 1:].numel()).tolist()
    return Evaluation(loss, accuracy)


def _score(model: nn.Module, window: Tensor) -> Tensor:
    """(sum of the cross-entropy, number of right predictions) of one batch, float64."""
    logits = model(window[:, :-1]).flatten(0, 1).float()
    target = window[:, 1:].flatten()
    nats = F.cross_entropy(logits, target, reduction="none").sum(dtype=torch.float64)
    return torch.stack((nats, (logits.argmax(-1) == target).sum().double()))
