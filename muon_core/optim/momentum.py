"""Momentum rules: how buffers take up gradients, and what they look like one step ahead.

Published Muons average (EMA) or add up (SUM). The two differ by a constant factor, which orthogonalizing takes out
again: they agree up to the eps of the norm and rounding, and each is kept so that a published optimizer can be had to
the bit. Rules work on many matrices at once, in place for what is stored; gradients are never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Momentum:
    """A rule for matrices and their gradients, fp32, many at a time; `mu` is the decay of the buffers."""

    accumulate: Callable[[list[Tensor], list[Tensor], float], None]
    """(buffers, gradients, mu): updates the buffers in place."""
    look_ahead: Callable[[list[Tensor], list[Tensor], float], Sequence[Tensor]]
    """(buffers, gradients, mu) -> the Nesterov momenta, new tensors."""


def _accumulate_mean(buffers: list[Tensor], gradients: list[Tensor], mu: float) -> None:
    torch._foreach_lerp_(buffers, gradients, 1 - mu)


def _accumulate_sum(buffers: list[Tensor], gradients: list[Tensor], mu: float) -> None:
    torch._foreach_mul_(buffers, mu)
    torch._foreach_add_(buffers, gradients)


def _mean_ahead(buffers: list[Tensor], gradients: list[Tensor], mu: float) -> Sequence[Tensor]:
    return torch._foreach_lerp(gradients, buffers, mu)


def _sum_ahead(buffers: list[Tensor], gradients: list[Tensor], mu: float) -> Sequence[Tensor]:
    return torch._foreach_add(gradients, buffers, alpha=mu)


EMA = Momentum(_accumulate_mean, _mean_ahead)
"""B = mu B + (1 - mu) g. A (1 - mu)-th of SUM, also one step ahead."""
SUM = Momentum(_accumulate_sum, _sum_ahead)
"""B = mu B + g."""

MOMENTA: dict[str, Momentum] = {"ema": EMA, "sum": SUM}
