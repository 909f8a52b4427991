"""Everything the `layers` and `spectra` tables say of hidden matrices at one step, for all of them together.

Matrices of one shape, transposed or not, are stacked and worked on together, which a GPU wants. Tall ones are turned
wide first, so that there is one kind of matrix to decompose; left and right are put straight at the end. No value
depends on what else is in a stack. Weights need all singular values, updates and momenta their leading directions only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muon_core.config.memory import CHUNK_MATRICES
from muon_core.metrics.alignment import ILL_POSED, alignment, energy_share
from muon_core.metrics.spectrum import METRICS, roots
from muon_core.metrics.subspaces import SUBSPACE, Leading, decompose, gram_matrices, leading, top_eigenvectors

CHUNK_BYTES = {"cpu": 2**25, "cuda": CHUNK_MATRICES}
"""Of float64 copies that are worked on at a time: a CPU wants them near its cache, a GPU many at once, and neither a
second large model in its memory."""
STEEP = 1e-6
"""Where s_m / s_1 is below it, as for weights of low rank, many small values together would spoil the entropy."""

SUBSPACES = (
    "update_alignment",
    "left_alignment",
    "right_alignment",
    "momentum_left_alignment",
    "momentum_right_alignment",
    "energy_alignment",
    "alignment_gap",
    "ill_posed",
    "momentum_alignment_gap",
    "momentum_ill_posed",
)
FLAGS = ("ill_posed", "momentum_ill_posed")


@dataclass(frozen=True, slots=True)
class LayerMetrics:
    """Metrics of n matrices in the order given, on their device."""

    columns: dict[str, Tensor]
    """Names of METRICS and SUBSPACES -> float64 `(n,)`; those of FLAGS are 1 or 0."""
    spectra: Tensor
    """Singular values of the weights, float64 `(n, largest m)`, each row filled up with zeros."""


def layer_metrics(
    weights: Sequence[Tensor], updates: Sequence[Tensor] = (), momenta: Sequence[Tensor] = ()
) -> LayerMetrics:
    """Metrics of matrices on one device, of any float dtype: a weight, its last update and its momentum, of one shape.

    Of weights alone there are METRICS only. docs/metrics.md defines the columns. Only a matrix with a value that is not
    finite gives NaN, where it enters.

    Raises: ValueError if a weight is no matrix.
    """
    tall = [weight.size(0) > weight.size(-1) for weight in weights]
    kinds = (weights, updates, momenta) if updates else (weights,)
    names = (*METRICS, *SUBSPACES) if updates else tuple(METRICS)
    device = weights[0].device if weights else torch.device("cpu")
    table = torch.zeros(len(names), len(weights), dtype=torch.float64, device=device)
    spectra = table.new_zeros(len(weights), max((min(weight.shape) for weight in weights), default=0))
    for chunk in _chunks(weights, len(kinds)):
        stacks = _stack(chunk, *kinds)
        index = torch.tensor(chunk, device=device)
        s, values = _measure(stacks, torch.tensor([tall[i] for i in chunk], device=device))
        spectra[index, : s.size(-1)] = s
        table[:, index] = values
    return LayerMetrics(dict(zip(names, table, strict=True)), spectra)


def _measure(stacks: Tensor, tall: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values `(n, m)` and metrics `(columns, n)` of wide weights, updates and momenta `(3, n, m, long)`.

    Or of weights alone, `(1, n, m, long)`.
    """
    finite = stacks.sum((-2, -1)).isfinite()
    stacks[~finite] = 0  # LAPACK fails on NaN
    gram = gram_matrices(stacks.flatten(0, 1)).view(*stacks.shape[:3], stacks.size(2))
    n, count = len(tall), min(SUBSPACE + 1, gram.size(-1))
    squares, vectors = decompose(gram[0], count)
    s = _spectrum(stacks[0], squares).where(finite[0, :, None], torch.nan)
    of_weights = [metric(s) for metric in METRICS.values()]
    if len(stacks) == 1:
        return s, torch.stack(of_weights)
    weight = leading(stacks[0], squares[:, :count], vectors)
    others = leading(stacks[1:].flatten(0, 1), *top_eigenvectors(gram[1:].flatten(0, 1), count))
    update, momentum = others[:n], others[n:]
    left, right = _sides(weight, update, tall)
    momentum_left, momentum_right = _sides(weight, momentum, tall)
    energy = energy_share(weight.short, stacks[1]), energy_share(weight.long, stacks[1].mT)
    both, either = finite[0] & finite[1], finite[0] & finite[2]
    subspaces = [
        left.where(both, torch.nan),
        left.where(both, torch.nan),
        right.where(both, torch.nan),
        momentum_left.where(either, torch.nan),
        momentum_right.where(either, torch.nan),
        energy[1].where(tall, energy[0]).where(both, torch.nan),
        *_posedness(update, finite[1]),
        *_posedness(momentum, finite[2]),
    ]
    return s, torch.stack([*of_weights, *(column.double() for column in subspaces)])


def _posedness(found: Leading, finite: Tensor) -> tuple[Tensor, Tensor]:
    """The gap below the leading subspace, and whether it is too narrow for the subspace to mean anything."""
    gap = found.gap.where(finite, torch.nan)
    return gap, ~(gap >= ILL_POSED)


def _spectrum(wide: Tensor, squares: Tensor) -> Tensor:
    """Singular values `(n, m)`, by an SVD where their squares span more than the Gram matrix resolves."""
    s = roots(squares)
    steep = (s[:, -1] < STEEP * s[:, 0]).nonzero()[:, 0]
    if len(steep):
        precise = torch.linalg.svdvals(wide[steep])
        s[steep] = precise.where(precise > precise[:, :1] * wide.size(-1) * torch.finfo(torch.float64).eps, 0)
    return s


def _sides(a: Leading, b: Leading, tall: Tensor) -> tuple[Tensor, Tensor]:
    """Alignment of the left and of the right singular directions."""
    short, long = alignment(a.short, b.short), alignment(a.long, b.long)
    return long.where(tall, short), short.where(tall, long)


def _chunks(weights: Sequence[Tensor], kinds: int) -> Iterator[list[int]]:
    """Positions of matrices of one shape, transposed or not, as many as may be worked on at a time, of each kind."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, weight in enumerate(weights):
        if weight.ndim != 2:
            raise ValueError(f"layer_metrics needs matrices, got shape {tuple(weight.shape)} at index {i}")
        groups[min(weight.shape), max(weight.shape)].append(i)
    for (rows, cols), group in groups.items():
        size = max(1, CHUNK_BYTES[weights[0].device.type] // (kinds * 8 * rows * cols))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _stack(chosen: Sequence[int], *kinds: Sequence[Tensor]) -> Tensor:
    """Wide float64 copies `(kinds, chosen, m, long)`: row-major, as products and decompositions read fastest."""
    shape = sorted(kinds[0][chosen[0]].shape)
    stack = torch.empty(len(kinds), len(chosen), *shape, dtype=torch.float64, device=kinds[0][0].device)
    for kind, copies in zip(kinds, stack, strict=True):
        for i, copy in zip(chosen, copies, strict=True):
            matrix = kind[i].detach()
            copy.copy_(matrix if matrix.size(0) <= matrix.size(1) else matrix.mT)
    return stack
