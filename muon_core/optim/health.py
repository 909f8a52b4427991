"""Whether an optimizer still optimizes: how updates relate to gradients and to each other, and what noise does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muon_core import distributed
from muon_core.optim.as_seed import DIVERGENCE, SIGN_FLIP, Seen
from muon_core.optim.blocks import Block
from muon_core.spectral import effective_rank, singular_values

Columns = dict[str, list[float]]
"""Column of the `health` table -> one value per matrix, NaN where there is none."""

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

    def __init__(self, orthogonalize: Callable[[Tensor], Tensor], seen: Mapping[str, Seen]) -> None:
        """`seen`: what the perturbation noted of a block; it knows its noise, and as_seed what its cubic steps hid."""
        self._orthogonalize, self._seen = orthogonalize, seen
        self.rows: dict[str, Tensor] = {}

    def __call__(
        self,
        blocks: Sequence[Block],
        momentum: Tensor,
        perturbed: Tensor,
        updates: Tensor,
        gradients: Sequence[Tensor],
    ) -> None:
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
            "noise_ratio": added / _nonzero(_norm(momentum)),
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
    parameters: Sequence[nn.Parameter],
    updates: Sequence[Tensor],
    previous: Sequence[Tensor | None],
    blocks: Sequence[Block] = (),
    rows: Mapping[str, Tensor] | None = None,
    *,
    alpha: float = math.nan,
    shared: bool = False,
) -> Columns:
    """The columns of the `health` table for matrices with their gradients, in one copy from the device.

    Args:
        updates: changes of the weights in this step, without decay; `previous` those of the step before, if kept.
        blocks, rows: what Muon orthogonalized, and what a Watch saw of it.
        shared: ranks saw different blocks; all of them call this.
    """
    nothing = torch.full((len(parameters),), torch.nan, dtype=torch.float64, device=parameters[0].device)
    related = [
        torch.stack([_cosine_or_nan(update, before) for update, before in zip(updates, previous, strict=True)]),
        torch.stack([_agreement_or_nan(update, p.grad) for update, p in zip(updates, parameters, strict=True)]),
        nothing + alpha,
    ]
    observed = _by_parameter(parameters, blocks, rows, shared) if rows is not None else [nothing] * len(OBSERVED)
    names = ("cos_previous_update", "gradient_agreement", "alpha", *OBSERVED)
    return dict(zip(names, torch.stack([*related, *observed]).tolist(), strict=True))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between matrices `(..., rows, cols)`: float64 `(...)`, 0 where one is zero."""
    return (a.double() * b.double()).sum((-2, -1)) / _nonzero(_norm(a) * _norm(b))


def agreement(update: Tensor, gradient: Tensor) -> Tensor:
    """<U, g> / ||g||_* for the update's descent direction U, scaled to a root mean square singular value of 1.

    1 for the steepest descent in the spectral norm (the polar factor of g), 0 for an unrelated direction; 0 where one
    of them is zero.
    """
    unit = _norm(update) / math.sqrt(min(update.shape))
    nuclear = singular_values(gradient).sum(-1)
    return -(update.double() * gradient.double()).sum((-2, -1)) / _nonzero(unit * nuclear)


FROZEN_COSINE, FROZEN_AGREEMENT = 0.99, 0.1


@dataclass(slots=True)
class Verdict:
    """Whether a run's momentum froze or ran away, from its `health` rows in order."""

    names: Sequence[str]
    """Of the matrices."""
    flag: str | None = None
    """The first thing that was wrong, in words; None while nothing is."""
    _frozen: set[int] = field(default_factory=set)

    def see(self, step: int, columns: Columns) -> None:
        """Take in one event.

        Frozen: half the matrices or more repeat their update though the gradient points elsewhere, at two events in a
        row. Runaway: singular values above sqrt 5 before as_seed's cubic steps, or a momentum that is not finite.
        """
        self.flag = self.flag or self._runaway(step, columns) or self._freezing(step, columns)

    def _runaway(self, step: int, columns: Columns) -> str | None:
        for index, name in enumerate(self.names):
            if columns["num_nonfinite"][index] > 0:
                return f"runaway momentum: {name} is not finite at step {step}"
            if columns["num_divergent"][index] > 0:
                sigma = columns["sigma_max"][index]
                return f"runaway momentum: sigma_max {sigma:.3g} of {name} is above sqrt(5) at step {step}"
        return None

    def _freezing(self, step: int, columns: Columns) -> str | None:
        pairs = zip(columns["cos_previous_update"], columns["gradient_agreement"], strict=True)
        now = {index for index, (c, a) in enumerate(pairs) if c > FROZEN_COSINE and a < FROZEN_AGREEMENT}
        still, self._frozen = now & self._frozen, now
        if 2 * len(still) < len(self.names):
            return None
        return (
            f"frozen momentum: {len(still)} of {len(self.names)} matrices repeat their update "
            f"(cosine above {FROZEN_COSINE}, gradient agreement below {FROZEN_AGREEMENT}) at step {step}"
        )


def _by_parameter(
    parameters: Sequence[nn.Parameter], blocks: Sequence[Block], rows: Mapping[str, Tensor], shared: bool
) -> list[Tensor]:
    missing = torch.full((len(OBSERVED),), 0.0 if shared else torch.nan, dtype=torch.float64)
    missing = missing.to(parameters[0].device)
    table = torch.stack([rows.get(block.name, missing) for block in blocks])
    if shared:
        distributed.sum_over_ranks(table)
    indices = [
        [index for index, block in enumerate(blocks) if any(piece.parameter is p for piece in block.pieces)]
        for p in parameters
    ]
    return [
        torch.stack([summary(table[of_one, column]) for of_one in indices])
        for column, summary in enumerate(OBSERVED.values())
    ]


def _cosine_or_nan(update: Tensor, before: Tensor | None) -> Tensor:
    return _nan_like(update) if before is None else cosine(update, before)


def _agreement_or_nan(update: Tensor, gradient: Tensor | None) -> Tensor:
    return _nan_like(update) if gradient is None else agreement(update, gradient)


def _nan_like(tensor: Tensor) -> Tensor:
    return torch.full((), torch.nan, dtype=torch.float64, device=tensor.device)


def _count(sigma: Tensor, bound: float) -> Tensor:
    return (sigma > bound).sum(-1).double().where(~sigma[:, 0].isnan(), torch.nan)


def _padded(matrix: Tensor, like: Tensor) -> Tensor:
    """`matrix` with zeros appended up to the shape of `like`."""
    return F.pad(matrix, (0, like.size(-1) - matrix.size(-1), 0, like.size(-2) - matrix.size(-2)))


def _norm(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(matrix.double())
    return norm


def _nonzero(x: Tensor) -> Tensor:
    return x.where(x != 0, 1)
