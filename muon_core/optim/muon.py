"""Muon: momentum whose matrices are orthogonalized before they are applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from muon_core.optim.blocks import MatrixBlock, Partition, whole
from muon_core.optim.momentum import EMA, Momentum
from muon_core.optim.muon_checks import check_gradients, check_matrix, check_options, named, with_names
from muon_core.optim.muon_state import readable, saved_state
from muon_core.optim.newton_schulz import QUINTIC, newton_schulz
from muon_core.optim.perturb import Perturb, unperturbed
from muon_core.optim.second_moment import Adapt, as_orthogonalized
from muon_core.optim.sharding import Distribute, Distribution, check_same_blocks, replicated

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


_FUNCTIONS = ("rule", "partition", "perturb", "orthogonalize", "repair", "adapt", "scale", "scale_on", "distribute")
ADJUSTED = {original: "original", match_rms_adamw: "match_rms_adamw"}
"""Scales that torch.optim.Muon has, by its names."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices, as in `torch.optim.Muon` unless other functions are handed in (docs/python.md compares them).

    Args:
        params: matrices, with or without names, or groups of them with options of their own, as everywhere in
            torch.optim; names key the noise, and are `param0`, `param1`, ... where none are given.
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
        counted here from 0, and settable like `group["lr"]`. `watch` may be set to look at a step's stacks. Copies and
        pickles as far as its functions do; those are no part of `state_dict`.
    Raises: ValueError for a parameter that is no matrix, empty or complex; for lr or weight_decay that are negative or
        not finite, and a momentum outside [0, 1).
    """

    needs_names = True  # for who builds a class that derives from it

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
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
        self.rule, self.partition, self.perturb, self.orthogonalize = rule, partition, perturb, orthogonalize
        self.repair, self.adapt, self.scale, self.scale_on = repair, adapt, scale, scale_on
        self.distribute, self.store_perturbed = distribute, store_perturbed
        self.watch: Watch | None = None
        self.distribution = Distribution("replicated")
        self._blocks: list[list[MatrixBlock]] = []
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "step": 0}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take up further matrices, with what options they have of their own.

        Raises: as the class does, and TypeError for what is no parameter; nothing is taken up then.
        """
        matrices = with_names(param_group, start=sum(len(group["params"]) for group in self.param_groups))
        for name, param in matrices:
            check_matrix(name, param)
        check_options(self.defaults | param_group)
        blocks = self.partition(matrices)
        super().add_param_group(param_group | {"params": matrices, "param_names": [name for name, _ in matrices]})
        self._blocks.append(blocks)

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
        for group in self.param_groups:
            check_gradients(named(group))
        with_gradient = [
            [part for block in blocks if (part := block.with_gradient()).pieces] for blocks in self._blocks
        ]
        if self.distribute is not replicated:
            device = next(param.device for group in self.param_groups for param in group["params"])
            check_same_blocks([block for blocks in with_gradient for block in blocks], device)
        for group, blocks in zip(self.param_groups, with_gradient, strict=True):
            waiting = {param for param in group["params"] if param.grad is not None}
            for stack, updates in self.distribute(blocks, partial(self._updates, group=group, waiting=waiting)):
                self._take_up_gradients(stack, group, waiting)  # if another rank has computed these
                adapted = self.adapt(stack, updates, self.state)
                self._apply(stack, adapted, float(group["lr"]), float(group["weight_decay"]))
            group["step"] += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's; of a Muon with torch's functions, `torch.optim.Muon` can load it, too."""
        state: dict[str, Any] = super().state_dict()
        for group in state["param_groups"]:
            group.update(self._torch_settings())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of this class or of `torch.optim.Muon`; buffers are copied, and fp32.

        Raises: ValueError, in one line and before anything changes, for a state that is of another optimizer or model.
        """
        adapts = self.adapt is not as_orthogonalized
        known = readable(state_dict, self.param_groups, self._torch_settings(), adapts=adapts)
        for group in known["param_groups"]:
            check_options(group)
        super().load_state_dict(known)
        for param, state in saved_state(known, self.param_groups).items():  # torch casts it as its parameter
            self.state[param] = state

    def _torch_settings(self) -> dict[str, Any]:
        """What groups of a torch.optim.Muon that steps as this one hold beside ours; empty if there is none."""
        own = (self.rule, self.partition, self.perturb, self.orthogonalize, self.repair, self.adapt, self.scale_on)
        torchs = (EMA, whole, unperturbed, newton_schulz, keep, as_orthogonalized, scale_lr)
        if own != torchs or self.scale not in ADJUSTED:
            return {}
        return {
            "ns_coefficients": QUINTIC[0], "eps": 1e-7, "ns_steps": len(QUINTIC), "adjust_lr_fn": ADJUSTED[self.scale]
        }  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        kept = (*_FUNCTIONS, "store_perturbed", "distribution")
        return super().__getstate__() | {name: getattr(self, name) for name in kept} | {"watch": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._blocks = [self.partition(named(group)) for group in self.param_groups]

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
