"""What is orthogonalized as one matrix: a parameter, the attention matrices of a layer together, or a head's part.

The polar factor of two matrices stacked is not their two polar factors stacked, so this choice changes the optimizer. A
partition deals every entry of every matrix to exactly one block; a block reads its pieces as views and hands the update
back the same way, so that momentum and state stay whole parameters whatever the partition.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

NamedMatrices = Sequence[tuple[str, nn.Parameter]]
WHOLE = slice(None)


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a parameter, transposed or not."""

    parameter: nn.Parameter
    rows: slice = field(default_factory=lambda: WHOLE)
    cols: slice = field(default_factory=lambda: WHOLE)
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """View of this part of a tensor of the parameter's shape."""
        is_part = self.rows is not WHOLE or self.cols is not WHOLE  # a view takes as long as the launch of a kernel
        part = tensor[self.rows, self.cols] if is_part else tensor
        return part.mT if self.transposed else part


@dataclass(frozen=True, slots=True)
class MatrixBlock:
    """One matrix for the orthogonalizer: pieces of parameters, one below the other. The name keys its noise."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        shapes = [piece.of(piece.parameter).shape for piece in self.pieces]
        return sum(rows for rows, _ in shapes), shapes[0][1]

    def read(self, tensor_of: Callable[[nn.Parameter], Tensor]) -> Tensor:
        """The block's matrix in tensors of its parameters' shapes: a view where it is one piece."""
        parts = [piece.of(tensor_of(piece.parameter)) for piece in self.pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def split(self, matrix: Tensor) -> Iterable[tuple[Piece, Tensor]]:
        """Each piece with its part of a matrix of the block's shape."""
        if len(self.pieces) == 1:
            return [(self.pieces[0], matrix)]
        rows = [piece.of(piece.parameter).size(0) for piece in self.pieces]
        return zip(self.pieces, torch.split(matrix, rows), strict=True)

    def with_gradient(self) -> MatrixBlock:
        """The block without the pieces whose parameter has no gradient."""
        if all(piece.parameter.grad is not None for piece in self.pieces):
            return self
        return MatrixBlock(self.name, tuple(piece for piece in self.pieces if piece.parameter.grad is not None))


Partition = Callable[[NamedMatrices], list[MatrixBlock]]
"""Named matrices to blocks; every entry of every matrix is in exactly one."""
Attention = Mapping[str, str]
"""Names of attention matrices to which one each is, `q k v o`; of a layer they are in one module."""


def whole(named: NamedMatrices) -> list[MatrixBlock]:
    """Every matrix by itself."""
    return [MatrixBlock(name, (Piece(parameter),)) for name, parameter in named]


def per_head(named: NamedMatrices, *, head_size: int, attention: Attention | None = None) -> list[MatrixBlock]:
    """Rows of q, k and v and columns of o in blocks of one head; other matrices whole.

    Args:
        attention: which is which; None: those named as in our own model.
    Raises: ValueError if there are none, or they do not divide into heads.
    """
    blocks: list[MatrixBlock] = []
    for name, parameter in named:
        projection = _projection(name, attention)
        if projection is None:
            blocks.append(MatrixBlock(name, (Piece(parameter),)))
            continue
        size = parameter.size(1 if projection == "o" else 0)
        if size % head_size:
            raise ValueError(f"{name} of shape {tuple(parameter.shape)} does not divide into heads of {head_size}")
        for head in range(size // head_size):
            part = slice(head * head_size, (head + 1) * head_size)
            piece = Piece(parameter, cols=part) if projection == "o" else Piece(parameter, rows=part)
            blocks.append(MatrixBlock(f"{name}[{head}]", (piece,)))
    return _changed(blocks, named, attention, "per_head")


def merge_qkvo(named: NamedMatrices, *, attention: Attention | None = None) -> list[MatrixBlock]:
    """The q, k, v and o (transposed: its columns are the heads) of a layer one below the other; other matrices whole.

    Args:
        attention: which is which; None: those named as in our own model.
    Raises: ValueError if there are none.
    """
    merged: dict[str, list[Piece]] = defaultdict(list)
    for name, parameter in named:
        projection = _projection(name, attention)
        key = name if projection is None else f"{name.rsplit('.', 2)[0]}.qkvo"
        merged[key].append(Piece(parameter, transposed=projection == "o"))
    return _changed(
        [MatrixBlock(name, tuple(pieces)) for name, pieces in merged.items()], named, attention, "merge_qkvo"
    )


def _projection(name: str, attention: Attention | None) -> str | None:
    """q, k, v or o for an attention matrix, of our own model `...attention.q.weight`."""
    if attention is not None:
        return attention.get(name)
    *_, part, projection, _ = ["", "", *name.split(".")]
    return projection if part == "attention" and projection in ("q", "k", "v", "o") else None


def _changed(
    blocks: list[MatrixBlock], named: NamedMatrices, attention: Attention | None, option: str
) -> list[MatrixBlock]:
    if named and not any(_projection(name, attention) for name, _ in named):
        raise ValueError(f"{option} finds no matrix named like attention.q.weight in {named[0][0]}, ...; use whole")
    return blocks
