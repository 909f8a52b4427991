"""Second moments of orthogonalized updates, by which NorMuon and AdaMuon scale them.

Orthogonalizing evens out the directions of a momentum, but not its rows, nor its entries. Both divide an update by the
root of the mean of its squares over the steps, a mean per row or per entry, and then give it back its size as a whole.
Ranks do so with what they have gathered: a division is cheap, and the state is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muon_core.optim.blocks import MatrixBlock

Adapt = Callable[[Sequence[MatrixBlock], Tensor, Mapping[Tensor, dict[str, Any]]], Tensor]
"""(blocks of one shape, their updates, state of every parameter) -> what is applied; may change state of its own."""

SECOND_MOMENT = "second_moment"


def as_orthogonalized(blocks: Sequence[MatrixBlock], updates: Tensor, state: Mapping[Tensor, dict[str, Any]]) -> Tensor:
    """The updates as they are."""
    return updates


def per_neuron(
    blocks: Sequence[MatrixBlock], updates: Tensor, state: Mapping[Tensor, dict[str, Any]], *, beta2: float
) -> Tensor:
    """Divide each row by its own root mean square over the steps; the Frobenius norm stays. Blocks are whole matrices.

    Source: arXiv 2510.05491; zichongli5/NorMuon, normuon.py at d45c9a4. (Algorithm 1 of the paper gives updates the
    norm 0.2 sqrt(rows cols): within rounding and Newton-Schulz that is `match_rms_adamw`.)
    """
    parts = _fp32(updates)
    norms = torch._foreach_norm(parts)
    means = [part.square().mean(-1, keepdim=True) for part in parts]
    for block, mean in zip(blocks, means, strict=True):
        moments = state[block.pieces[0].parameter]
        if SECOND_MOMENT not in moments:
            moments[SECOND_MOMENT] = torch.zeros_like(mean)
    kept = [state[block.pieces[0].parameter][SECOND_MOMENT] for block in blocks]
    torch._foreach_lerp_(kept, means, 1 - beta2)
    return _divided(parts, kept, norms, eps=1e-10)


def per_entry(
    blocks: Sequence[MatrixBlock], updates: Tensor, state: Mapping[Tensor, dict[str, Any]], *, beta2: float
) -> Tensor:
    """Divide each entry by its own root mean square over the steps; then the Frobenius norm is sqrt(min(rows, cols)).

    Under `match_rms_adamw` an update's root mean square is 0.2, as published.
    Source: arXiv 2507.11005 (version 3); Chongjie-Si/AdaMuon, gpt2/models/optimizers/adamuon.py at 369f0b3.
    """
    parts = _fp32(updates)
    for block, part in zip(blocks, parts, strict=True):
        for piece, share in block.split(part):
            moments = state[piece.parameter]
            if SECOND_MOMENT not in moments:
                moments[SECOND_MOMENT] = torch.zeros_like(piece.parameter, dtype=share.dtype)
            piece.of(moments[SECOND_MOMENT]).lerp_(share.square(), 1 - beta2)
    kept = [block.read(lambda param: state[param][SECOND_MOMENT]) for block in blocks]
    size = math.sqrt(min(blocks[0].shape))
    return _divided(parts, kept, [updates.new_tensor(size, dtype=torch.float32)] * len(parts), eps=1e-8)


def _fp32(updates: Tensor) -> list[Tensor]:
    """Each update by itself, row-major: sums over a stack, or over a transposed view, would round another way."""
    return list(updates.float().contiguous().unbind())


def _divided(parts: list[Tensor], moments: list[Tensor], norms: Sequence[Tensor], *, eps: float) -> Tensor:
    """Updates over the roots of their moments, scaled to these norms."""
    roots = torch._foreach_sqrt(moments)
    torch._foreach_add_(roots, eps)
    parts = list(torch._foreach_div(parts, roots))
    found = torch._foreach_add(torch._foreach_norm(parts), eps)
    return torch.stack(parts) * torch.stack(list(torch._foreach_div(list(norms), list(found)))).view(-1, 1, 1)


def of_signs(momentum: Tensor, *, orthogonalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Directions of the signs of a momentum's entries (arXiv 2507.11005)."""
    return orthogonalize(momentum.sign())
