"""SOAP: Adam in the eigenbasis of Shampoo.

Shampoo keeps the means of G G' and of G' G, whose eigenvectors are the directions in which rows and columns of the
gradient G mostly vary. In these coordinates its entries are nearly uncorrelated, as Adam, which scales each by itself,
supposes them to be. The bases are computed anew every few steps only, and Adam runs on in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from muon_core.optim.decoupled import DecoupledOptimizer, Tensors, state_dtype

SIDES = ("left", "right")


class SOAP(DecoupledOptimizer):
    """SOAP for matrices.

    The first gradient is used for a first basis and moves nothing, so that no gradient is rotated into a basis of its
    own. A basis follows its mean by one step of orthogonal iteration.

    Args:
        betas: what the means of the gradient and of its rotated square keep of themselves a step; the second also
            what G G' and G' G do.
        precondition_frequency: steps between two bases.
        max_precondition_dim: a longer side is not rotated.
    State: `step`; `exp_avg`, the mean gradient in the coordinates of the parameter; `exp_avg_sq` in those of the bases;
        `gram_left`, `basis_left` `(rows, rows)`, `gram_right`, `basis_right` `(cols, cols)`, each where it is rotated.
    Source: arXiv 2409.11321, algorithm 3; nikhilvyas/SOAP, soap.py at a1e5535, which decays weights after the update.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10_000,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "max_precondition_dim": max_precondition_dim,
        }
        super().__init__(params, defaults)

    def update(self, params: list[nn.Parameter], gradients: list[Tensor], group: dict[str, Any]) -> Tensors:
        """Each matrix by itself: they share no kernels."""
        return [self._update(*both, group) for both in zip(params, gradients, strict=True)]

    def _update(self, param: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state, (beta1, beta2) = self.state[param], group["betas"]
        if not state:
            _begin(state, param, gradient, beta2, group["max_precondition_dim"])
            return torch.zeros_like(gradient)
        state["step"] += 1
        step = int(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(_rotated(gradient, state).square(), 1 - beta2)
        root = state["exp_avg_sq"].sqrt().add_(group["eps"])
        update: Tensor = _rotated(_rotated(state["exp_avg"], state) / root, state, back=True)
        _follow(state, gradient, beta2)
        if step % group["precondition_frequency"] == 0:
            _turn(state)
        unbiased: float = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        return update * unbiased


def _begin(state: dict[str, Any], param: nn.Parameter, gradient: Tensor, beta2: float, max_dim: int) -> None:
    """State after the first gradient: no mean of it, but its bases."""
    state["step"] = torch.zeros(())  # on the CPU, as AdamW's: reading it must not wait for a device
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros_like(param, dtype=state_dtype(param))
    for side, size in zip(SIDES, gradient.shape, strict=True):
        if size <= max_dim:
            state[f"gram_{side}"] = gradient.new_zeros(size, size)
    _follow(state, gradient, beta2)
    for side in _rotating(state):
        state[f"basis_{side}"] = torch.linalg.eigh(state[f"gram_{side}"]).eigenvectors.flip(-1).contiguous()


def _rotating(state: dict[str, Any]) -> list[str]:
    return [side for side in SIDES if f"gram_{side}" in state]


def _follow(state: dict[str, Any], gradient: Tensor, beta2: float) -> None:
    """Take a gradient up into the means of G G' and G' G."""
    for side in _rotating(state):
        matrix = gradient if side == "left" else gradient.mT
        state[f"gram_{side}"].lerp_(matrix @ matrix.mT, 1 - beta2)


def _rotated(matrix: Tensor, state: dict[str, Any], *, back: bool = False) -> Tensor:
    """Q_L' matrix Q_R, or back Q_L matrix Q_R'."""
    for side in _rotating(state):
        basis = state[f"basis_{side}"]
        turn = basis if back else basis.mT
        matrix = turn @ matrix if side == "left" else matrix @ turn.mT
    return matrix


def _turn(state: dict[str, Any]) -> None:
    """Bring the bases nearer to the eigenvectors, the largest first, and the squares along with their directions."""
    for dim, side in enumerate(SIDES):
        if side not in _rotating(state):
            continue
        gram, basis = state[f"gram_{side}"], state[f"basis_{side}"]
        product = gram @ basis
        order = (basis * product).sum(0).argsort(descending=True)
        state["exp_avg_sq"] = state["exp_avg_sq"].index_select(dim, order)
        state[f"basis_{side}"] = torch.linalg.qr(product[:, order]).Q.contiguous()
