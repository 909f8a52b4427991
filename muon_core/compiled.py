"""What `compile: true` passes through torch.compile, so that no part of it is left out in silence.

Torch makes a graph of a function for every new shape, counts those of all runs in a process, and after eight it goes on
without compiling, with no more than a warning. So each run begins with none and may make more, and who would need too
many raises, but for a Hugging Face model, which may be several graphs. Shapes are constants of a graph: which ones came
first, and a run that is taken up again meets others first, changes nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BACKEND = "inductor"
MOST_GRAPHS = 128
"""Of one function in one run: two for each shape of a matrix."""
PAYS = {"cuda"}
"""Device types where Newton-Schulz is compiled. On CPUs its time is that of its products, the same calls either way
(docs/benchmarks.md, `optimizer_step.py --compiled`), and what is not compiled has the bits of torch.optim.Muon."""


def pays(params: Iterable[tuple[str, Tensor]]) -> bool:
    """Whether to compile what steps these, by name."""
    return all(param.device.type in PAYS for _, param in params)


def check_compiler(device: torch.device) -> None:
    """Raises ValueError, in one line, if code for `device` cannot be compiled here."""
    from torch._inductor.config import cpp

    if device.type == "cuda":  # Triton's own search, for what starts its kernels
        kind, variable, package, names = "C", "CC", "gcc", (os.environ.get("CC"), "gcc", "clang")
    else:
        kind, variable, package, names = "C++", "CXX", "g++", cpp.cxx
    if not any(shutil.which(name) for name in names if name):
        raise ValueError(
            f"compile: true needs a {kind} compiler, and none is found here; install one (apt-get install {package}), "
            f"name it in the environment variable {variable}, or set compile: false"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform == "linux" and not header.is_file():  # elsewhere there are more places for it
        raise ValueError(
            f"compile: true needs Python's headers, and {header} is not there; install them (apt-get install "
            "python3-dev), or set compile: false"
        )


def compile_model(parts: Iterable[nn.Module], device: torch.device, *, whole: bool) -> None:
    """Compile what a run's model is computed by, in place: parameters keep their names. What earlier runs compiled is
    dropped.

    Args:
        parts: the model, or those of it between which something else has to be done, by their hooks.
        whole: each is one graph for each shape, in training and in evaluation; what breaks it raises.
    Raises: ValueError without a compiler.
    """
    check_compiler(device)
    torch._dynamo.reset()
    for part in parts:
        part.forward = torch.compile(  # type: ignore[call-overload]  # its overloads forget the limit
            part.forward, backend=BACKEND, dynamic=False, fullgraph=whole, recompile_limit=MOST_GRAPHS
        )


class Compiled:
    """`function` of stacks `(k, rows, cols)`, or of single matrices, compiled: for each shape of a matrix one graph for
    stacks of any size, and one for a single one.

    How many matrices a stack has differs between ranks, with the gate of a noise and with which of them have gradients.
    A graph is made with two: so its roundings do not depend on how many came first. Without gradients. It is copied and
    pickled as what it compiles.

    Raises: torch's FailOnRecompileLimitHit, where it would go on without compiling.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._compiled: Callable[..., Tensor] | None = None
        self._known: set[tuple[Any, ...]] = set()

    @torch.no_grad()
    def __call__(self, stack: Tensor, **options: Any) -> Tensor:
        """`function(stack, **options)`; the options are constants of the graph."""
        if self._compiled is None:
            self._compiled = torch.compile(  # type: ignore[call-overload]  # its overloads forget the limit
                self.function, backend=BACKEND, dynamic=False, fullgraph=True, recompile_limit=MOST_GRAPHS
            )
        if not (stack.is_contiguous() or stack.mT.is_contiguous()):
            stack = stack.contiguous()  # a part of wider ones; other strides are other graphs
        if stack.ndim == 3 and len(stack) > 1:
            kind = (stack.shape[1:], stack.is_contiguous(), stack.dtype, stack.device)
            if kind not in self._known:
                self._known.add(kind)
                self._compiled(_of_any_size(stack[:2]), **options)
            stack = _of_any_size(stack)
        return self._compiled(stack, **options)

    def __reduce__(self) -> tuple[type[Compiled], tuple[Callable[..., Tensor]]]:
        return Compiled, (self.function,)


def _of_any_size(stack: Tensor) -> Tensor:
    """The stack, marked as one whose size is no constant of the graph, unless a kernel needs it to be."""
    torch._dynamo.maybe_mark_dynamic(stack, 0)
    return stack
