"""Measures the hidden matrices after a step: on a GPU with room beside the steps that follow, on a CPU at once.

Decompositions are loops of small kernels, for which the host waits again and again. So on a GPU a tracked step copies
what later steps change, without waiting, and a thread measures the copies on a CUDA stream of its own. A CPU would do
both with the same cores, and measures right away what is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from muon_core import distributed, environment
from muon_core.config.memory import gib, memory
from muon_core.config.run import RunConfig
from muon_core.layout import Layout
from muon_core.metrics.chance import chance_alignment
from muon_core.metrics.layers import FLAGS, SUBSPACES, layer_metrics
from muon_core.metrics.subspaces import SUBSPACE
from muon_core.model import HiddenMatrix
from muon_core.optim.health import Directions, Health, Look, measure, summed_up
from muon_core.peaks import Peaks
from muon_core.store.parquet import Row

log = logging.getLogger(__name__)
T = TypeVar("T")
BESIDE = ("cuda",)
"""Kinds of devices on which training goes on meanwhile."""
SPARE = 0.1
"""Share of the free memory that is to be left by all that is counted: without copies a run may still fit."""
_OF_STEP = ("update_norm", "grad_norm", "grad_norm_peak", *SUBSPACES)
"""What the weights alone do not have."""
_OF_MOMENTUM = tuple(column for column in SUBSPACES if column.startswith("momentum_"))


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured; of a run whose ranks see different things, a rank's part of it."""

    layers: dict[str, tuple[dict[str, Any], list[float]]]
    """Name of a matrix -> its columns of `layers`, and its singular values with zeros behind."""
    directions: dict[str, Directions]
    """Name of a matrix -> what `health` is made of."""
    blocks: dict[str, list[float]]
    """Name of a block -> likewise."""

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """All ranks' parts as one."""
        return cls(*({k: v for part in parts for k, v in getattr(part, field.name).items()} for field in fields(cls)))

    def health(self) -> Health:
        """The `health` table's columns of each matrix; of a look at nothing, none."""
        return summed_up(self.directions, self.blocks)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The hidden matrices at one step, as no later step changes them."""

    names: list[str]
    weights: list[Tensor]
    norms: dict[str, Tensor]
    updates: list[Tensor] | None
    """The step's changes without decay; None before the first step."""
    momenta: list[Tensor] | None
    """What the optimizer averages; None if it averages nothing."""
    look: Look | None

    @classmethod
    def of(
        cls,
        layout: Layout,
        peaks: Peaks,
        updates: dict[str, Tensor] | None,
        momenta: dict[str, Tensor] | None,
        look: Look | None,
        *,
        copied: bool,
    ) -> Self:
        """Of a layout with its matrices whole; `copied`, as it has to be if later steps come before it is measured."""
        names = [matrix.name for matrix in layout.matrices]
        weights = [matrix.parameter.detach() for matrix in layout.matrices]
        averages = [momenta[name] for name in names] if momenta else None
        norms = peaks.of_mine()
        if copied:  # of what is live; the rest is made by the step
            weights, averages = list(map(torch.clone, weights)), averages and list(map(torch.clone, averages))
            norms = {name: norm.clone() for name, norm in norms.items()}
        return cls(names, weights, norms, [updates[name] for name in names] if updates else None, averages, look)

    def measure(self, *, layers: bool) -> Found:
        """All there is to find, with `layers` False only what `health` needs; waits for the device."""
        directions, blocks = measure(self.look) if self.look else ({}, {})
        return Found(self._layers() if layers else {}, directions, blocks)

    def _layers(self) -> dict[str, tuple[dict[str, Any], list[float]]]:
        measured = layer_metrics(self.weights, self.updates or (), self.momenta or self.updates or ())
        columns = self.norms | measured.columns
        if self.updates:
            columns["update_norm"] = torch.stack(torch._foreach_norm(self.updates))
        table = torch.stack([column.double() for column in columns.values()], dim=1)
        copied = torch.cat([table, measured.spectra], dim=1).tolist()  # all there is to copy from the device
        found: dict[str, tuple[dict[str, Any], list[float]]] = {}
        for name, values in zip(self.names, copied, strict=True):
            named: dict[str, Any] = dict(zip(columns, values, strict=False))
            named |= {flag: bool(named[flag]) for flag in FLAGS if flag in named}
            if self.momenta is None:
                named |= dict.fromkeys(_OF_MOMENTUM)
            if self.updates is None:
                named |= dict.fromkeys(_OF_STEP)
            found[name] = named, values[len(columns) :]
        return found


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A measurement of the hidden matrices after optimizer step `step`."""

    step: int
    found: Future[Found]
    together: bool
    """Whether ranks find different things, and take them up together."""


def rows(matrices: Sequence[HiddenMatrix], found: Found, health: Health, *, spectra: bool) -> Iterator[tuple[str, Row]]:
    """(table, row without its step): of each matrix one of `layers`, of `spectra` if wanted, of `health` if known."""
    for matrix in matrices:
        named, singular_values = found.layers[matrix.name]
        where = {"layer": matrix.layer, "projection": matrix.projection}
        shape = matrix.parameter.shape
        left, right = (chance_alignment(side, min(SUBSPACE, *shape)) for side in shape)
        chance = {"alignment_chance": left, "right_alignment_chance": right}
        yield "layers", where | {"rows": shape[0], "cols": shape[1]} | chance | named
        if spectra:
            yield "spectra", where | {"singular_values": singular_values[: min(shape)]}
    for matrix in matrices if health else ():
        yield "health", {"layer": matrix.layer, "projection": matrix.projection, **health[matrix.name]}


def has_room(config: RunConfig, device: torch.device) -> bool:
    """Whether to measure while training goes on: on devices of BESIDE with memory for it, if all workers have some.

    All ranks call it, before anything is on the device.
    """
    if device.type not in BESIDE:
        return False
    held, free = memory(config, distributed.world_size()), environment.free_memory_bytes(device)
    lacks = distributed.anyone(held.peak + held.tracking > free * (1 - SPARE), device)
    if lacks:
        log.info("tracked steps wait until matrices are measured: there is no room for %s GiB more", gib(held.tracking))
    return not lacks


def begin(work: Callable[[], T], device: torch.device, *, beside: bool) -> Future[T]:
    """The result of `work`, which is there already unless it goes on `beside` training.

    Then a thread calls it, after what the device has been given to do so far, and beside what it is given from now on.
    """
    if not beside:
        done: Future[T] = Future()
        done.set_result(work())
        return done
    thread = ThreadPoolExecutor(1, thread_name_prefix="measure")
    if device.type == "cuda":
        ready = torch.cuda.current_stream(device).record_event()
        future = thread.submit(_on_stream, work, _stream(device), ready)
    else:
        future = thread.submit(work)
    thread.shutdown(wait=False)  # it ends with what it does
    return future


def _on_stream(work: Callable[[], T], stream: torch.cuda.Stream, ready: torch.cuda.Event) -> T:
    # The allocator knows of a tensor's memory only the stream that asked for it. A snapshot's is the training stream's:
    # with the last reference gone, the next kernels there may write into it, and none of them waits for this stream. So
    # this function, which holds the references, returns or raises only once this stream has read all it was to read.
    # A thread begins on the first GPU, and to go back there from another makes a context on it, half a gigabyte a rank.
    torch.cuda.set_device(stream.device)
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        try:
            return work()
        finally:
            stream.synchronize()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runs of the process."""
    # torch loads its decompositions with the first of them, and fails if two threads come first at once
    # (https://github.com/pytorch/pytorch/issues/90613): a step may decompose something, too.
    torch.linalg.eigvalsh(torch.eye(2, device=device))
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
