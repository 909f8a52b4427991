"""Cross-entropy of next tokens that never holds all logits.

The logits of 16,384 tokens over 49,152 words are 3 GiB, and between forward and backward pass plain cross-entropy holds
three times as much: more than all the rest of an 88M model. Here they are computed a chunk of tokens at a time. While
the softmax of a chunk is at hand so is its gradient, so the forward pass takes that too, and leaves nothing of the
logits: the backward pass only scales. No product is computed twice.

What fits into one chunk is left to PyTorch's own operators, so runs with a small vocabulary have the bits they always
had. Chunks change the order of float sums only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from muon_core.config.memory import CHUNK_LOGITS

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What is made of the last hidden states `(B, T, d)`, output weights `(vocab_size, d)` and next tokens `(B, T)`."""


def mean_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of `targets` `(...)` under the logits `hidden @ weight.T`, nats per token, fp32.

    Args:
        hidden: `(..., d)`, and `weight` `(vocab_size, d)`; both are multiplied in the type of autocast, if that is on.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    size = chunk_size(len(weight))
    if len(targets) <= size:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets)
    loss: Tensor = _Chunked.apply(hidden, weight, targets, size)  # type: ignore[no-untyped-call]
    return loss


def score(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(sum of the cross-entropy, number of tokens whose likeliest prediction is right), float64; of `mean_loss`."""
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    size = chunk_size(len(weight))
    total = torch.zeros(2, dtype=torch.float64, device=hidden.device)
    for part, target in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        logits = F.linear(part, weight).float()
        nats = F.cross_entropy(logits, target, reduction="none").sum(dtype=torch.float64)
        total += torch.stack((nats, (logits.argmax(-1) == target).sum().double()))
    return total


def chunk_size(vocab_size: int) -> int:
    """Tokens whose logits are computed at a time."""
    return max(1, CHUNK_LOGITS // vocab_size)


class _Chunked(torch.autograd.Function):
    """`mean_loss` of more tokens than a chunk has."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
        dtype = _product_dtype(hidden)
        matrix = weight.to(dtype)
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        nats = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for begin in range(0, len(targets), size):
            rows = slice(begin, begin + size)
            part, target = hidden[rows].to(dtype), targets[rows, None]
            logits = F.linear(part, matrix).float()
            logits -= logits.amax(1, keepdim=True)
            right = logits.gather(1, target)
            sums = logits.exp_().sum(1, keepdim=True)
            nats += (sums.log() - right).sum(dtype=torch.float64)
            # what is left is softmax - one-hot: the gradient of the logits, for a mean over all tokens
            slopes = logits.div_(sums).scatter_add_(1, target, torch.full_like(sums, -1.0)).div_(len(targets)).to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = slopes @ matrix
            if grad_weight is not None:
                grad_weight += slopes.mT @ part
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return (nats / len(targets)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (None if saved is None else saved * grad for saved in ctx.saved_tensors)
        return hidden, weight, None, None


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """The type in which a linear layer multiplies `hidden`."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
