"""The few collectives the loop needs; all of them do nothing in a single process."""

from __future__ import annotations

import socket
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """This process among the workers of the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Workers of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """`value` summed in place over all ranks."""  # all ranks
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def norm_over_ranks(norm: Tensor) -> Tensor:
    """Norm of what all ranks hold together, from that of each rank's part."""  # all ranks
    return sum_over_ranks(norm.double().square()).sqrt().to(norm.dtype)


def agree(flag: bool, device: torch.device) -> bool:
    """Rank 0's `flag`, on every rank, so that all leave a run at the same step."""  # all ranks
    if world_size() == 1:
        return flag
    shared = torch.tensor([int(flag)], device=device)
    dist.broadcast(shared, src=0)
    return bool(shared.item())


def anyone(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank, on every rank."""  # all ranks
    return bool(sum_over_ranks(torch.tensor([int(flag)], device=device)).item())


def share(value: T) -> T:
    """Rank 0's `value`, on every rank."""  # all ranks
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """Every rank's `value`, on every rank."""  # all ranks
    if world_size() == 1:
        return [value]
    found = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def check_alike(what: str, value: str, remedy: str) -> None:
    """Raises ValueError on every rank, with the names of two nodes, unless `value` is the same on all of them."""
    found = gathered((value, socket.gethostname()))
    main, main_host = found[0]
    for other, (its, host) in enumerate(found):
        if its != main:
            raise ValueError(
                f"workers differ in {what}: {main} on {main_host} (worker 0), "
                f"{its} on {host} (worker {other}); {remedy}"
            )


class LostPeers(RuntimeError):
    """Other workers are gone, and the process group with them."""


def check_whole(workers: int) -> None:
    """Raises LostPeers unless there are still so many `workers`.

    When one dies, Ray takes the process group away from the others, whenever that is; one by itself would compute on.
    """
    if world_size() != workers:
        raise LostPeers(f"of {workers} workers this one is left")
