"""Who computes which update: every rank all of them, or each rank its own and all the result."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muon_core import distributed
from muon_core.optim.blocks import MatrixBlock

Compute = Callable[[Sequence[MatrixBlock]], Tensor]
"""Blocks of one shape and device to their updates `(k, rows, cols)`."""
Distribute = Callable[[list[MatrixBlock], Compute], Iterable[tuple[Sequence[MatrixBlock], Tensor]]]
"""(blocks, how to compute some) -> all of them in portions of one shape, each with its updates, on every rank."""

STACK_ENTRIES = 2**22
"""Most entries of one stack: 16 matrices of 512 x 512. Enough to hide launches, and a bound on the memory of a step."""
CACHED_ENTRIES = 2**16
"""The same on a CPU: it has no launches to hide, but a cache, and a step reads and writes a stack ten times over."""
VECTOR = 16
"""Numbers a CPU works on at once, at most."""


def stacks(blocks: Sequence[MatrixBlock]) -> Iterator[list[MatrixBlock]]:
    """Blocks of equal shape and device, in portions of at most STACK_ENTRIES or CACHED_ENTRIES, one block at least.

    Which blocks a stack holds depends on the rank and on which have gradients, and must change no bit of an update. On
    a CPU, what rows and columns leave beyond multiples of VECTOR is computed by other kernels, with other roundings,
    and which entries these are depends on a matrix's place in its stack: such matrices stay alone. (Newton-Schulz in
    bf16, which takes stacks apart, would not need it; fp32, noise and singular values do.)
    """
    groups: dict[tuple[tuple[int, int], torch.device], list[MatrixBlock]] = defaultdict(list)
    for block in blocks:
        groups[block.shape, block.pieces[0].parameter.device].append(block)
    for (shape, device), group in groups.items():
        entries = CACHED_ENTRIES if device.type == "cpu" else STACK_ENTRIES
        alone = device.type == "cpu" and any(side % VECTOR for side in shape)
        size = 1 if alone else max(1, entries // (shape[0] * shape[1]))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def replicated(blocks: list[MatrixBlock], compute: Compute) -> Iterator[tuple[Sequence[MatrixBlock], Tensor]]:
    """Every rank computes everything; one stack is in memory at a time."""
    for stack in stacks(blocks):
        yield stack, compute(stack)


def owner(
    blocks: list[MatrixBlock], compute: Compute, *, dtype: torch.dtype
) -> Iterator[tuple[Sequence[MatrixBlock], Tensor]]:
    """Each rank computes its own and gathers the others' updates, of `dtype`, while it computes on.

    Updates travel as they are: the weights have the bits of `replicated` where the same kernels run, as on a CPU.
    """  # all ranks
    pending: list[tuple[list[list[MatrixBlock]], Tensor, Tensor, dist.Work]] = []
    for dealt in deal(blocks, distributed.world_size()):
        mine = dealt[distributed.rank()]
        rows, cols = next(block.shape for part in dealt for block in part)
        device = next(block.pieces[0].parameter.device for part in dealt for block in part)
        sent = torch.zeros(max(map(len, dealt)), rows, cols, dtype=dtype, device=device)
        start = 0
        for stack in stacks(mine):
            sent[start : start + len(stack)] = compute(stack)
            start += len(stack)
        received, work = _gather(sent)
        pending.append((dealt, sent, received, work))  # tensors and handle live until waited on
    for dealt, _, received, work in pending:
        work.wait()
        yield from ((part, updates[: len(part)]) for part, updates in zip(dealt, received, strict=True) if part)


def check_same_blocks(blocks: Sequence[MatrixBlock], device: torch.device) -> None:
    """Compare over all ranks which blocks, and which of their pieces, have gradients: one collective of 16 bytes.

    Where they differ, an owner would wait for an update that nobody computes, and momenta would no longer be the same.

    Raises: ValueError on every rank, with the first block that differs.
    """  # all ranks
    if distributed.world_size() == 1:
        return
    mine = [f"{block.name} ({len(block.pieces)})" for block in blocks]
    digest = int.from_bytes(hashlib.blake2b("\n".join(mine).encode(), digest_size=7).digest())
    bounds = torch.tensor([digest, -digest], device=device)
    dist.all_reduce(bounds, dist.ReduceOp.MAX)
    highest, lowest = bounds.tolist()
    if highest == -lowest:
        return
    found: list[list[str]] = [[]] * distributed.world_size()
    dist.all_gather_object(found, mine)
    first = min(set().union(*found) - set(found[0]).intersection(*found))
    having = [rank for rank, names in enumerate(found) if first in names]
    raise ValueError(
        f"{first.rpartition(' ')[0]} has a gradient on ranks {having} of {len(found)} only, so that its momentum would "
        "differ between them; give it one on every rank (zeros, as DDP does for what a rank did not use) or on none"
    )


def flops(rows: int, cols: int) -> int:
    """Of five Newton-Schulz steps on one matrix."""
    small, large = sorted((rows, cols))
    return 5 * (4 * small**2 * large + 2 * small**3)


def deal(blocks: Sequence[MatrixBlock], world_size: int) -> list[list[list[MatrixBlock]]]:
    """For each shape, costliest first, the blocks of each rank: every block to the rank with the least work so far."""
    load = [0] * world_size
    groups: dict[tuple[int, int], list[list[MatrixBlock]]] = {}
    for block in sorted(blocks, key=lambda block: (-flops(*block.shape), block.shape)):
        rank = load.index(min(load))
        load[rank] += flops(*block.shape)
        groups.setdefault(block.shape, [[] for _ in range(world_size)])[rank].append(block)
    return list(groups.values())


def _gather(sent: Tensor) -> tuple[Tensor, dist.Work]:
    received = torch.empty(distributed.world_size(), *sent.shape, dtype=sent.dtype, device=sent.device)
    # as bytes: not every backend adds up bfloat16, and a gather does not have to
    work = dist.all_gather_single(received.view(torch.uint8).flatten(), sent.view(torch.uint8).flatten(), async_op=True)
    assert work is not None
    return received, work


@dataclass(frozen=True, slots=True)
class Distribution:
    """How updates are shared out, and the probe that decided it; None where nothing was measured."""

    mode: Literal["owner", "replicated"]
    compute_s: float | None = None
    """Seconds for the update of one matrix of the costliest shape, noise included, on the slowest rank."""
    gather_s: float | None = None
    """Seconds to gather one such matrix from every rank, on the slowest rank."""

    def function(self, dtype: torch.dtype) -> Distribute:
        """The Distribute of this mode for updates of `dtype`."""
        return partial(owner, dtype=dtype) if self.mode == "owner" else replicated


def choose_distribution(
    wanted: Literal["auto", "owner", "replicated"],
    blocks: Sequence[MatrixBlock],
    direct: Callable[[Tensor], Tensor],
) -> Distribution:
    """`wanted`, or under `auto` the faster one by a probe: the same answer on every rank.

    With one rank nothing is shared out. On W ranks an owner saves (W - 1) of W updates and pays a gather.

    Args:
        direct: momentum `(1, rows, cols)` to its update; what an owner does for the others.
    """  # all ranks
    if distributed.world_size() == 1 or wanted == "replicated":
        return Distribution("replicated")
    if wanted == "owner":
        return Distribution("owner")
    costliest = max(blocks, key=lambda block: flops(*block.shape))
    probe = torch.ones(1, *costliest.shape, device=costliest.pieces[0].parameter.device)
    # The first call compiles what is compiled. The update of a tall matrix is a transposed view.
    update = direct(probe).contiguous()
    compute_s = _seconds(lambda: direct(probe), probe.device)
    gather_s = _seconds(lambda: _gather(update)[1].wait(), probe.device)
    slowest = torch.tensor([compute_s, gather_s], dtype=torch.float64, device=probe.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    compute_s, gather_s = slowest.tolist()
    is_owner = gather_s < (distributed.world_size() - 1) * compute_s
    return Distribution("owner" if is_owner else "replicated", compute_s, gather_s)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Time of the second of two calls of `action`."""
    for _ in range(2):
        _synchronize(device)
        begin = time.perf_counter()
        action()
        _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ReplicasDiffer(RuntimeError):
    """Ranks that should hold the same weights do not."""


