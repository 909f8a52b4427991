"""Whether an optimizer still optimizes: how updates relate to gradients and to each other, and what noise does.

A loss that falls slowly looks the same whether the problem is hard or the optimizer is dead. A momentum whose singular
values have saturated repeats its update for good (cosine to the one before of 1) while the gradient points elsewhere
(agreement near 0); one that diverges is infinite a few steps later. Both are seen here at the first tracked step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muon_core import distributed
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


class Watch:
    """Observes the stacks of one Muon step: values of OBSERVED for every block, kept on the device."""

    def __init__(
        self, orthogonalize: Callable[[Tensor], Tensor], seen: Mapping[str, Seen], stopwatch: Stopwatch
    ) -> None:
        """`seen`: what the perturbation noted of a block; it knows its noise, and as_seed what its cubic steps hid."""
        self._orthogonalize, self._seen, self._stopwatch = orthogonalize, seen, stopwatch
        self.rows: dict[str, Tensor] = {}

    def __call__(self, blocks: Sequence[MatrixBlock], momentum: Tensor, perturbed: Tensor, updates: Tensor) -> None:
        """Note what a stack of blocks was made of: its momentum, what was orthogonalized, and its updates."""
        with self._stopwatch.timed("tracking"):
            self._see(blocks, momentum, perturbed, updates)

    def _see(self, blocks: Sequence[MatrixBlock], momentum: Tensor, perturbed: Tensor, updates: Tensor) -> None:
        sigma = singular_values(momentum)
        padded = _padded(momentum, perturbed)
        added = _norm(perturbed - padded)
        above = torch.full_like(sigma, torch.nan)
        if all(block.name in self._seen for block in blocks):
            above = torch.stack([self._seen[block.name].sigma for block in blocks])
            added = torch.stack([self._seen[block.name].noise for block in blocks]).double()
        free = updates if perturbed is momentum else self._orthogonalize(padded)
        num_nonfinite = (~perturbed.isfinite()).sum((-2, -1))
        columns = {
            "momentum_effective_rank": effective_rank(sigma),
            "gate_open": added > 0,
            "noise_ratio": added / nonzero(_norm(momentum)),
            "cos_noise_free": cosine(updates, free),
            "sigma_max": above[:, 0].where(above[:, 0].isfinite(), sigma[:, 0]),
            "num_sign_flips": _count(above, SIGN_FLIP),
            "num_divergent": _count(above, DIVERGENCE),
            "num_nonfinite": num_nonfinite,
            "num_fallbacks": (num_nonfinite > 0) & updates.isfinite().all(-1).all(-1),
        }
        table = torch.stack([columns[name].double() for name in OBSERVED], dim=1)
        self.rows.update(zip((block.name for block in blocks), table, strict=True))


def measure(
    parameters: Mapping[str, nn.Parameter],
    updates: Mapping[str, Tensor],
    previous: Mapping[str, Tensor],
    blocks: Sequence[MatrixBlock] = (),
    rows: Mapping[str, Tensor] | None = None,
    *,
    alpha: float = math.nan,
    shared: bool = False,
) -> Health:
    """What the `health` table says of matrices that have their gradients, in one copy from the device.

    Args:
        updates: changes of the weights in this step, without decay; `previous` those of the step before, if kept.
        blocks, rows: what Muon orthogonalized, and what a Watch saw of it.
        shared: ranks saw different blocks; all of them call this.
    """
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=next(iter(updates.values())).device)
    table = _by_parameter(list(parameters.values()), blocks, rows, shared) if rows is not None else None
    columns = []
    for index, (name, param) in enumerate(parameters.items()):
        columns.append(cosine(updates[name], previous[name]) if name in previous else nothing)
        columns.append(nothing if param.grad is None else agreement(updates[name], param.grad))
        columns.append(torch.full_like(nothing, alpha))
        columns.extend(nothing.expand(len(OBSERVED)) if table is None else table[index])
    names = ("cos_previous_update", "gradient_agreement", "alpha", *OBSERVED)
    values = torch.stack(columns).view(len(parameters), len(names)).tolist()
    return {
        parameter: {name: _plain(name, value) for name, value in zip(names, row, strict=True)}
        for parameter, row in zip(parameters, values, strict=True)
    }


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


def _by_parameter(
    parameters: Sequence[nn.Parameter], blocks: Sequence[MatrixBlock], rows: Mapping[str, Tensor], shared: bool
) -> Tensor:
    """Values of OBSERVED for each parameter, `(len(parameters), len(OBSERVED))`; NaN where no block was seen."""
    missing = torch.full((len(OBSERVED),), 0.0 if shared else torch.nan, dtype=torch.float64)
    missing = missing.to(parameters[0].device)
    table = torch.stack([rows.get(block.name, missing) for block in blocks])
    if shared:
        distributed.sum_over_ranks(table)
    owned = [
        [index for index, block in enumerate(blocks) if any(piece.parameter is p for piece in block.pieces)]
        for p in parameters
    ]
    summaries = list(OBSERVED.values())
    return torch.stack(
        [torch.stack([summary(table[indices, c]) for c, summary in enumerate(summaries)]) for indices in owned]
    )


def _count(sigma: Tensor, bound: float) -> Tensor:
    return (sigma > bound).sum(-1).double().where(~sigma[:, 0].isnan(), torch.nan)


def _padded(matrix: Tensor, like: Tensor) -> Tensor:
    """`matrix` with zeros appended up to the shape of `like`."""
    return F.pad(matrix, (0, like.size(-1) - matrix.size(-1), 0, like.size(-2) - matrix.size(-2)))


def _norm(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(matrix.double())
    return norm
