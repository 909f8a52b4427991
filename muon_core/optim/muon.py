"""Muon: momentum whose matrices are orthogonalized before they are applied."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from muon_core.optim.newton_schulz import newton_schulz
from muon_core.optim.perturb import Perturb, unperturbed


def original(rows: int, cols: int) -> float:
    """Scale of an update: sqrt(max(1, rows/cols)). Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/"""
    return math.sqrt(max(1.0, rows / cols))


def match_rms_adamw(rows: int, cols: int) -> float:
    """Scale of an update: 0.2 sqrt(max(rows, cols)), about AdamW's step size. Source: https://arxiv.org/abs/2502.16982"""
    return 0.2 * math.sqrt(max(rows, cols))


class Muon(torch.optim.Optimizer):
    """Muon for matrices, as in `torch.optim.Muon` unless other functions are handed in.

    Args:
        params: named matrices, `(name, parameter)`; the names key the noise.
        weight_decay: decoupled; weights shrink by `lr * weight_decay` a step.
        perturb: what the orthogonalizer sees in place of the momentum.
        orthogonalize: `(k, rows, cols)` fp32 to the update's directions, in any float dtype.
        scale: factor on the learning rate by `(rows, cols)`.
    State: `momentum_buffer`, always fp32. The step that `perturb` sees is `group["step"]`: counted here from 0, and
        settable like `group["lr"]`.
    Raises: ValueError for a parameter that is no matrix, is empty, or has no name.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        perturb: Perturb = unperturbed,
        orthogonalize: Callable[[Tensor], Tensor] = newton_schulz,
        scale: Callable[[int, int], float] = original,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "step": 0}
        super().__init__(params, defaults)
        self.perturb, self.orthogonalize, self.scale = perturb, orthogonalize, scale
        for group in self.param_groups:
            if "param_names" not in group:
                raise ValueError("Muon got parameters without names; pass (name, parameter) pairs")
            for name, param in zip(group["param_names"], group["params"], strict=True):
                _check_matrix(name, param)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient; gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, decay = group["lr"], group["lr"] * group["weight_decay"]
            for named_params in _same_shape(group):
                names, params = zip(*named_params, strict=True)
                momentum = torch.stack([self._momentum(param, group) for param in params])
                updates = self.orthogonalize(self.perturb(momentum, names, group["step"]))
                for param, update in zip(params, updates, strict=True):
                    param.mul_(1 - decay)
                    param.add_(update, alpha=-lr * self.scale(*param.shape))
            group["step"] += 1
        return loss

    def _momentum(self, param: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Update the running mean of gradients; return it, under Nesterov blended with the gradient."""
        assert param.grad is not None
        grad, state = param.grad.float(), self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(grad, 1 - group["momentum"])
        return grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


def _same_shape(group: dict[str, Any]) -> list[list[tuple[str, nn.Parameter]]]:
    """The group's parameters that have a gradient, by shape and device: each list is orthogonalized as one stack."""
    stacks: dict[Any, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, param in zip(group["param_names"], group["params"], strict=True):
        if param.grad is not None:
            stacks[param.shape, param.device].append((name, param))
    return list(stacks.values())


def _check_matrix(name: str, param: Tensor) -> None:
    if param.ndim != 2 or param.numel() == 0:
        raise ValueError(
            f"Muon orthogonalizes non-empty matrices, but {name} has shape {tuple(param.shape)}; "
            "reshape it to two dimensions or give it to AdamW"
        )
