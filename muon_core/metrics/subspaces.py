"""The leading singular directions of many matrices: cheap where they stand apart, exact where they do not.

Subspace iteration multiplies a basis of 16 directions by the Gram matrix and makes it orthonormal again. Each round
shrinks what lies outside the leading subspace by a ratio of eigenvalues: a spectrum that falls off, as a momentum's,
needs some twenty rounds, a flat one, as an orthogonalized update's, would take forever. So four rounds go ahead as
scouts, and where the ratio they see is no good, or the residuals at the end are not small, LAPACK decides, at a third
of the price of all eigenvectors.

The basis always begins the same. A result is so a function of its matrix alone: to start from the directions of the
event before would save a few per cent and tie every row to a run's past.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muon_core.metrics.lapack import blas, lapack
from muon_core.metrics.spectrum import nonzero

SUBSPACE = 5
"""Leading directions that are compared, or all where a matrix has fewer rows or columns."""
BASIS = SUBSPACE + 11
"""Directions that are iterated: the further the last one's singular value lies below, the fewer iterations it takes."""
SMALL = 64
"""Rows up to which a matrix is decomposed at once."""
SCOUTS, ROUGH, FINE = 4, 12, 4
"""Iterations: in float32 to see whether more would do, in float32 to come close, and in float64."""
PROMISING = 0.5
"""Largest ratio of the last to the k-th eigenvalue, after SCOUTS iterations, with which it is worth going on."""
TOLERANCES = (1e-7, 1e-5)
"""Largest residuals, as shares of the gap below the subspace: of its directions (about the sine of their angle to the
true subspace), and of the direction after it, whose eigenvalue makes the gap."""
WEAK = 1e-3
"""Where s_5 / s_1 is below it, the Gram matrix has lost the digits that tell the directions apart; an SVD has them."""


@dataclass(frozen=True, slots=True)
class Leading:
    """The first k singular values and directions of `(n, m, long)` matrices, k = min(SUBSPACE, m), float64."""

    values: Tensor
    """`(n, k + 1)`: what follows the subspace too, 0 if nothing does."""
    short: Tensor
    """`(n, m, k)`: orthonormal columns, zero where the singular value is."""
    long: Tensor
    """`(n, long, k)`: the same on the long side."""

    @property
    def gap(self) -> Tensor:
        """(s_k - s_{k+1}) / s_1, `(n,)`: a change of the matrix by this share may turn the subspace; 0 for zero."""
        return (self.values[:, -2] - self.values[:, -1]) / nonzero(self.values[:, 0])

    @property
    def counts(self) -> Tensor:
        """How many of the k directions there are, `(n,)`."""
        return (self.values[:, :-1] > 0).sum(-1)

    def __getitem__(self, part: slice) -> Leading:
        return Leading(self.values[part], self.short[part], self.long[part])


def leading(wide: Tensor, squares: Tensor, short: Tensor) -> Leading:
    """Leading singular directions of float64 `wide` `(n, m, long)`, m <= long, finite.

    Args:
        squares, short: the first min(SUBSPACE + 1, m) eigenvalues and eigenvectors of `wide @ wide.mT`.
    """
    k = min(SUBSPACE, wide.size(-2))
    values = torch.nn.functional.pad(squares.clamp_min(0).sqrt(), (0, k + 1 - squares.size(-1)))
    short = short[..., :k]
    long = wide.mT @ short / nonzero(values[:, None, :k])
    weak = (values[:, k - 1] < WEAK * values[:, 0]).nonzero()[:, 0]
    if len(weak):  # as of rank below five, or nearly
        u, s, vt = torch.linalg.svd(wide[weak], full_matrices=False)
        short[weak], long[weak] = u[..., :k], vt.mT[..., :k]
        values[weak, : s.size(-1)] = s[:, : k + 1]
    values = values.where(values > values[:, :1] * wide.size(-1) * torch.finfo(torch.float64).eps, 0)
    found = values[:, None, :k] > 0
    return Leading(values, short.where(found, 0), long.where(found, 0))


def gram_matrices(wide: Tensor) -> Tensor:
    """W W' of contiguous float64 `(n, m, long)`: `(n, m, m)`."""
    if wide.is_cuda:
        return wide @ wide.mT
    # The symmetric product of BLAS, half the work, which torch has no call for. It leaves one triangle zero.
    lower = torch.stack([torch.from_numpy(blas.dsyrk(1.0, matrix.T, trans=1).T) for matrix in wide.numpy()])
    whole = lower + lower.mT
    whole.diagonal(dim1=-2, dim2=-1).mul_(0.5)
    return whole


