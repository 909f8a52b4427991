"""Perturbations: what the orthogonalizer sees in place of the momentum. The momentum itself is never touched.

Noise that is stored in the momentum is averaged over all later steps and grows with them; here each step draws afresh
and forgets. A draw is a function of (noise seed, parameter name, step), so it is the same on every rank, at every world
size and after a resume. Orthogonal and isotropic noise are scaled to one norm: at equal alpha as first written, the
Gaussian control carried sqrt(max(rows, cols)) times more noise than the arm it was the control for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muon_core.metrics.spectrum import momentum_effective_rank, singular_values
from muon_core.optim.newton_schulz import POLAR_EXPRESS_2, Coefficients, newton_schulz
from muon_core.seeds import generator

Perturb = Callable[[Tensor, Sequence[str], int, Sequence[Tensor]], Tensor]
"""(momentum `(k, rows, cols)` fp32, never modified; the k matrices' names; optimizer step from 0; their gradients) ->
same shape; only `Damped` appends to it."""


def unperturbed(momentum: Tensor, names: Sequence[str], step: int, gradients: Sequence[Tensor] = ()) -> Tensor:
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
"""Norms that noise and momentum share; under `as_seed` there is none: draws are scaled by the gradient's norm."""

ANNEALINGS: dict[str, Callable[[int], float]] = {
    "none": lambda step: 1.0,
    "exponential": lambda step: max(0.1, 0.993**step),
    "linear": lambda step: max(0.1, 1 - 0.9 * step / 1000),
}
"""Multiplier of alpha by optimizer step; each stops at a tenth."""


GATE_COEFFICIENTS: Coefficients = (*POLAR_EXPRESS_2, (1.875, -1.25, 0.375))
"""The last is the polynomial of degree 5 that is flattest at 1: it maps [0.859, 1.141] to [0.993, 1.008]."""


def nuclear_rank(momentum: Tensor) -> Tensor:
    """(||M||_* / ||M||_F)^2 of each matrix of `(k, rows, cols)`: from 1 to m, 0 for a zero matrix; `(k,)`.

    ||M||_* is <O, M> with O from Polar Express in fp32 and one step that converges: products only, and 2 % off at most
    where singular values are above 0.003 of the norm.
    """
    nuclear = (newton_schulz(momentum, GATE_COEFFICIENTS, dtype=torch.float32) * momentum).sum((-2, -1))
    square = momentum.square().sum((-2, -1))
    return nuclear.square() / square.where(square != 0, 1)


GATE_METRICS: dict[str, Callable[[Tensor], Tensor]] = {"erank": momentum_effective_rank, "nuclear": nuclear_rank}


@dataclass(frozen=True, slots=True)
class Gate:
    """When, and for which matrices, there is noise, and how strong: the part every perturbation shares."""

    alpha: float
    """Norm of the noise as a share of the momentum's."""
    anneal: str = "none"
    """Key of ANNEALINGS."""
    rank_threshold: float = 1.0
    """A matrix gets noise while effective rank / min(rows, cols) is below it; 1.0 is always, and measures no rank."""
    gate_metric: str = "erank"
    """Key of GATE_METRICS."""
    start_step: int = 0
    """First step with noise."""

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha {self.alpha} is negative; give the noise norm as a share, 0 for none")
        if not 0 < self.rank_threshold <= 1:
            raise ValueError(f"rank_threshold {self.rank_threshold} is outside (0, 1]; 1 adds noise always")

    def share(self, step: int) -> float:
        """Alpha at an optimizer step, 0 before the first with noise."""
        return self.alpha * ANNEALINGS[self.anneal](step) if step >= self.start_step else 0.0

    def chosen(self, momentum: Tensor, step: int) -> list[int]:
        """Which matrices get noise. The rank of one that is not finite is NaN, which is below no threshold."""
        if self.share(step) == 0:
            return []
        if self.rank_threshold == 1.0:
            return list(range(len(momentum)))
        share = GATE_METRICS[self.gate_metric](momentum) / min(momentum.shape[-2:])
        return [index for index, is_open in enumerate((share < self.rank_threshold).tolist()) if is_open]


@dataclass(frozen=True, slots=True)
class Noise:
    """Perturb: momentum + alpha N, where N has the momentum's norm and is drawn afresh for every parameter and step.

    A draw is a function of (seed, parameter name, step) alone: the same on every rank, at every world size and after a
    resume, with nothing to save. It differs between device types, whose random generators are different algorithms.
    """

    shape_noise: Callable[[Tensor], Tensor]
    """Gaussian `(k, rows, cols)` to noise of any norm: `orthogonal` or `isotropic`."""
    gate: Gate
    seed: int
    noise_norm: str = "fro"
    """Key of NOISE_NORMS, or `as_seed`: the draw as it is, times alpha times the gradient's Frobenius norm."""

    def __call__(self, momentum: Tensor, names: Sequence[str], step: int, gradients: Sequence[Tensor] = ()) -> Tensor:
        chosen = self.gate.chosen(momentum, step)
        if not chosen:
            return momentum
        clean = momentum if len(chosen) == len(momentum) else momentum[chosen]  # an index waits for a CUDA device
        noise = self.shape_noise(draw(self.seed, momentum, [names[index] for index in chosen], step))
        if self.noise_norm == "as_seed":
            scale = self.gate.share(step) * gradient_norms(gradients, chosen).to(noise.dtype)
        else:
            norm = NOISE_NORMS[self.noise_norm]
            scale = self.gate.share(step) * norm(clean) / norm(noise)
        if clean is momentum:
            return momentum + noise * scale
        perturbed = momentum.clone()
        perturbed[chosen] = clean + noise * scale
        return perturbed


def draw(seed: int, momentum: Tensor, names: Sequence[str], step: int) -> Tensor:
    """One standard normal matrix per name, in the shape, dtype and place of `momentum`'s."""
    shape, device = momentum.shape[1:], momentum.device
    streams = [generator(seed, "noise", name, step, device=device) for name in names]
    return torch.stack([torch.randn(shape, generator=g, device=device, dtype=momentum.dtype) for g in streams])


def gradient_norms(gradients: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
    """Frobenius norms of the chosen gradients, `(len(chosen), 1, 1)`."""
    return torch.stack([gradients[index].float().norm() for index in chosen]).view(-1, 1, 1)
