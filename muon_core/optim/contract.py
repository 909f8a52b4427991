"""What is asked of every optimizer that a run may have, built in or not, as functions that say what is wrong with one.

Each drives parameters to fixed targets with optimizers that it builds anew, and returns None or what it saw instead of
what was promised. A broken promise stops nobody from training; `PROMISES` tells what it costs.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from muon_core.optim.optimizers import Optimizers
from muon_core.optim.param_groups import NamedParameters

Build = Callable[[NamedParameters], Optimizers]

SHAPES = {
    "embedding.weight": (7, 4),
    "norm.weight": (4,),
    "blocks.0.square.weight": (16, 16),
    "blocks.1.square.weight": (16, 16),
    "blocks.2.square.weight": (16, 16),
    "blocks.0.tall.weight": (12, 4),
    "blocks.0.wide.weight": (4, 12),
    "blocks.0.row.weight": (1, 5),
    "blocks.0.attention.q.weight": (4, 4),
    "blocks.0.attention.k.weight": (2, 4),
    "blocks.0.attention.v.weight": (2, 4),
    "blocks.0.attention.o.weight": (4, 4),
}
HEAD_SIZE = 2
ABSENT = ("blocks.1.square.weight", "norm.weight")
"""Parameters that have no gradient where that is tried."""
RATES = (1.0, 10.0, 0.1, 100.0, 0.01, 1000.0)
"""Multiples of the learning rate at which a loss may fall: a class need not know how large these problems are."""
FALLEN = 0.3


class Problem:
    """Parameters to be driven to fixed targets, with loss ||p - target||^2 / 2, and their optimizers."""

    def __init__(
        self,
        build: Build,
        dtype: torch.dtype = torch.float32,
        shapes: Mapping[str, tuple[int, ...]] = SHAPES,
        scale: float = 1.0,
    ) -> None:
        """`scale`: of the gradients."""
        self.scale = scale
        generator = torch.Generator().manual_seed(0)
        self.params = {key: nn.Parameter(_start(shape, generator).to(dtype)) for key, shape in shapes.items()}
        self.targets = {key: _start(shape, generator).to(dtype) for key, shape in shapes.items()}
        self.optimizers = build(list(self.params.items()))

    def losses(self) -> dict[str, float]:
        """By parameter."""
        return {
            key: float((p.detach() - self.targets[key]).float().square().sum()) / 2 for key, p in self.params.items()
        }

    def backward(self) -> None:
        """Gradients of every parameter."""
        for key, param in self.params.items():
            param.grad = (param.detach() - self.targets[key]) * self.scale

    def run(self, steps: Iterable[int]) -> dict[str, Tensor]:
        """Weights after the steps, with a learning rate that changes at each."""
        for step in steps:
            self.optimizers.set_lr_multiplier(1 / (1 + step % 3))
            self.backward()
            self.optimizers.step(step)
        return self.weights()

    def weights(self) -> dict[str, Tensor]:
        """A copy of every parameter."""
        return {key: param.detach().clone() for key, param in self.params.items()}

    def resume(self, weights: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from another's weights and state."""
        for key, param in self.params.items():
            param.data.copy_(weights[key])
        self.optimizers.load_state_dict(state)


New = Callable[[], Problem]
"""A problem at its start; the same each time."""