def decompose(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """All eigenvalues of symmetric float64 `(n, m, m)`, descending, and the eigenvectors of the `count` largest.

    Returns: `(n, m)` and `(n, m, count)`.
    """
    if gram.is_cuda or gram.size(-1) <= SMALL:
        values, vectors = torch.linalg.eigh(gram)
        return values.flip(-1), vectors[..., -count:].flip(-1)
    pairs = [_decompose(matrix, count) for matrix in gram.numpy()]
    values, vectors = (torch.stack([torch.from_numpy(pair[part]) for pair in pairs]) for part in (0, 1))
    return values.flip(-1), vectors.flip(-1)


def _decompose(gram: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The steps of LAPACK's `syevr`, which by itself gives either all eigenvalues or some of the eigenvectors."""
    size = len(gram)
    # To tridiagonal form, with workspace enough for LAPACK's blocked code.
    reflectors, diagonal, beside, scales, failed = lapack.dsytrd(gram, lower=1, lwork=64 * size)
    assert not failed
    values, failed = lapack.dsterf(diagonal, beside)
    assert not failed, "eigenvalues of a finite symmetric matrix did not converge"
    _, _, vectors, failed = lapack.dstemr(diagonal, np.append(beside, 0.0), 2, 0.0, 0.0, size - count + 1, size)
    assert not failed, "eigenvectors of a finite symmetric matrix did not converge"
    vectors = np.asfortranarray(vectors[:, :count])
    vectors[1:] = lapack.dormqr("L", "N", reflectors[1:, :-1], scales, vectors[1:], 64 * count)[0]
    return values, vectors


def top_eigenvectors(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues of positive semidefinite float64 `(n, m, m)`, descending, and their eigenvectors.

    Returns: `(n, count)` and `(n, m, count)`, from the iteration where its residuals are within TOLERANCES.
    """
    size = gram.size(-1)
    if size <= SMALL:
        squares, vectors = decompose(gram, count)
        return squares[:, :count], vectors
    values, vectors = gram.new_empty(len(gram), count), gram.new_empty(len(gram), size, count)
    index, basis = _scout(gram, count)
    ritz, basis, residuals = _refine(gram[index], basis)
    values[index], vectors[index] = ritz[:, :count], basis[..., :count]
    allowed = ritz.new_tensor([*[TOLERANCES[0]] * (count - 1), TOLERANCES[1]])
    gaps = ritz[:, count - 2] - ritz[:, count - 1]  # a residual over the gap bounds the angle to the true subspace
    converged = (residuals[:, :count] <= gaps[:, None] * allowed).all(-1)
    left = torch.ones(len(gram), dtype=torch.bool, device=gram.device).index_fill(0, index[converged], False)
    if left.any():
        squares, vectors[left] = decompose(gram[left], count)
        values[left] = squares[:, :count]
    return values, vectors


def _scout(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which matrices are worth iterating, `(chosen,)`, and their bases after all iterations in float32."""
    trace = nonzero(gram.diagonal(dim1=-2, dim2=-1).sum(-1))
    rough = (gram / trace[:, None, None]).float()  # a trace of 1 cannot overflow float32
    ritz, basis = _ritz(rough, _power(rough, _start(gram.size(-1)).to(gram.device), SCOUTS))[:2]
    index = (ritz[:, -1] < PROMISING * ritz[:, count - 2]).nonzero()[:, 0]
    return index, _power(rough[index], basis[index], ROUGH)


def _refine(gram: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ritz, basis, image = _ritz(gram, _power(gram, basis.double(), FINE))
    return ritz, basis, torch.linalg.vector_norm(image - basis * ritz[:, None], dim=-2)


def _power(gram: Tensor, basis: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        basis = torch.linalg.qr(gram @ basis).Q
    return basis


def _ritz(gram: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values `(n, BASIS)`, descending, Ritz vectors `(n, m, BASIS)` and their images under `gram`."""
    image = gram @ basis
    values, rotation = torch.linalg.eigh(basis.mT @ image)
    rotation = rotation.flip(-1)
    return values.flip(-1), basis @ rotation, image @ rotation


@lru_cache
def _start(size: int) -> Tensor:
    """`(size, BASIS)` random directions, always the same."""
    return torch.randn(size, BASIS, generator=torch.Generator().manual_seed(size))
