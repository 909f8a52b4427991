"""Whether an optimizer still optimizes: how updates relate to gradients and to each other, and what noise does.

A loss that falls slowly looks the same whether the problem is hard or the optimizer is dead. A momentum whose singular
values have saturated repeats its update for good (cosine to the one before of 1) while the gradient points elsewhere
(agreement near 0); one that diverges is infinite a few steps later. Both are seen here at the first tracked step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muon_core.metrics.spectrum import effective_rank, nonzero, singular_values
from muon_core.optim.as_seed import DIVERGENCE, SIGN_FLIP, Seen
from muon_core.optim.blocks import MatrixBlock
from muon_core.stopwatch import Stopwatch
from muon_core.tables import FROZEN_AGREEMENT, FROZEN_COSINE

Health = dict[str, dict[str, float | None]]
"""Parameter name -> column of the `health` table -> value, None where there is none."""

OBSERVED: dict[str, Callable[[Tensor], Tensor]] = {
    "momentum_effective_rank": torch.mean,
    "gate_open": torch.mean,
    "noise_ratio": torch.mean,
    "cos_noise_free": torch.mean,
    "sigma_max": torch.max,
    "num_sign_flips": torch.sum,
    "num_divergent": torch.sum,
    "num_nonfinite": torch.sum,
    "num_fallbacks": torch.sum,
}
"""What a Muon step shows of a block -> how a matrix in several blocks sums them up."""


@dataclass(frozen=True, slots=True)
class _Stack:
    """What a Watch saw of a stack of blocks: OBSERVED but for what takes singular values, and what has them."""

    names: list[str]
    momentum: Tensor
    above: Tensor
    """Largest singular values before cubic steps `(k,)`; NaN where there are none."""
    columns: dict[str, Tensor]

    def table(self) -> Tensor:
        """Values of OBSERVED, float64 `(k, columns)`."""
        sigma = singular_values(self.momentum)
        columns = self.columns | {
            "momentum_effective_rank": effective_rank(sigma),
            "sigma_max": self.above.where(self.above.isfinite(), sigma[:, 0]),
        }
        return torch.stack([columns[name].double() for name in OBSERVED], dim=1)


class Watch:
    """Observes the stacks of one Muon step; singular values, which take long, are left to `measure`."""

    def __init__(
        self, orthogonalize: Callable[[Tensor], Tensor], seen: Mapping[str, Seen], stopwatch: Stopwatch
    ) -> None:
        """`seen`: what the perturbation noted of a block; it knows its noise, and as_seed what its cubic steps hid."""
        self._orthogonalize, self._seen, self._stopwatch = orthogonalize, seen, stopwatch
        self.stacks: list[_Stack] = []

    def __call__(self, blocks: Sequence[MatrixBlock], momentum: Tensor, perturbed: Tensor, updates: Tensor) -> None:
        """Note what a stack of blocks was made of: its momentum, what was orthogonalized, and its updates."""
        with self._stopwatch.timed("tracking"):
            self._see(blocks, momentum, perturbed, updates)

    def _see(self, blocks: Sequence[MatrixBlock], momentum: Tensor, perturbed: Tensor, updates: Tensor) -> None:
        padded = _padded(momentum, perturbed)
        added = _norm(perturbed - padded)
        above = torch.full_like(added[:, None], torch.nan)
        if all(block.name in self._seen for block in blocks):
            above = torch.stack([self._seen[block.name].sigma for block in blocks])
            added = torch.stack([self._seen[block.name].noise for block in blocks]).double()
        free = updates if perturbed is momentum else self._orthogonalize(padded)
        num_nonfinite = (~perturbed.isfinite()).sum((-2, -1))
        columns = {
            "gate_open": added > 0,
            "noise_ratio": added / nonzero(_norm(momentum)),
            "cos_noise_free": cosine(updates, free),
            "num_sign_flips": _count(above, SIGN_FLIP),
            "num_divergent": _count(above, DIVERGENCE),
            "num_nonfinite": num_nonfinite,
            "num_fallbacks": (num_nonfinite > 0) & updates.isfinite().all(-1).all(-1),
        }
        self.stacks.append(_Stack([block.name for block in blocks], momentum, above[:, 0], columns))


@dataclass(frozen=True, slots=True)
class Look:
    """What a step leaves to be measured: tensors that no later step changes."""

    updates: Mapping[str, Tensor]
    """Changes of the weights in this step, without decay."""
    gradients: Mapping[str, Tensor]
    """Of the matrices that have one."""
    cosines: Tensor
    """Of each update to that of the step before, `(n,)`; NaN where it was not kept."""
    stacks: Sequence[_Stack] = ()
    blocks: Mapping[str, list[str]] = field(default_factory=dict)
    """Names of the blocks that Muon made of each matrix."""
    alpha: float = math.nan
    together: bool = False
    """Whether each rank saw other blocks, so that only all of them together have found everything."""


class Directions(NamedTuple):
    """What was found of a matrix, and the blocks that have the rest."""

    cos_previous_update: float
    gradient_agreement: float
    alpha: float
    blocks: list[str]


def look_at(
    parameters: Mapping[str, nn.Parameter],
    updates: Mapping[str, Tensor],
    previous: Mapping[str, Tensor],
    blocks: Sequence[MatrixBlock] = (),
    watch: Watch | None = None,
    *,
    alpha: float = math.nan,
    together: bool = False,
) -> Look:
    """Of matrices that have their gradients, which are kept as they are; nothing waits for the device.

    Args:
        previous: updates of the step before, if they were kept.
        blocks, watch: what Muon orthogonalizes, and what it showed of it.
    """
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=next(iter(updates.values())).device)
    names = _names_of_blocks(blocks)
    return Look(
        updates,
        {name: param.grad for name, param in parameters.items() if param.grad is not None},
        torch.stack([cosine(updates[name], previous[name]) if name in previous else nothing for name in parameters]),
        watch.stacks if watch else (),
        {name: names[param] for name, param in parameters.items()},
        alpha,
        together,
    )


def _names_of_blocks(blocks: Sequence[MatrixBlock]) -> Mapping[nn.Parameter, list[str]]:
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for block in blocks:
        for param in dict.fromkeys(piece.parameter for piece in block.pieces):
            names[param].append(block.name)
    return names


def measure(look: Look) -> tuple[dict[str, Directions], dict[str, list[float]]]:
    """What a step shows of each matrix, and of each block that this rank saw the values of OBSERVED."""
    nothing = look.cosines.new_full((), torch.nan)
    agreements = [
        agreement(update, look.gradients[name]) if name in look.gradients else nothing
        for name, update in look.updates.items()
    ]
    pairs = torch.stack([look.cosines, torch.stack(agreements)], dim=1).tolist()
    matrices = {
        name: Directions(cos, agrees, look.alpha, look.blocks[name])
        for name, (cos, agrees) in zip(look.updates, pairs, strict=True)
    }
    blocks = {name: row for stack in look.stacks for name, row in zip(stack.names, stack.table().tolist(), strict=True)}
    return matrices, blocks


def summed_up(matrices: Mapping[str, Directions], blocks: Mapping[str, list[float]]) -> Health:
    """What the `health` table says, by what all ranks found."""
    health: Health = {}
    for name, found in matrices.items():
        seen = [blocks.get(block, [math.nan] * len(OBSERVED)) for block in found.blocks]
        columns = zip(*seen, strict=True) if seen else [()] * len(OBSERVED)
        observed = map(_summary, OBSERVED.values(), columns)
        values = dict(zip(OBSERVED, observed, strict=True)) | {
            "cos_previous_update": found.cos_previous_update,
            "gradient_agreement": found.gradient_agreement,
            "alpha": found.alpha,
        }
        health[name] = {column: _plain(column, value) for column, value in values.items()}
    return health


def _summary(summarize: Callable[[Tensor], Tensor], of_blocks: Sequence[float]) -> float:
    if len(of_blocks) == 1:
        return of_blocks[0]
    return float(summarize(torch.tensor(of_blocks, dtype=torch.float64))) if of_blocks else math.nan


def _plain(column: str, value: float) -> float | None:
    if math.isnan(value):
        return None
    return int(value) if column.startswith("num_") else value


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between matrices `(..., rows, cols)`: float64 `(...)`, 0 where one is zero."""
    return (a.double() * b.double()).sum((-2, -1)) / nonzero(_norm(a) * _norm(b))


