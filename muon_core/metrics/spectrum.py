"""What the full spectra of weight matrices say: norm, gap, entropy, ranks, distance from orthogonal.

Singular values are the roots of the eigenvalues of the Gram matrix W W', which is m x m on the short side however long
the other is. Squaring costs half the digits; of fp64's 16 the 8 that are left are as many as float32 weights have. So
this is faster than an fp32 SVD and, up to condition 1e8, more accurate. What lies below `sqrt(eps64 * m)` of the
largest, 1e-7 or so, is rounding of that product and counts as zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def singular_values(matrices: Tensor) -> Tensor:
    """Singular values of `(..., rows, cols)`: float64 `(..., min(rows, cols))`, largest first, NaN where not finite."""
    wide = (matrices if matrices.size(-2) <= matrices.size(-1) else matrices.mT).double()
    gram = wide @ wide.mT
    finite = gram.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    squares: Tensor = torch.linalg.eigvalsh(gram.where(finite, 0)).flip(-1)  # LAPACK fails on NaN
    return roots(squares).where(finite[..., 0], torch.nan)


def roots(squares: Tensor) -> Tensor:
    """Singular values `(..., m)` from all eigenvalues of a Gram matrix, largest first, float64: rounding becomes 0."""
    squares = squares.clamp_min(0)
    noise = squares[..., :1] * squares.size(-1) * torch.finfo(torch.float64).eps
    return squares.where(squares > noise, 0).sqrt()


def effective_rank(s: Tensor) -> Tensor:
    """exp(entropy) of singular values `(..., m)`: `(...)`, from 1 to m, or 0 where all are zero."""
    return entropy(s).exp().where(_largest(s) != 0, 0)


def momentum_effective_rank(matrices: Tensor) -> Tensor:
    """Effective rank of each matrix of `(..., rows, cols)`: float64 `(...)` on the same device, for the noise gate."""
    return effective_rank(singular_values(matrices))


def entropy(s: Tensor) -> Tensor:
    """-sum p log p in nats, p = s / sum(s), of singular values `(..., m)`: `(...)`."""
    p = s / nonzero(s.sum(-1, keepdim=True))
    terms: Tensor = torch.special.xlogy(p, p)
    return terms.sum(-1).abs()  # the sum is never positive; a minus would make -0.0 of rank one


def stable_rank(s: Tensor) -> Tensor:
    """Squared Frobenius over squared spectral norm: `(...)`."""
    return (s / nonzero(s[..., :1])).square().sum(-1)


def spectral_gap(s: Tensor) -> Tensor:
    """s_1 / s_2: `(...)`; infinite where there is no second singular value, 1 where there is none at all."""
    second = s[..., 1] if s.size(-1) > 1 else torch.zeros_like(s[..., 0])
    return (_largest(s) / second).where(_largest(s) != 0, 1)


def orthogonality_error(s: Tensor) -> Tensor:
    """Root mean square of (s / s_1)^2 - 1: `(...)`."""
    return ((s / nonzero(s[..., :1])).square() - 1).square().mean(-1).sqrt()


def nonzero(x: Tensor) -> Tensor:
    """`x` with 1 in place of 0: a divisor under which the share of nothing in nothing is 0, not NaN."""
    return x.where(x != 0, 1)


def _largest(s: Tensor) -> Tensor:
    return s[..., 0]


METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "spectral_norm": _largest,
    "spectral_gap": spectral_gap,
    "entropy": entropy,
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "orthogonality_error": orthogonality_error,
}
"""Column of the `layers` table -> function of singular values `(..., m)`, largest first. A new metric is one line."""
