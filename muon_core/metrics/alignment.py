"""How much of what an update or a momentum does lies in the leading directions of its weight.

Two leading subspaces are compared by the angles between them: alignment 1 is the same subspace, 0 an orthogonal one.
Two numbers belong beside it. Unrelated subspaces are not at 0: five random directions of 256 align by 0.12, so each row
has that chance level. And an update whose fifth and sixth singular value nearly agree has no top five: a change in its
last digits turns them anyhow, so the alignment is called ill-posed there and says nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muon_core.metrics.spectrum import nonzero

ILL_POSED = 1e-3
"""Relative gap below which a subspace is no property of the matrix: bf16 orthogonalization rounds by as much."""


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine of the principal angles between the column spaces of `(n, dim, k)`: float64 `(n,)`.

    Columns are orthonormal or zero; as many angles count as the smaller space has, and the mean of none is 0.
    """
    # Columns that are missing are zero, so the squared norms count those that are there.
    counts = torch.minimum(*(x.square().sum(-2).round().sum(-1) for x in (a, b)))
    cosines: Tensor = torch.linalg.svdvals(a.mT @ b)
    return cosines.sum(-1) / counts.clamp_min(1)


def energy_share(directions: Tensor, matrices: Tensor) -> Tensor:
    """||D' M||_F^2 / ||M||_F^2 for orthonormal columns D `(n, rows, k)` and `(n, rows, cols)`: `(n,)`, 0 for zero."""
    total = matrices.square().sum((-2, -1))
    return (directions.mT @ matrices).square().sum((-2, -1)) / nonzero(total)
