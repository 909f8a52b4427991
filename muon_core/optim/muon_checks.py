"""What Muon can step: the names, shapes, types and options of parameters, and their gradients. One line each if not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Named = list[tuple[str, nn.Parameter]]


def named(group: dict[str, Any]) -> Named:
    """Parameters of a group that an optimizer has, with their names."""
    return list(zip(group["param_names"], group["params"], strict=True))


def with_names(group: dict[str, Any], start: int) -> Named:
    """The same of one that it is to get; parameters without names are counted from `start` on.

    Raises: TypeError for a set, ValueError where only some have names.
    """
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("Muon got a set of parameters, whose order changes between processes; pass a list")
    listed: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    if "param_names" in group:
        return list(zip(group["param_names"], listed, strict=True))
    without = sum(not isinstance(param, tuple) for param in listed)
    if 0 < without < len(listed):
        raise ValueError(f"{without} of {len(listed)} parameters have no name; pass (name, parameter) for all or none")
    return [(f"param{start + index}", param) for index, param in enumerate(listed)] if without else listed


def check_options(group: dict[str, Any]) -> None:
    """Raises ValueError for rates that are no number from 0 on, and a momentum that would not fade."""
    for name in ("lr", "weight_decay"):
        value = group[name]
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name} is a tensor of {value.numel()} numbers; give one number")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} {float(value)} is negative or not finite; give a number from 0 on")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum {group['momentum']} is outside [0, 1); 0 keeps none, 0.95 is usual")


def check_matrix(name: str, param: Any) -> None:
    """Raises TypeError for what is no tensor, ValueError for one that is no real, non-empty matrix."""
    if not isinstance(param, Tensor):
        raise TypeError(f"Muon steps parameters, but {name} is of type {type(param).__name__}")
    if not param.is_floating_point():
        raise ValueError(f"Muon orthogonalizes real matrices, but {name} is {param.dtype}; give it to AdamW")
    if param.ndim != 2 or param.numel() == 0:
        raise ValueError(
            f"Muon orthogonalizes non-empty matrices, but {name} has shape {tuple(param.shape)}; "
            "reshape it to two dimensions or give it to AdamW"
        )


def check_gradients(matrices: Iterable[tuple[str, Tensor]]) -> None:
    """Raises ValueError for a sparse gradient."""
    for name, param in matrices:
        gradient = param.grad  # each look at it costs
        if gradient is not None and gradient.layout is not torch.strided:
            raise ValueError(
                f"{name} has a sparse gradient, and Muon orthogonalizes dense ones; make its layer's dense "
                "(sparse=False), or give it to an optimizer for sparse ones"
            )
