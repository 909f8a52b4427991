"""Lion: the sign of a momentum, looked at one way and stored another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from muon_core.optim.decoupled import DecoupledOptimizer, Tensors


class Lion(DecoupledOptimizer):
    """Every entry of a weight moves by the learning rate, whichever way beta1 M + (1 - beta1) g points.

    What is stored is M = beta2 M + (1 - beta2) g: it forgets more slowly than the update looks back.

    State: `exp_avg`, M.
    Source: arXiv 2302.06675, algorithm 2; google/automl, lion/lion_pytorch.py at 6a54c87.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, params: list[nn.Parameter], gradients: list[Tensor], group: dict[str, Any]) -> Tensors:
        """Signs."""
        beta1, beta2 = group["betas"]
        averages = self.buffers(params, "exp_avg")
        updates = torch._foreach_lerp(averages, gradients, 1 - beta1)
        torch._foreach_sign_(updates)
        torch._foreach_lerp_(averages, gradients, 1 - beta2)
        return updates
