"""torch.optim.AdamW, and how an optimizer is made and stepped without the import of torch's compiler.

That import takes as long as torch's own, and a process that compiles nothing has no use for it. Torch asks for it at
the first call of a method that must not be compiled, for a twin of it that the compiler passes by, which the method
then keeps; and at each step of AdamW, for a break of the graph. So the methods are given themselves for a twin, and the
step is the function inside. The numbers are torch's; where its names change, so does only the time of a start.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

from muon_core.optim.param_groups import NamedParameters

_TWIN = "__dynamo_disable"  # torch/_compile.py of PyTorch 2.13

for _, _method in inspect.getmembers(Optimizer, inspect.isfunction):
    _inner = getattr(_method, "__wrapped__", None)
    if _inner is not None and not hasattr(_inner, _TWIN):
        setattr(_inner, _TWIN, _inner)


class AdamW(torch.optim.AdamW):
    """As torch's, bit for bit; a compiler that met its step would find no break there."""

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def fused(params: NamedParameters) -> bool | None:
    """Whether AdamW takes torch's fused kernel: on GPUs, one pass over weights and state that counts its steps there.

    None leaves it to torch, which takes a loop on CPUs, whose bits differ from the fused ones in the last digit.
    """
    return all(param.is_cuda for _, param in params) or None
