"""Fits a step's batch to the device: what `micro_batches: auto` takes.

The estimate of `config.memory` says where to begin. Then the passes of one step are tried, beside what the optimizer
will keep, and where memory runs out the micro-batches are halved. Every worker tries by itself, without a collective,
in which one that runs out would leave the others waiting; all take what the smallest has room for. Under FSDP each
forward pass is a collective, and the estimate decides alone. What was taken is in the run's environment and so in its
checkpoints: a run that is continued takes the same, also on a larger device.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import torch

from muon_core import distributed, environment
from muon_core.config.memory import DoesNotFit, Memory, gib, memory
from muon_core.config.run import RunConfig
from muon_core.failures import classify
from muon_core.model import next_token_loss
from muon_core.state import TrainState, autocast

log = logging.getLogger(__name__)
KEY = "micro_batches"
"""Of a run's environment, where the device decided."""
SPARE = 0.05
"""Share of the free memory that is left alone: for gaps between allocations, and evaluation."""


def take_again(config: RunConfig, state: TrainState, before: dict[str, Any]) -> None:
    """Let the device's choice in the environment of an earlier attempt stand, if so many workers can deal it out."""
    taken = before.get(KEY)
    if config.micro_batches == "auto" and taken in config.micro_batch_choices(distributed.world_size()):
        _take(state, taken)


def fit_micro_batches(config: RunConfig, state: TrainState) -> None:
    """Choose `state.micro_batches` where that is left to the device and no earlier attempt has. All ranks call it.

    Raises: DoesNotFit if there is no room for micro-batches of one sequence a worker, or the smallest there can be.
    """
    if config.micro_batches != "auto":
        return
    device = state.device
    free = environment.free_memory_bytes(device)
    if KEY in state.environment:  # an attempt that did not measure beside training may have left no room for that
        lacks = _still_needed(config, state, state.micro_batches) > free * (1 - SPARE)
        state.beside = state.beside and not distributed.anyone(lacks, device)
        return
    choices = config.micro_batch_choices(distributed.world_size())
    tried = 0
    for pieces in choices:
        is_last = pieces == choices[-1]
        if pieces < 2 * tried and not is_last:
            continue
        if distributed.anyone(_still_needed(config, state, pieces) > free * (1 - SPARE), device) and not is_last:
            continue
        # Under FSDP a pass that one worker does not survive would hang the others.
        if state.layout.shared or not distributed.anyone(not _holds(config, state, pieces, free), device):
            _take(state, pieces)
            log.info("micro_batches auto: %d, of %d sequences each", pieces, config.batch_size // pieces)
            break
        tried = pieces
    else:
        size = config.batch_size // choices[-1]
        raise DoesNotFit(
            f"a step ran out of memory in micro-batches of {size} {'sequence' if size == 1 else 'sequences'}, the "
            f"smallest there can be, with {gib(free)} GiB free; set activation_checkpointing: true, shorten "
            "data.seq_len, or take a smaller model or more memory"
        )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the run's peak is its own, not that of what was tried


def _take(state: TrainState, pieces: int) -> None:
    state.micro_batches = pieces
    state.environment = state.environment | {KEY: pieces}


def _estimate(config: RunConfig, pieces: int) -> Memory:
    return memory(config.replace(micro_batches=pieces), distributed.world_size())


def _still_needed(config: RunConfig, state: TrainState, pieces: int) -> int:
    """Bytes that the estimate adds to those which the prepared state has taken already."""
    needed = _estimate(config, pieces)
    tracking = needed.tracking if state.beside else 0
    if state.layout.shared:
        return needed.peak + tracking  # how much of it is there already is not known here
    weights = sum(parameter.nbytes for parameter in state.model.parameters())
    return needed.peak + tracking - weights - (needed.optimizer if state.step else 0)


def _holds(config: RunConfig, state: TrainState, pieces: int, free: int) -> bool:
    """Whether the passes of a step in `pieces` micro-batches get through in `free` bytes."""
    beside = int(free * SPARE) + _kept(config, state, pieces)
    got_through = _try(config, state, pieces, beside)
    if state.device.type == "cuda":
        torch.cuda.empty_cache()  # blocks of one size are of no use to the next
    return got_through


def _kept(config: RunConfig, state: TrainState, pieces: int) -> int:
    """Bytes that will be there during a step's passes and are not yet."""
    needed, workers = _estimate(config, pieces), distributed.world_size()
    kept = (0 if state.step else needed.optimizer) + (needed.tracking if state.beside else 0)
    if config.reduction == "tree":  # partial sums of all levels, and those of all workers
        kept += needed.gradients * ((pieces // workers).bit_length() + workers)
    return kept


def _try(config: RunConfig, state: TrainState, pieces: int, beside: int) -> bool:
    try:
        measured_step(config, state, pieces, beside)
    except Exception as error:
        if classify(error) != "out_of_memory":
            raise
        return False
    finally:
        state.model.zero_grad()
    return True


def measured_step(config: RunConfig, state: TrainState, pieces: int, beside: int) -> None:
    """Forward and backward passes of as many micro-batches as it takes to the peak, with `beside` bytes more held.

    The bare model takes them, so nothing is compiled or sent for it; gradients are left in it.
    """
    held = torch.empty(beside, dtype=torch.uint8, device=state.device)
    shape = (config.batch_size // pieces, config.data.seq_len + 1)
    tokens = torch.zeros(shape, dtype=torch.long, device=state.device)
    accumulates = pieces > distributed.world_size()  # the second meets the gradients of the first
    with torch.compiler.set_stance("force_eager") if config.compile else nullcontext():
        for _ in range(2 if accumulates else 1):
            with autocast(config, state.device):
                next_token_loss(state.model, tokens).backward()  # type: ignore[no-untyped-call]
    del held