def agreement(update: Tensor, gradient: Tensor) -> Tensor:
    """<U, g> / ||g||_* for the update's descent direction U, scaled to a root mean square singular value of 1.

    1 for the steepest descent in the spectral norm (the polar factor of g), 0 for an unrelated direction; 0 where one
    of them is zero.
    """
    unit = _norm(update) / math.sqrt(min(update.shape))
    nuclear = singular_values(gradient).sum(-1)
    return -(update.double() * gradient.double()).sum((-2, -1)) / nonzero(unit * nuclear)


def failing(step: int, health: Health) -> str | None:
    """How the momentum froze or ran away, in words, by the `health` rows of one step; None if it did neither.

    Frozen: half the matrices or more repeat their update though the gradient points elsewhere. Runaway: singular values
    above sqrt 5 before as_seed's cubic steps, or a momentum that is not finite.
    """
    frozen = sum(map(_is_frozen, health.values()))
    if 2 * frozen < len(health) or not frozen:
        return _runaway(step, health)
    return _runaway(step, health) or (
        f"frozen momentum: {frozen} of {len(health)} matrices repeat their update "
        f"(cosine above {FROZEN_COSINE}, gradient agreement below {FROZEN_AGREEMENT}) at step {step}"
    )


def _is_frozen(row: Mapping[str, float | None]) -> bool:
    cos, agrees = row["cos_previous_update"], row["gradient_agreement"]
    return cos is not None and agrees is not None and cos > FROZEN_COSINE and agrees < FROZEN_AGREEMENT


def _runaway(step: int, health: Health) -> str | None:
    for name, row in health.items():
        if row["num_nonfinite"]:
            return f"runaway momentum: {name} is not finite at step {step}"
        if row["num_divergent"]:
            return f"runaway momentum: sigma_max {row['sigma_max']:.3g} of {name} is above sqrt(5) at step {step}"
    return None


def _count(sigma: Tensor, bound: float) -> Tensor:
    return (sigma > bound).sum(-1).double().where(~sigma[:, 0].isnan(), torch.nan)


def _padded(matrix: Tensor, like: Tensor) -> Tensor:
    """`matrix` with zeros appended up to the shape of `like`."""
    return F.pad(matrix, (0, like.size(-1) - matrix.size(-1), 0, like.size(-2) - matrix.size(-2)))


def _norm(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(matrix.double())
    return norm
