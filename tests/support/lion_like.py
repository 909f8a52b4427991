"""An optimizer as a researcher writes one, in a file of its own, and its config."""

from typing import Any

from muon_core.by_reference import remember
from muon_core.config.reference import ReferenceConfig

SOURCE = '''\
import torch


class LionLike(torch.optim.Optimizer):
    """Steps by the sign of an average of the gradient. Source: https://arxiv.org/abs/2302.06675"""

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        if lr < 0:
            raise ValueError(f"lr {lr} is negative")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in (p for p in group["params"] if p.grad is not None):
                average = self.state[param].setdefault("exp_avg", torch.zeros_like(param))
                direction = average.lerp(param.grad, 1 - group["betas"][0]).sign()
                param.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                average.lerp_(param.grad, 1 - group["betas"][1])
'''


def lion_like(**fields: Any) -> ReferenceConfig:
    """Its config, as a run is planned with; the file need not be there."""
    values = {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.0} | fields
    reference = "/nowhere/lion_like.py:LionLike"
    return ReferenceConfig(name="LionLike", reference=reference, source_sha256=remember(SOURCE.encode()), **values)
