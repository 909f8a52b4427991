"""All optimizers of a model, as the training loop holds them: stepped, watched, scheduled and saved as one."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from muon_core.optim.adamw import AdamW
from muon_core.optim.clipping import clipped
from muon_core.optim.health import Look, Watch, look_at
from muon_core.optim.muon import Muon
from muon_core.optim.own_state import OWN, OwnState
from muon_core.optim.sharding import Distribution
from muon_core.stopwatch import Stopwatch

PREVIOUS = "previous_update"
"""Key in the saved state of a matrix's change in the last step, where the next step is to be compared with it."""


MOMENTUM_KEYS = ("momentum_buffer", "exp_avg")
"""What torch's optimizers call their average of the gradient in a parameter's state."""


class Optimizers:
    """The optimizer of the hidden matrices and AdamW for the rest, stepped, scheduled and saved as one.

    Args:
        vectors: None if `hidden` steps all there is.
        matrices: names of the hidden matrices; by default all that `hidden` steps.
        decoupled: whether `hidden` shrinks weights by `lr * weight_decay` apart from its update.
        shared: ranks hold different parameters, whose gradients are clipped together.
    """

    def __init__(
        self,
        hidden: Optimizer,
        vectors: Optimizer | None,
        *,
        matrices: Collection[str] | None = None,
        decoupled: bool = True,
        clipping: str = "none",
        max_grad_norm: float = 1.0,
        shared: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.hidden, self.vectors = hidden, vectors
        self._matrices = matrices
        self._decoupled = decoupled
        self._muon = hidden if isinstance(hidden, Muon) else None  # what orthogonalizes has more to show
        self._look: Look | None = None
        self._stopwatch = stopwatch or Stopwatch()
        self._clipping, self._max_grad_norm, self._shared = clipping, max_grad_norm, shared
        self._previous: dict[str, Tensor] = {}
        self._initial_lr = [group.get("lr") for group in self._groups]
        self._own = OwnState(hidden, leave_out=("lr", "step") if self._muon else ("lr",))

    @property
    def hidden_lr(self) -> float | None:
        """Current learning rate of the hidden matrices; None for an optimizer that has none."""
        lr = self.hidden.param_groups[0].get("lr")
        return None if lr is None else float(lr)

    def set_lr_multiplier(self, multiplier: float) -> None:
        """Set every learning rate to `multiplier` times its configured value."""
        for group, initial in zip(self._groups, self._initial_lr, strict=True):
            if initial is not None:
                group["lr"] = initial * multiplier

    def step(self, step: int, *, keep_updates: bool = False, next_keeps: bool = False) -> dict[str, Tensor]:
        """Apply optimizer step `step`, counted from 0; noise is drawn for this number.

        Args:
            keep_updates: return what changed, and have a `look`; all ranks do so at the same steps.
            next_keeps: the next step will; so that it can compare its updates with these, they are kept until then.
        Returns: with `keep_updates` the change of each hidden matrix by name, weight decay taken out; else nothing. It
            is the difference of the weights around the step: what was applied, rounding included, in every arm alike.
            It costs a copy of the matrices.
        """
        keeping = keep_updates or next_keeps
        with self._stopwatch.timed("tracking"):
            before = [param.detach().clone() for _, param, _ in self._hidden_matrices()] if keeping else []
            watch = self._watch() if keep_updates else None
        for group in self._muon.param_groups if self._muon else ():
            group["step"] = step
        with self._clipped():
            for optimizer in self._all:
                optimizer.step()
        with self._stopwatch.timed("tracking"):
            updates = {
                name: param.detach() - old * kept
                for (name, param, kept), old in zip(self._hidden_matrices() if keeping else (), before, strict=True)
            }
            if keep_updates:
                self._look = self._look_at(step, updates, watch)
        self._previous = updates if next_keeps else {}
        return updates if keep_updates else {}

    def look(self) -> Look | None:
        """What the last step with `keep_updates` left to be measured for the `health` table, once."""
        look, self._look = self._look, None
        return look

    def momenta(self) -> dict[str, Tensor] | None:
        """What the optimizer averages of each hidden matrix's gradient, by name; None if it keeps nothing of the kind.

        The class of an optimizer may name it by the attribute `momentum_key`; else it is what has one of torch's names.
        Zeros for a matrix that had no gradient yet. The optimizer's own tensors: not to be changed.
        """
        params = {name: param for name, param, _ in self._hidden_matrices()}
        states = {name: self.hidden.state[param] for name, param in params.items() if self.hidden.state.get(param)}
        for key in (getattr(self.hidden, "momentum_key", None), *MOMENTUM_KEYS):
            if all(_is_like(state.get(key), params[name]) for name, state in states.items()):
                return {
                    name: states[name][key] if name in states else torch.zeros_like(param)
                    for name, param in params.items()
                }
        return None

    @property
    def distribution(self) -> Distribution | None:
        """How Muon's updates are shared out over ranks; None for other optimizers."""
        return self._muon.distribution if self._muon else None

    def _clipped(self) -> AbstractContextManager[None]:
        if self._clipping == "none":
            return nullcontext()
        optimizers = [one for one in reversed(self._all) if self._clipping == "all" or isinstance(one, AdamW)]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        params = [param for group in groups for param in group["params"]]
        return clipped(params, self._max_grad_norm, shared=self._shared)

    def _watch(self) -> Watch | None:
        if self._muon is None:
            return None
        seen = getattr(self._muon.perturb, "seen", {})
        self._muon.watch = watch = Watch(self._muon.orthogonalize, seen, self._stopwatch)
        return watch

    def _look_at(self, step: int, updates: dict[str, Tensor], watch: Watch | None) -> Look:
        parameters = {name: param for name, param, _ in self._hidden_matrices()}
        if watch is None or self._muon is None:
            return look_at(parameters, updates, self._previous)
        self._muon.watch = None
        gate = getattr(self._muon.perturb, "gate", None)
        return look_at(
            parameters,
            updates,
            self._previous,
            self._muon.all_blocks,
            watch,
            alpha=gate.share(step) if gate else math.nan,
            together=self._muon.distribution.mode == "owner",
        )

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self._groups:
            for param in group["params"]:
                param.grad = None  # first: a class that writes zeros would change what a look has kept
        for optimizer in self._all:
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State of every parameter by its name, empty before its first step: tensors and numbers, no copies.

        Learning rates and noise are functions of config and step: there is nothing of them to save.
        """
        state = {name: dict(optimizer.state.get(param, {})) for name, param, optimizer in self._named()}
        for name, update in self._previous.items():
            state[name][PREVIOUS] = update
        return state | ({OWN: own} if (own := self._own.save()) else {})

    def kept(self) -> dict[str, list[str]]:
        """The parts of every parameter's state, by its name: what a saved state is whole with."""
        return {name: sorted(values) for name, values in self.state_dict().items()}

    def load_state_dict(
        self, state: dict[str, dict[str, Any]], kept: Mapping[str, Collection[str]] | None = None
    ) -> None:
        """Continue from `state`, which is copied to the parameters' devices.

        Args:
            kept: what `kept` said when it was saved; None where nobody knows.
        Raises: ValueError if names, parts or shapes are not those of the model; nothing is changed then.
        """
        names = {name for name, _, _ in self._named()}
        if differing := sorted(names ^ (state.keys() - {OWN})):
            side = "lacks" if differing[0] in names else "has unknown"
            raise ValueError(f"optimizer state {side} parameter {differing[0]}; load it into the model it comes from")
        for name, param, optimizer in self._named():
            _check_parts(name, state[name], (kept or {}).get(name, ()))
            for key, value in state[name].items() if isinstance(optimizer, Muon | AdamW) else ():
                _check_shape(f"{name}/{key}", value, param)
        self._previous = {}
        self._own.load(state.get(OWN, {}))
        for name, param, optimizer in self._named():
            counts = param.device if optimizer.defaults.get("fused") else None
            values = {key: _placed(key, value, param.device, counts) for key, value in state[name].items()}
            if PREVIOUS in values:
                self._previous[name] = values.pop(PREVIOUS)
            optimizer.state[param] = values

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._all for group in optimizer.param_groups]

    @property
    def _all(self) -> tuple[Optimizer, ...]:
        return (self.hidden, self.vectors) if self.vectors else (self.hidden,)

    def _named(self) -> Iterable[tuple[str, nn.Parameter, Optimizer]]:
        for optimizer in self._all:
            for group in optimizer.param_groups:
                for name, param in zip(group["param_names"], group["params"], strict=True):
                    yield name, param, optimizer

    def _hidden_matrices(self) -> Iterable[tuple[str, nn.Parameter, float]]:
        """Name, parameter, and the factor by which this step's weight decay shrinks it (1 without a gradient)."""
        for group in self.hidden.param_groups:
            kept = 1 - group["lr"] * group["weight_decay"] if self._decoupled else 1.0
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if self._matrices is None or name in self._matrices:
                    yield name, param, 1.0 if param.grad is None else kept


def _is_like(value: Any, param: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == param.shape and value.is_floating_point()


def _check_parts(name: str, values: dict[str, Any], parts: Collection[str]) -> None:
    """A state is whole: a part that is lost would begin at zero again."""
    if lost := sorted(set(parts) - values.keys()):
        raise ValueError(f"optimizer state of {name} lacks {lost[0]}; load it into the model it was saved from")


def _check_shape(name: str, value: Any, param: Tensor) -> None:
    """A state tensor is a counter, as large as its parameter, or a number for each of its rows."""
    if isinstance(value, Tensor) and value.ndim and value.shape not in (param.shape, (len(param), 1)):
        raise ValueError(
            f"optimizer state {name} has shape {tuple(value.shape)}, its parameter {tuple(param.shape)}; "
            "load it into the model it was saved from"
        )


def _placed(key: str, value: Any, device: torch.device, counts: torch.device | None) -> Any:
    """A copy of a state value for a parameter on `device`; step counts go to `counts`, or stay where they are.

    The one is what fused kernels of AdamW want, and the other what the rest does.
    """
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    is_count = key == "step" and not value.ndim
    return value.to((counts or value.device) if is_count else device, copy=True)