def _start(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian, with a largest singular value of about 3."""
    return torch.randn(shape, generator=generator) * 3 / (math.sqrt(shape[0]) + math.sqrt(shape[-1]))


def saved(optimizers: Optimizers) -> dict[str, Any]:
    """The state through a file, as a checkpoint takes it."""
    file = io.BytesIO()
    torch.save(optimizers.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def differing(one: Any, other: Any, where: str = "") -> str | None:
    """Where two nested values first differ in type, dtype or a bit; None if they do not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return f"{where or 'state'} has {sorted(map(str, one.keys() ^ other.keys()))[0]} on one side only"
        pairs = [(one[key], other[key], f"{where}/{key}".lstrip("/")) for key in one]
        return next(filter(None, (differing(*pair) for pair in pairs)), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = [(mine, its, f"{where}/{place}") for place, (mine, its) in enumerate(zip(one, other, strict=True))]
        return next(filter(None, (differing(*pair) for pair in pairs)), None)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return None if one.dtype == other.dtype and torch.equal(one, other) else f"{where} differs"
    return None if type(one) is type(other) and one == other else f"{where} differs"


def falls(new: New, rates: Iterable[float] = RATES) -> str | None:
    """At some rate, every parameter loses most of its loss within 150 steps."""
    left: dict[str, float] = {}
    for rate in rates:
        problem = new()
        before = problem.losses()
        for step in range(150):
            problem.optimizers.set_lr_multiplier(rate / (1 + step % 3))
            problem.backward()
            problem.optimizers.step(step)
        shares = {key: loss / before[key] for key, loss in problem.losses().items()}
        left = {key: min(share, left.get(key, share)) for key, share in shares.items() if share == share}
        if len(left) == len(before) and max(left.values()) < FALLEN:
            return None
    worst = max(left, key=lambda key: left[key], default="every parameter")
    return f"after 150 steps {worst} has {left.get(worst, 1):.0%} of its loss left"


def repeats(new: New) -> str | None:
    """Two runs end on the same bits."""
    return differing(new().run(range(6)), new().run(range(6)))


def keeps_state(new: New) -> str | None:
    """What is saved, and loaded into another, is the same when that one saves it."""
    first, second = new(), new()
    first.run(range(2))
    state = saved(first.optimizers)
    second.optimizers.load_state_dict(state)
    return differing(saved(first.optimizers), saved(second.optimizers))


def resumes(new: New) -> str | None:
    """A run that is interrupted ends on the bits of one that is not."""
    whole, first, resumed = new(), new(), new()
    weights = first.run(range(3))
    resumed.resume(weights, saved(first.optimizers))
    return differing(resumed.run(range(3, 6)), whole.run(range(6)))


def leaves_gradients(new: New) -> str | None:
    """A step changes no gradient, nor replaces it."""
    problem = new()
    for step in range(2):
        problem.backward()
        before = {key: (param.grad, param.grad.clone()) for key, param in problem.params.items()}  # type: ignore[union-attr]
        problem.optimizers.step(step)
        for key, (gradient, values) in before.items():
            if problem.params[key].grad is not gradient or not torch.equal(gradient, values):  # type: ignore[arg-type]
                return f"the gradient of {key} is another after the step"
    return None


def passes_over(new: New) -> str | None:
    """A parameter without gradient stays as it is, and changes nothing for the others."""
    problem, whole = new(), new()
    before = problem.weights()
    for each in (problem, whole):
        each.backward()
    for key in ABSENT:
        problem.params[key].grad = None
    problem.optimizers.step(0)
    whole.optimizers.step(0)
    expected = whole.weights() | {key: before[key] for key in ABSENT}
    return differing(problem.weights(), expected)


def steps_alike(new: New) -> str | None:
    """Each of two processes, joined by gloo, ends on the weights and the state of one alone."""
    alone = _end(new)
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_rank, (folder, new), nprocs=2, start_method="forkserver")  # type: ignore[no-untyped-call]
        ends = [torch.load(f"{folder}/{rank}", weights_only=True) for rank in range(2)]
    found = [(rank, where) for rank, end in enumerate(ends) if (where := differing(end, alone))]
    return f"on rank {found[0][0]} {found[0][1]}" if found else None


def _end(new: New) -> dict[str, Any]:
    problem = new()
    return {"weights": problem.run(range(3)), "state": saved(problem.optimizers)}


def _rank(rank: int, folder: str, new: New) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(_end(new), Path(folder, str(rank)))
    dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that runs rely on."""

    name: str
    kept: Callable[[New], str | None]
    """None, or what is seen instead."""
    consequence: str
    """Of a broken promise, for whoever trains all the same."""


IN_ONE_PROCESS = (
    Promise("falls on a quadratic", falls, "it may not train, or needs another learning rate by far"),
    Promise("repeats bitwise", repeats, "two runs with one seed differ: seeds do not say what a run was"),
    Promise("state dict round trip", keeps_state, "checkpoints do not hold all of its state"),
    Promise("resume identical", resumes, "resumes are not exact: an interrupted run ends elsewhere"),
    Promise("leaves grad alone", leaves_gradients, "metrics of gradients are of what the step left of them"),
    Promise("None gradients", passes_over, "a parameter without gradient ends the run, or moves"),
)
PROMISES = (
    *IN_ONE_PROCESS,
    Promise("2 gloo ranks = 1", steps_alike, "results depend on the number of workers; keep it to one"),
)
IN_BF16 = "bf16 parameters"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a promise is kept."""

    promise: str
    seen: str | None
    """Instead of what was promised; None where it is kept."""
    costs: str | None
    """The consequence, where it is broken."""


def check(build: Build, promises: Sequence[Promise] = PROMISES) -> Iterable[Finding]:
    """Each promise in turn, and those of one process once more with parameters in bf16, as one."""
    for promise in promises:
        yield _found(promise.name, _seen(promise, partial(Problem, build)), promise.consequence)
    in_bf16 = partial(Problem, build, torch.bfloat16)
    found = ((promise, _seen(promise, in_bf16)) for promise in IN_ONE_PROCESS)
    broken = next(((promise, seen) for promise, seen in found if seen), None)
    seen = f"{broken[0].name}: {broken[1]}" if broken else None
    yield _found(IN_BF16, seen, "keep the weights in float32, as all precisions of a run do")


def _found(name: str, seen: str | None, consequence: str) -> Finding:
    return Finding(name, seen, consequence if seen else None)


def _seen(promise: Promise, new: New) -> str | None:
    """What is wrong in words, also where the optimizer raises."""
    try:
        return promise.kept(new)
    except Exception as error:  # a stranger's code may raise anything
        last = str(error).strip().splitlines()[-1:]
        return ": ".join([type(error).__name__, *last])
