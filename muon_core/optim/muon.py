"""Muon: momentum whose matrices are orthogonalized before they are applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from muon_core.optim.blocks import MatrixBlock, Partition, whole
from muon_core.optim.momentum import EMA, Momentum
from muon_core.optim.newton_schulz import newton_schulz
from muon_core.optim.perturb import Perturb, unperturbed
from muon_core.optim.second_moment import Adapt, as_orthogonalized
from muon_core.optim.sharding import Distribute, Distribution, replicated

Watch = Callable[[Sequence[MatrixBlock], Tensor, Tensor, Tensor], None]
"""(blocks, momentum, perturbed momentum, updates) of one stack; must modify none of them."""


def original(rows: int, cols: int) -> float:
    """Scale of an update: sqrt(max(1, rows/cols)). Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/"""
    return math.sqrt(max(1.0, rows / cols))


def match_rms_adamw(rows: int, cols: int) -> float:
    """Scale of an update: 0.2 sqrt(max(rows, cols)), about AdamW's step size. Source: https://arxiv.org/abs/2502.16982"""
    return 0.2 * math.sqrt(max(rows, cols))


def unscaled(rows: int, cols: int) -> float:
    """No scale."""
    return 1.0


def scale_lr(updates: Tensor, scale: float) -> tuple[Tensor, float]:
    """(updates, factor on their rate): the scale on the rate, as torch.optim.Muon rounds it."""
    return updates, scale


def scale_update(updates: Tensor, scale: float) -> tuple[Tensor, float]:
    """(updates, factor on their rate): the scale on the update, in its dtype, as github.com/KellerJordan/Muon does."""
    return updates * scale, 1.0


