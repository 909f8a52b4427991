"""The noise arms in the order of operations in which they were first written, for comparison; not for use.

The noise is written into the momentum and three cubic steps x -> 1.5 x - 0.5 x^3 pull its singular values to 1: from
(0, sqrt 3). Between sqrt 3 and sqrt 5 they may flip a direction's sign, above sqrt 5 they diverge. What that rule
leaves open is a switch here: the QR of wide matrices, what follows a momentum that is not finite, the random stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from muon_core.metrics.spectrum import singular_values
from muon_core.optim.perturb import Gate, draw, gradient_norms

SIGN_FLIP, DIVERGENCE = 3**0.5, 5**0.5
"""Singular values above which a cubic step may flip the sign, or goes to infinity."""


class Seen(NamedTuple):
    """What a perturbation notes of one matrix, on the device, for the `health` table."""

    sigma: Tensor
    """Singular values `(m,)` before the cubic steps; NaN where there are none to come."""
    noise: Tensor
    """Frobenius norm of the noise, `()`."""


class NonFiniteMomentum(ArithmeticError):
    """A momentum that can give no update any more."""


def cubic_steps(matrix: Tensor, steps: int = 3) -> Tensor:
    """`steps` times M <- 1.5 M - 0.5 M M' M, without a normalisation before it."""
    for _ in range(steps):
        wide = matrix.size(-2) < matrix.size(-1)
        product = (matrix @ matrix.mT) @ matrix if wide else matrix @ (matrix.mT @ matrix)
        matrix = 1.5 * matrix - 0.5 * product
    return matrix


def qr(gaussian: Tensor) -> Tensor:
    """Q as LAPACK signs it, so not Haar; of the transpose for wide matrices."""
    wide = gaussian.size(-2) < gaussian.size(-1)
    q: Tensor = torch.linalg.qr(gaussian.mT if wide else gaussian).Q
    return q.mT if wide else q


@dataclass(frozen=True, slots=True)
class AsSeed:
    """Perturb, to be stored as the momentum: M + alpha ||g||_F Q where the gate is open, then cubic steps."""

    shape_noise: Callable[[Tensor], Tensor]
    """`qr`, or the identity for the isotropic control, whose noise is then sqrt(max(rows, cols)) times as large."""
    gate: Gate
    seed: int
    cubic: int = 3
    """Number of cubic steps; the isotropic control has none."""
    wide: str = "transpose"
    """`transpose` or `raise`: wide matrices under `qr`."""
    fails: bool = True
    """Whether a momentum that is not finite raises; else `sgd_where_not_finite` has to follow."""
    seen: dict[str, Seen] = field(default_factory=dict, compare=False)
    """By name, of the last call."""

    def __call__(self, momentum: Tensor, names: Sequence[str], step: int, gradients: Sequence[Tensor]) -> Tensor:
        if self.wide == "raise" and momentum.size(-2) < momentum.size(-1):
            raise ValueError(
                f"as_seed noise of {names[0]}: the QR of a wide {momentum.size(-2)} x {momentum.size(-1)} matrix has "
                "another shape; set wide to transpose"
            )
        noisy = momentum
        if chosen := self.gate.chosen(momentum, step):
            noise = self.shape_noise(draw(self.seed, momentum, [names[index] for index in chosen], step))
            noisy = momentum.clone()
            noisy[chosen] += self.gate.share(step) * gradient_norms(gradients, chosen) * noise
        sigma = singular_values(noisy)
        norms = torch.linalg.matrix_norm(noisy - momentum)
        to_come = sigma if self.cubic else torch.full_like(sigma, torch.nan)
        self.seen.update(zip(names, map(Seen, to_come, norms), strict=True))
        perturbed = cubic_steps(noisy, self.cubic)
        if self.fails:
            cause = f"and cubic steps diverge above sqrt(5) = {DIVERGENCE:.4g}" if self.cubic else OVERFLOWED
            raise_if_not_finite(perturbed, sigma, names, step, cause, "a smaller lr or alpha")
        return perturbed


OVERFLOWED = "so a gradient was not finite or the sum over steps overflowed"


def raise_if_not_finite(
    matrices: Tensor, sigma: Tensor, names: Sequence[str], step: int, cause: str, smaller: str
) -> None:
    """Raises NonFiniteMomentum for the first of the matrices that is not finite.

    Args:
        sigma: singular values of the matrices, or of what they were made from.
        cause, smaller: for the message, why such a momentum is not finite, and what to make smaller.
    """
    finite = matrices.isfinite().all(-1).all(-1)
    if finite.all():
        return
    index = int((~finite).nonzero()[0])
    raise NonFiniteMomentum(
        f"as_seed momentum of {names[index]} is not finite at step {step}: sigma_max was {float(sigma[index, 0]):.4g}, "
        f"{cause}; use mode well_posed, {smaller}, or on_nonfinite sgd_fallback"
    )


def sgd_where_not_finite(updates: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """`(k, rows, cols)` updates, with the raw gradient in place of those that are not finite."""
    finite = updates.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    if finite.all():
        return updates
    return updates.where(finite, torch.stack([gradient.to(updates.dtype) for gradient in gradients]))
