"""Newton-Schulz: orthogonalize matrices with products only."""

from __future__ import annotations

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]

QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""Chosen for a steep slope at zero, not for convergence. Source: https://kellerjordan.github.io/posts/muon/"""


def newton_schulz(
    matrix: Tensor,
    coefficients: Coefficients = QUINTIC,
    *,
    dtype: torch.dtype = torch.bfloat16,
    eps: float = 1e-7,
) -> Tensor:
    """Push the singular values of `matrix` towards 1, keeping its singular vectors.

    Args:
        matrix: `(..., rows, cols)`, any float dtype. Never modified.
        coefficients: one `(a, b, c)` per iteration of `aX + b(XX')X + c(XX')^2 X`.
        dtype: of the arithmetic. bfloat16 gives the bits of `torch.optim.Muon`.
        eps: smallest Frobenius norm divided by, so that a zero matrix stays zero.
    Returns: same shape, in `dtype`; under QUINTIC singular values above 0.003 of the norm end in [0.68, 1.21]. On a CPU
        a stack gives the bits of its matrices one by one (in fp32 for even sizes: BLAS kernels depend on alignment).
    Raises: ValueError if `matrix` has fewer than 2 dimensions.
    Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/; the order of operations is torch.optim.Muon's.
    """
    if matrix.ndim < 2:
        raise ValueError(f"newton_schulz needs a matrix, got shape {tuple(matrix.shape)}; use AdamW for vectors")
    x = matrix.to(dtype).reshape(-1, *matrix.shape[-2:])
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # iterate on the smaller Gram matrix
    for a, b, c in coefficients:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).reshape(matrix.shape)
