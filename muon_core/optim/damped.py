"""The control without chance: what the noise arms do on average, as a matrix function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muon_core.optim.perturb import NOISE_NORMS, Gate, gradient_norms


@dataclass(frozen=True, slots=True)
class Damped:
    """Perturb: append eps I on the long side, so that `top_block` of an orthogonalizer damps small singular values.

    With Z = U diag(s) V', the polar factor of Z above eps I has U diag(s / sqrt(s^2 + eps^2)) V' where Z was. Noise
    does that in the mean: for N of norm alpha ||Z||_F, tall Z and r >> c, (Z+N)'(Z+N) is about Z'Z + eps^2 I with
    eps = ||N||_F / sqrt(min(r, c)). Any orthogonalizer will do, and products suffice.
    """

    gate: Gate
    noise_norm: str = "fro"
    """As of `Noise`, for a noise whose singular values are all eps."""

    def __call__(self, momentum: Tensor, names: Sequence[str], step: int, gradients: Sequence[Tensor] = ()) -> Tensor:
        wide = momentum.size(-2) < momentum.size(-1)
        size = min(momentum.shape[-2:])
        eps = momentum.new_zeros(len(momentum), 1, 1)
        if chosen := self.gate.chosen(momentum, step):
            eps[chosen] = self.gate.share(step) * self._unit(momentum[chosen], gradients, chosen)
        ridge = eps * torch.eye(size, dtype=momentum.dtype, device=momentum.device)
        return torch.cat([momentum, ridge], dim=-1 if wide else -2)

    def _unit(self, clean: Tensor, gradients: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        if self.noise_norm == "as_seed":
            return gradient_norms(gradients, chosen).to(clean.dtype)
        norm = NOISE_NORMS[self.noise_norm](clean)
        return norm / math.sqrt(min(clean.shape[-2:])) if self.noise_norm == "fro" else norm


def top_block(matrix: Tensor, *, orthogonalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Orthogonalize what `Damped` returns, `(k, ...)`, and cut off what it appended.

    A matrix whose eps is 0 is orthogonalized without it: plain Muon, bit for bit.
    """
    wide = matrix.size(-2) < matrix.size(-1)
    size = min(matrix.shape[-2:])
    clean, ridge = torch.split(matrix, [max(matrix.shape[-2:]) - size, size], dim=-1 if wide else -2)
    damped = (ridge != 0).any(-1).any(-1)
    if not damped.any():
        return orthogonalize(clean)
    top = orthogonalize(matrix[damped])[..., : clean.size(-2), : clean.size(-1)]
    if damped.all():
        return top
    result = top.new_empty(clean.shape)
    result[damped], result[~damped] = top, orthogonalize(clean[~damped])
    return result