def check_replicas(named_parameters: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
    """Compare a hash of every parameter over all ranks: two sums of its bits on the device, and one collective.

    Raises: ReplicasDiffer on every rank, with the first parameter that differs.
    """  # all ranks
    if distributed.world_size() == 1:
        return
    names, hashes = zip(*((name, _bits(param.detach())) for name, param in named_parameters), strict=True)
    mine = torch.stack(hashes)
    spread = torch.stack([mine, -mine - 1])  # -x - 1 reverses the order of all int64
    dist.all_reduce(spread, dist.ReduceOp.MAX)
    differs = (spread[0] != -spread[1] - 1).any(-1).tolist()
    if any(differs):
        raise ReplicasDiffer(
            f"weights differ between ranks at step {step}: {names[differs.index(True)]} and {sum(differs) - 1} more; "
            "resume from the last checkpoint, and look for a rank with other data, code or a failing device"
        )


def _bits(tensor: Tensor) -> Tensor:
    """Plain and position-weighted sum of a tensor's bits, int64 `(2,)`, wrapping around."""
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    place = 1
    for part in torch.split(tensor.contiguous().view(views[tensor.element_size()]).flatten(), STACK_ENTRIES):
        bits = part.long()  # of a portion: eight bytes an entry, and an embedding has a hundred million
        weights = torch.arange(place, place + len(bits), device=bits.device)
        total += torch.stack([bits.sum(), (bits * weights).sum()])
        place += len(bits)
    return total
