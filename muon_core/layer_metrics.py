"""Everything the `layers` and `spectra` tables say of hidden matrices at one step, for all of them together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muon_core.alignment import ILL_POSED, alignment, energy_share
from muon_core.spectral import METRICS, gram_matrix, spectrum
from muon_core.subspaces import Leading, leading

CHUNK_BYTES = 2**28
"""Of float64 copies that are worked on at a time, so that a large model needs no second large model of memory."""

SUBSPACES = (
    "update_alignment",
    "left_alignment",
    "right_alignment",
    "momentum_left_alignment",
    "momentum_right_alignment",
    "energy_alignment",
    "alignment_gap",
    "ill_posed",
)


@dataclass(frozen=True, slots=True)
class LayerMetrics:
    """Metrics of n matrices in the order given, on their device."""

    columns: dict[str, Tensor]
    """Names of METRICS and SUBSPACES -> float64 `(n,)`; `ill_posed` is 1 or 0."""
    spectra: Tensor
    """Singular values of the weights, float64 `(n, largest m)`, each row filled up with zeros."""


def layer_metrics(weights: Sequence[Tensor], updates: Sequence[Tensor], momenta: Sequence[Tensor]) -> LayerMetrics:
    """Metrics of matrices on one device, of any float dtype: a weight, its last update and its momentum, of one shape.

    docs/metrics.md defines the columns. Only a matrix with a value that is not finite gives NaN, where it enters.

    Raises: ValueError if a weight is no matrix.
    """
    tall = [weight.size(0) > weight.size(-1) for weight in weights]
    names = (*METRICS, *SUBSPACES)
    device = weights[0].device if weights else torch.device("cpu")
    table = torch.zeros(len(names), len(weights), dtype=torch.float64, device=device)
    spectra = table.new_zeros(len(weights), max((min(weight.shape) for weight in weights), default=0))
    for chunk in _chunks(weights):
        stacks = torch.stack([_wide(kind[i]) for kind in (weights, updates, momenta) for i in chunk]).double()
        stacks = stacks.view(3, len(chunk), *stacks.shape[1:])
        index = torch.tensor(chunk, device=device)
        s, values = _measure(stacks, torch.tensor([tall[i] for i in chunk], device=device))
        spectra[index, : s.size(-1)] = s
        table[:, index] = values
    return LayerMetrics(dict(zip(names, table, strict=True)), spectra)


def _measure(stacks: Tensor, tall: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values `(n, m)` and metrics `(columns, n)` of wide weights, updates and momenta `(3, n, m, long)`."""
    finite = stacks.sum((-2, -1)).isfinite()
    stacks[~finite] = 0  # LAPACK fails on NaN
    gram = gram_matrix(stacks)
    s = spectrum(gram[0]).where(finite[0, :, None], torch.nan)
    n = len(tall)
    every = leading(stacks.flatten(0, 1), gram.flatten(0, 1))
    weight, update, momentum = every[:n], every[n : 2 * n], every[2 * n :]
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
        update.gap.where(finite[1], torch.nan),
        ~(update.gap >= ILL_POSED) | ~finite[1],
    ]
    return s, torch.stack([*(metric(s) for metric in METRICS.values()), *(column.double() for column in subspaces)])


def _sides(a: Leading, b: Leading, tall: Tensor) -> tuple[Tensor, Tensor]:
    """Alignment of the left and of the right singular directions."""
    short, long = alignment(a.short, b.short), alignment(a.long, b.long)
    return long.where(tall, short), short.where(tall, long)


def _chunks(weights: Sequence[Tensor]) -> Iterator[list[int]]:
    """Positions of matrices of one shape, transposed or not, as many as may be worked on at a time."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, weight in enumerate(weights):
        if weight.ndim != 2:
            raise ValueError(f"layer_metrics needs matrices, got shape {tuple(weight.shape)} at index {i}")
        groups[min(weight.shape), max(weight.shape)].append(i)
    for (rows, cols), group in groups.items():
        size = max(1, CHUNK_BYTES // (3 * 8 * rows * cols))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _wide(matrix: Tensor) -> Tensor:
    # Row-major tall matrices, transposed, are what LAPACK and the product read fastest.
    return matrix.detach() if matrix.size(0) <= matrix.size(1) else matrix.detach().mT
