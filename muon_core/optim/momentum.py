"""Momentum rules: how a buffer takes up a gradient, and what it looks like one step ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

GatedGradient = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Momentum:
    """A rule for fp32 tensors of one shape; `mu` is the decay of the buffer."""

    accumulate: Callable[[Tensor, Tensor, float], None]
    """(buffer, gradient, mu): updates the buffer in place."""
    look_ahead: Callable[[Tensor, Tensor, float], Tensor]
    """(buffer, gradient, mu) -> the Nesterov momentum, a new tensor."""


def _accumulate_mean(buffer: Tensor, gradient: Tensor, mu: float) -> None:
    buffer.lerp_(gradient, 1 - mu)


def _accumulate_sum(buffer: Tensor, gradient: Tensor, mu: float) -> None:
    buffer.mul_(mu).add_(gradient)


EMA = Momentum(_accumulate_mean, lambda buffer, gradient, mu: gradient.lerp(buffer, mu))
"""B = mu B + (1 - mu) g. A (1 - mu)-th of SUM, also one step ahead."""
SUM = Momentum(_accumulate_sum, lambda buffer, gradient, mu: gradient.add(buffer, alpha=mu))
"""B = mu B + g."""

MOMENTA: dict[str, Momentum] = {"ema": EMA, "sum": SUM}