def keep(updates: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The updates as they are."""
    return updates


class Muon(torch.optim.Optimizer):
    """Muon for matrices, as in `torch.optim.Muon` unless other functions are handed in.

    Args:
        params: named matrices, `(name, parameter)`; the names key the noise.
        weight_decay: decoupled; weights shrink by `lr * weight_decay` a step.
        rule: of the momentum.
        partition: what is orthogonalized as one matrix.
        perturb: what the orthogonalizer sees in place of the momentum.
        orthogonalize: `(k, rows, cols)` fp32 to the update's directions, in any float dtype.
        repair: the last word on the updates, given the gradients.
        adapt: what is applied of updates, on every rank; may keep state of its own.
        scale: factor on the update by `(rows, cols)` of its block; `scale_on` says where it is multiplied in.
        distribute: which rank computes which update.
        store_perturbed: let the perturbed momentum replace the stored one, on every rank; only with `replicated`.
    State: `momentum_buffer`, always fp32 and the same on every rank. The step that `perturb` sees is `group["step"]`:
        counted here from 0, and settable like `group["lr"]`. `watch` may be set to look at a step's stacks.
    Raises: ValueError for a parameter that is no matrix, is empty, or has no name; for a momentum outside [0, 1).
    """

    needs_names = True  # for who builds a class that derives from it

    def __init__(
        self,
        params: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        rule: Momentum = EMA,
        partition: Partition = whole,
        perturb: Perturb = unperturbed,
        orthogonalize: Callable[[Tensor], Tensor] = newton_schulz,
        repair: Callable[[Tensor, Sequence[Tensor]], Tensor] = keep,
        adapt: Adapt = as_orthogonalized,
        scale: Callable[[int, int], float] = original,
        scale_on: Callable[[Tensor, float], tuple[Tensor, float]] = scale_lr,
        distribute: Distribute = replicated,
        store_perturbed: bool = False,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum} is outside [0, 1); 0 keeps none, 0.95 is usual")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "step": 0}
        super().__init__(params, defaults)
        self.rule, self.perturb, self.orthogonalize = rule, perturb, orthogonalize
        self.repair, self.adapt = repair, adapt
        self.scale, self.scale_on, self.distribute, self.store_perturbed = scale, scale_on, distribute, store_perturbed
        self.watch: Watch | None = None
        self.distribution = Distribution("replicated")
        self._blocks: list[list[MatrixBlock]] = []
        for group in self.param_groups:
            if "param_names" not in group:
                raise ValueError("Muon got parameters without names; pass (name, parameter) pairs")
            named = list(zip(group["param_names"], group["params"], strict=True))
            for name, param in named:
                _check_matrix(name, param)
            self._blocks.append(partition(named))

    @property
    def all_blocks(self) -> list[MatrixBlock]:
        """What is orthogonalized as one matrix, over all groups."""
        return [block for blocks in self._blocks for block in blocks]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient; gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, all_blocks in zip(self.param_groups, self._blocks, strict=True):
            blocks = [part for block in all_blocks if (part := block.with_gradient()).pieces]
            waiting = {param for param in group["params"] if param.grad is not None}
            for stack, updates in self.distribute(blocks, partial(self._updates, group=group, waiting=waiting)):
                self._take_up_gradients(stack, group, waiting)  # if another rank has computed these
                adapted = self.adapt(stack, updates, self.state)
                self._apply(stack, adapted, group["lr"], group["weight_decay"])
            group["step"] += 1
        return loss

    def _take_up_gradients(
        self, blocks: Sequence[MatrixBlock], group: dict[str, Any], waiting: set[nn.Parameter]
    ) -> None:
        """Bring the momenta of blocks up to date, right before they are read again; `waiting` is whose are not yet."""
        params = [param for param in _parameters(blocks) if param in waiting]
        gradients = [_gradient(param).float() for param in params]
        for param, gradient in zip(params, gradients, strict=True):
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(gradient)
        if params:
            self.rule.accumulate(self._buffers(params), gradients, group["momentum"])
            waiting.difference_update(params)

    def _updates(self, blocks: Sequence[MatrixBlock], group: dict[str, Any], waiting: set[nn.Parameter]) -> Tensor:
        """Directions `(len(blocks), rows, cols)` for blocks of one shape."""
        self._take_up_gradients(blocks, group, waiting)
        gradients = [block.read(_gradient) for block in blocks]
        momentum = self._momentum(blocks, group)
        perturbed, updates = self.direct(momentum, [block.name for block in blocks], group["step"], gradients)
        if self.store_perturbed:
            for block, matrix in zip(blocks, perturbed, strict=True):
                for piece, part in block.split(matrix):
                    piece.of(self.state[piece.parameter]["momentum_buffer"]).copy_(part)
        if self.watch is not None:
            self.watch(blocks, momentum, perturbed, updates)
        return updates

    def direct(
        self, momentum: Tensor, names: Sequence[str], step: int, gradients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What is orthogonalized of momenta `(k, rows, cols)`, and their update directions; changes no state."""
        perturbed = self.perturb(momentum, names, step, gradients)
        return perturbed, self.repair(self.orthogonalize(perturbed), gradients)

    def _momentum(self, blocks: Sequence[MatrixBlock], group: dict[str, Any]) -> Tensor:
        """What is orthogonalized of blocks of one shape: buffers, or under Nesterov buffers one step ahead; a copy."""
        params = _parameters(blocks)
        buffers = self._buffers(params)
        momenta: Sequence[Tensor] = buffers
        if group["nesterov"]:
            gradients = [_gradient(param).float() for param in params]
            momenta = self.rule.look_ahead(buffers, gradients, group["momentum"])
        by_parameter = dict(zip(params, momenta, strict=True))
        matrices = [block.read(by_parameter.__getitem__) for block in blocks]
        if len(matrices) == 1 and group["nesterov"]:  # a copy already
            return matrices[0].contiguous().unsqueeze(0)
        return torch.stack(matrices)

    def _apply(self, blocks: Sequence[MatrixBlock], updates: Tensor, lr: float, weight_decay: float) -> None:
        """Shrink the weights of blocks of one shape, and subtract their scaled updates."""
        updates, factor = self.scale_on(updates, self.scale(*blocks[0].shape))
        on_cpu = updates.device.type == "cpu"
        if not on_cpu:  # of one dtype with the parameters, CUDA adds them all in one kernel
            updates = updates.to(torch.promote_types(updates.dtype, blocks[0].pieces[0].parameter.dtype))
        shares = [share for block, update in zip(blocks, updates, strict=True) for share in block.split(update)]
        weights = [piece.of(piece.parameter) for piece, _ in shares]
        # the update of a tall matrix is a transposed view, and to add it a CPU would walk down the columns
        parts = [part.contiguous() if on_cpu else part for _, part in shares]
        if weight_decay:
            torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, parts, alpha=-lr * factor)

    def _buffers(self, params: Sequence[nn.Parameter]) -> list[Tensor]:
        return [self.state[param]["momentum_buffer"] for param in params]


def _parameters(blocks: Sequence[MatrixBlock]) -> list[nn.Parameter]:
    """Whose pieces the blocks are made of, each once."""
    return list(dict.fromkeys(piece.parameter for block in blocks for piece in block.pieces))


def _gradient(param: nn.Parameter) -> Tensor:
    assert param.grad is not None
    return param.grad


def _check_matrix(name: str, param: Tensor) -> None:
    if param.ndim != 2 or param.numel() == 0:
        raise ValueError(
            f"Muon orthogonalizes non-empty matrices, but {name} has shape {tuple(param.shape)}; "
            "reshape it to two dimensions or give it to AdamW"
        )
