"""Gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from muon_core.optim.decoupled import DecoupledOptimizer, Tensors
from muon_core.optim.momentum import SUM


class SGD(DecoupledOptimizer):
    """As `torch.optim.SGD`, but for the weight decay, which is no part of the gradient here.

    State: `momentum_buffer`, the sum B = momentum B + g.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def update(self, params: list[nn.Parameter], gradients: list[Tensor], group: dict[str, Any]) -> Tensors:
        """The momentum, or under Nesterov the momentum one step ahead."""
        buffers, mu = self.buffers(params, "momentum_buffer"), group["momentum"]
        SUM.accumulate(buffers, gradients, mu)
        return list(SUM.look_ahead(buffers, gradients, mu)) if group["nesterov"] else buffers
