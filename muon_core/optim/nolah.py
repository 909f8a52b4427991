"""NOLAH: a nonlinear gate on the gradient, a brake where gradients are large, a sigmoid weight on the momentum.

As first written, gate and sigmoid act on raw numbers: for the small gradients of training tanh(g)|g| is g|g| and the
sigmoid one half, so the rule hangs on the scale of the loss. The well-posed mode measures entries in units of their
matrix's root mean square, and stores a momentum that no brake has touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muon_core.metrics.spectrum import singular_values
from muon_core.optim.as_seed import OVERFLOWED, raise_if_not_finite
from muon_core.optim.momentum import Momentum

Unit = Callable[[Tensor], Tensor]

PERCENTILE, BRAKE = 0.95, 0.95

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda gradient: gradient.tanh() * gradient.abs(),
    "sigmoid": lambda gradient: gradient.sigmoid() * gradient,
    "relu": torch.relu,
}
"""Each keeps a zero gradient at zero."""


def root_mean_square(matrix: Tensor) -> Tensor:
    """Unit of a well-posed gate: entries count relative to their matrix, whatever the loss is scaled by; `(..., 1, 1)`.

    1 for a zero matrix.
    """
    rms = matrix.square().mean((-2, -1), keepdim=True).sqrt()
    return rms.where(rms != 0, 1)


def as_they_are(matrix: Tensor) -> Tensor:
    """Unit of the gate as first written: for small gradients tanh(g)|g| is g|g|, and a sigmoid is one half."""
    return matrix.new_ones(())


def gated(rule: Momentum, gate: str, unit: Unit) -> Momentum:
    """`rule` fed with gate(g / unit) unit in place of the gradient."""

    def gated_gradients(gradients: list[Tensor]) -> list[Tensor]:
        scales = map(unit, gradients)
        return [GATES[gate](gradient / scale) * scale for gradient, scale in zip(gradients, scales, strict=True)]

    return Momentum(
        lambda buffers, gradients, mu: rule.accumulate(buffers, gated_gradients(gradients), mu),
        lambda buffers, gradients, mu: rule.look_ahead(buffers, gated_gradients(gradients), mu),
    )


def braked(rule: Momentum) -> Momentum:
    """`rule` that also shrinks what it stores where the gradient is large, as first written."""

    def accumulate(buffers: list[Tensor], gradients: list[Tensor], mu: float) -> None:
        rule.accumulate(buffers, gradients, mu)
        for buffer, gradient in zip(buffers, gradients, strict=True):
            buffer.mul_(brake(gradient))

    return Momentum(accumulate, rule.look_ahead)


def brake(gradient: Tensor) -> Tensor:
    """0.95 where |g| of a matrix is above its 95th percentile, which 5 % of the entries exceed; 1 elsewhere."""
    size = gradient.abs()
    bound = size.flatten().kthvalue(max(1, int(PERCENTILE * size.numel()))).values
    return torch.where(size > bound, BRAKE, 1.0)


@dataclass(frozen=True, slots=True)
class Project:
    """Perturb: M sigmoid(M), which shrinks negative entries more than positive ones; braked first if not yet."""

    unit: Unit = root_mean_square
    brakes: bool = True
    """Brake here, so that the stored momentum stays clean; False where the momentum rule does."""
    fails: bool = False
    """Whether a momentum that is not finite raises."""

    def __call__(self, momentum: Tensor, names: Sequence[str], step: int, gradients: Sequence[Tensor]) -> Tensor:
        if self.fails:
            raise_if_not_finite(momentum, singular_values(momentum), names, step, OVERFLOWED, "a smaller lr")
        braked = momentum * torch.stack([brake(g.float()) for g in gradients]) if self.brakes else momentum
        return braked * (braked / self.unit(braked)).sigmoid()
