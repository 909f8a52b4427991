"""What an optimizer keeps beside the state of its parameters.

Some count steps or estimate a rate in a group, and some have a `state_dict` of their own that holds more than torch's.
Without it a resumed run would differ. What follows from config and step, such as the learning rate, is none of it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

OWN = "param_groups"
"""Its key in the saved state, whose other keys are names of parameters."""

_KEPT = (bool, int, float, str, Tensor, list, tuple)  # such as a checkpoint can hold


class OwnState:
    """That of one optimizer, which is new: what changes from here on is saved.

    Args:
        leave_out: values of groups that are set from outside.
    """

    def __init__(self, optimizer: Optimizer, leave_out: Collection[str]) -> None:
        self._optimizer = optimizer
        self._leave_out = {"params", "param_names", *leave_out}
        self._begin = [copy.deepcopy(values) for values in self._values()]

    def save(self) -> dict[str, Any]:
        """What has changed in its groups, and what its `state_dict` adds; empty for most optimizers."""
        changed = [
            {name: value for name, value in values.items() if name not in begin or not _equal(value, begin[name])}
            for values, begin in zip(self._values(), self._begin, strict=True)
        ]
        more = {name: value for name, value in self._dict().items() if name not in ("state", "param_groups")}
        return ({"groups": changed} if any(changed) else {}) | ({"more": more} if more else {})

    def load(self, saved: dict[str, Any]) -> None:
        """Continue from what `save` returned; to be called before the state of the parameters is put back."""
        if more := saved.get("more"):
            self._optimizer.load_state_dict(self._dict() | more)
        for group, values in zip(self._optimizer.param_groups, saved.get("groups", ()), strict=False):
            device = group["params"][0].device
            group |= {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}

    def _values(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in group.items() if name not in self._leave_out and isinstance(value, _KEPT)}
            for group in self._optimizer.param_groups
        ]

    def _dict(self) -> dict[str, Any]:
        """The optimizer's own `state_dict`, where it is not torch's."""
        return {} if type(self._optimizer).state_dict is Optimizer.state_dict else self._optimizer.state_dict()


def _equal(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)
