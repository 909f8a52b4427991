"""Local processes and gloo groups of them, forked from one that has imported everything: a new one takes seconds."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LOADED = ["polars", "muon_core.train", "analysis.store", "pytest"]
multiprocessing.set_forkserver_preload(LOADED)


def start_process(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that calls `function`, a module's own; it can be killed like any other."""
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments)
    process.start()
    return process


def run_ranks(
    world_size: int, rendezvous: Path, function: Callable[..., None], *arguments: Any, start_method: str = "forkserver"
) -> None:
    """Call `function(rank, *arguments)` on every rank of a group of `world_size`, one thread each.

    `function` is a module's own. Raises what a rank raised. `rendezvous` names a file that does not exist yet. A
    process that has imported more than the one of all tests, and has no threads, may `fork` its ranks.
    """
    arguments = (world_size, str(rendezvous), function, arguments)
    mp.start_processes(_rank, arguments, nprocs=world_size, start_method=start_method)


def _rank(rank: int, world_size: int, rendezvous: str, function: Callable[..., None], arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    function(rank, *arguments)
    dist.destroy_process_group()
