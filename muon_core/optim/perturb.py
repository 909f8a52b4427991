"""Perturbations: what the orthogonalizer sees in place of the momentum. The momentum itself is never touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muon_core.seeds import generator
from muon_core.spectral import momentum_effective_rank, singular_values

Perturb = Callable[[Tensor, Sequence[str], int], Tensor]
"""(momentum `(k, rows, cols)` fp32, never modified; the k parameters' names; optimizer step from 0) -> same shape."""


def unperturbed(momentum: Tensor, names: Sequence[str], step: int) -> Tensor:
    """Plain Muon."""
    return momentum


def orthogonal(gaussian: Tensor) -> Tensor:
    """Haar-distributed (semi-)orthogonal matrices from Gaussian ones, `(..., rows, cols)`, float32 or float64.

    LAPACK's QR alone is not Haar: its signs follow a convention, and the mean trace is far from 0. Making the diagonal
    of R positive mends it. Wide matrices are the transposes of tall ones, whose Q keeps their shape.
    Source: Mezzadri 2007, https://arxiv.org/abs/math-ph/0609050
    """
    wide = gaussian.size(-2) < gaussian.size(-1)
    q, r = torch.linalg.qr(gaussian.mT if wide else gaussian)
    signed: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return signed.mT if wide else signed


def isotropic(gaussian: Tensor) -> Tensor:
    """The Gaussian itself: no direction preferred and no singular value equal to another."""
    return gaussian


def frobenius(matrix: Tensor) -> Tensor:
    """Frobenius norm, `(..., 1, 1)`."""
    norm: Tensor = torch.linalg.matrix_norm(matrix, keepdim=True)
    return norm


def spectral(matrix: Tensor) -> Tensor:
    """Largest singular value, `(..., 1, 1)`."""
    return singular_values(matrix)[..., :1, None].to(matrix.dtype)


NOISE_NORMS: dict[str, Callable[[Tensor], Tensor]] = {"fro": frobenius, "spectral": spectral}

ANNEALINGS: dict[str, Callable[[int], float]] = {
    "none": lambda step: 1.0,
    "exponential": lambda step: max(0.1, 0.993**step),
    "linear": lambda step: max(0.1, 1 - 0.9 * step / 1000),
}
"""Multiplier of alpha by optimizer step; each stops at a tenth."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Perturb: momentum + alpha N, where N has the momentum's norm and is drawn afresh for every parameter and step.

    A draw is a function of (seed, parameter name, step) alone: the same on every rank, at every world size and after a
    resume, with nothing to save. It differs between device types, whose random generators are different algorithms.
    """

    shape_noise: Callable[[Tensor], Tensor]
    """Gaussian `(k, rows, cols)` to noise of any norm: `orthogonal` or `isotropic`."""
    alpha: float
    """Norm of the noise as a share of the momentum's."""
    seed: int
    anneal: str = "none"
    """Key of ANNEALINGS."""
    rank_threshold: float = 1.0
    """A matrix gets noise while effective rank / min(rows, cols) is below it; 1.0 is always, and measures no rank."""
    noise_norm: str = "fro"
    """Key of NOISE_NORMS."""
    start_step: int = 0
    """First step with noise."""

    def __call__(self, momentum: Tensor, names: Sequence[str], step: int) -> Tensor:
        if self.alpha == 0 or step < self.start_step:
            return momentum
        chosen = self._open_gates(momentum)
        if not chosen:
            return momentum
        noise = self.shape_noise(self._gaussian(momentum, [names[index] for index in chosen], step))
        clean = momentum[chosen]
        norm = NOISE_NORMS[self.noise_norm]
        share = self.alpha * ANNEALINGS[self.anneal](step)
        perturbed = momentum.clone()
        perturbed[chosen] = clean + noise * (share * norm(clean) / norm(noise))
        return perturbed

    def _open_gates(self, momentum: Tensor) -> list[int]:
        """Which matrices get noise. The rank of one that is not finite is NaN, which is below no threshold."""
        if self.rank_threshold == 1.0:
            return list(range(len(momentum)))
        share = momentum_effective_rank(momentum) / min(momentum.shape[-2:])
        return [index for index, is_open in enumerate((share < self.rank_threshold).tolist()) if is_open]

    def _gaussian(self, momentum: Tensor, names: Sequence[str], step: int) -> Tensor:
        """One standard normal matrix per name, in the shape, dtype and place of `momentum`'s."""
        shape, device = momentum.shape[1:], momentum.device
        streams = [generator(self.seed, "noise", name, step, device=device) for name in names]
        return torch.stack([torch.randn(shape, generator=g, device=device, dtype=momentum.dtype) for g in streams])
