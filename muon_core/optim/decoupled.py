"""What optimizers of plain tensors have in common: gradients and state in float32 or finer, and a decay of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Tensors = list[Tensor] | tuple[Tensor, ...]


class DecoupledOptimizer(torch.optim.Optimizer):
    """Steps parameters that have a gradient, each group by `update`, once their weights are decayed.

    Weights shrink by `lr * weight_decay` a step (arXiv 1711.05101); the gradient knows nothing of it, and is left as it
    is. State is float32 under bf16 parameters, also after `load_state_dict`, where torch would make it theirs.
    Raises: ValueError for a negative or NaN lr or weight_decay.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            if not defaults[name] >= 0:
                raise ValueError(f"{name} {defaults[name]} is not a number from 0 on; give one")
        super().__init__(params, defaults)

    def update(self, params: list[nn.Parameter], gradients: list[Tensor], group: dict[str, Any]) -> Tensors:
        """What the learning rate is to be multiplied with and then subtracted from each parameter, as an own tensor."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if params := [param for param in group["params"] if param.grad is not None]:
                updates = self.update(params, [param.grad.to(state_dtype(param)) for param in params], group)
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, updates, alpha=-group["lr"])
        return loss

    def buffers(self, params: Sequence[nn.Parameter], name: str) -> list[Tensor]:
        """State `name` of each parameter, of its shape; zeros before its first step."""
        for param in params:
            if name not in self.state[param]:
                self.state[param][name] = torch.zeros_like(param, dtype=state_dtype(param))
        return [self.state[param][name] for param in params]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a copy of a state, whose tensors keep their dtype."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for param, index in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"].get(index, {}).items():
                    if isinstance(value, Tensor):
                        self.state[param][name] = value.to(param.device, copy=True) if value.ndim else value.clone()


def state_dtype(param: Tensor) -> torch.dtype:
    """Dtype of what is kept of a parameter."""
    return torch.promote_types(param.dtype, torch.float32)
