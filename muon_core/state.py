"""What a run is while it trains: model, optimizers, data and where they stand, from step 0 on.

The loop and what saves it both need this, so it stands below both. Everything in it is a function of the config alone:
two processes that prepare the same config hold the same weights, which is why a resumed run needs no more than a
checkpoint, and why world sizes can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muon_core import distributed, environment, seeds
from muon_core.compiled import compile_model
from muon_core.config.run import RunConfig
from muon_core.data.batches import TokenData, load_data
from muon_core.fsdp import make_layout
from muon_core.gradients import replicate
from muon_core.hf_model import HFModel
from muon_core.hf_plan import attention_matrices
from muon_core.layout import Layout
from muon_core.measuring import has_room
from muon_core.model import Transformer, init_weights, next_token_loss
from muon_core.optim.build import build_optimizers
from muon_core.optim.optimizers import Optimizers
from muon_core.optim.param_groups import PATTERNS, Group
from muon_core.optim.sharding import Distribution
from muon_core.peaks import Peaks
from muon_core.prefetch import Batches
from muon_core.stopwatch import Stopwatch
from muon_core.store.parquet import Row


@dataclass(slots=True)
class TrainState:
    """Everything that changes while a run trains, and what it trains on."""

    model: Transformer | HFModel
    replica: nn.Module
    """`model`, or the DDP wrapper around it."""
    layout: Layout
    optimizers: Optimizers
    data: TokenData
    batches: Batches
    peaks: Peaks
    device: torch.device
    environment: dict[str, Any]
    """`environment.fingerprint`, and under `resumed_from` what was different in the attempts before."""
    stopwatch: Stopwatch
    micro_batches: int
    """Over all workers. Where the config leaves it to the device, the most there can be until `fit` has chosen."""
    beside: bool = False
    """Whether matrices are measured while training goes on."""
    step: int = 0
    updates: dict[str, Tensor] = field(default_factory=dict)


def prepare(config: RunConfig, device: torch.device, stopwatch: Stopwatch, tokens: Path | None = None) -> TrainState:
    """Model, optimizers and data at step 0; `tokens` is the folder of those that were prepared elsewhere."""
    beside = has_room(config, device)
    data = load_data(config.data, config.model.vocab_size, tokens)
    distributed.check_alike(
        "their tokens (data_hash)", data.data_hash, f"corpus {config.data.corpus!r} is not the same text on both nodes"
    )
    distributed.check_alike("their torch", torch.__version__, "install the same release on both nodes")
    model = _initial(config)
    model.checkpoints = config.activation_checkpointing
    layout = make_layout(model, config, device)
    if config.compile:
        compile_model(layout.parts, device, whole=isinstance(model, Transformer))
    replica: nn.Module = model
    if distributed.world_size() > 1 and config.reduction == "ddp" and not layout.shared:
        replica = replicate(model, device)
    optimizers = build_optimizers(
        layout.named_parameters(),
        config.optimizer,
        noise_seed=config.stream_seed("noise"),
        head_size=model.head_size,
        attention=_attention(model, config),
        patterns=_patterns(model, layout),
        distribute="replicated" if layout.shared else config.distribute,  # what an owner has, it alone steps
        shared=layout.shared,
        compile=config.compile,
        stopwatch=stopwatch,
    )
    versions = environment.fingerprint(*(("transformers",) if isinstance(model, HFModel) else ()))
    micro_batches = config.most_micro_batches(distributed.world_size())
    return TrainState(
        model,
        replica,
        layout,
        optimizers,
        data,
        Batches(partial(_rows, config, data), config.steps, device),
        Peaks(layout),
        device,
        versions,
        stopwatch,
        micro_batches,
        beside,
    )


def _rows(config: RunConfig, data: TokenData, step: int) -> Tensor:
    """This rank's sequences of a step."""
    rank, world_size = distributed.rank(), distributed.world_size()
    return data.batch(config.stream_seed("data"), step, config.batch_size, rank=rank, world_size=world_size)


def _initial(config: RunConfig) -> Transformer | HFModel:
    """The run's model with its weights of step 0, on the CPU."""
    if config.model.hf is not None:
        return HFModel(config.model, config.stream_seed("init"))
    model = Transformer(config.model)
    init_weights(model, config.stream_seed("init"))
    return model


def _attention(model: Transformer | HFModel, config: RunConfig) -> dict[str, str] | None:
    """Which matrices of a Hugging Face model are q, k, v and o, where the optimizer asks."""
    blocks = getattr(config.optimizer, "attention_blocks", "whole")
    return attention_matrices(model, blocks) if isinstance(model, HFModel) else None


def _patterns(model: Transformer | HFModel, layout: Layout) -> Sequence[tuple[str, Group]]:
    """Which parameters are hidden matrices: of a Hugging Face model those by name, and no others."""
    if isinstance(model, Transformer):
        return PATTERNS
    return [*((matrix.name, "hidden") for matrix in layout.matrices), ("*", "vectors")]


def settle_buckets(config: RunConfig, state: TrainState) -> None:
    """One backward pass for nothing: DDP lays its buckets out anew after the first, which changes the order of sums.

    Without it a resumed run, whose first step is another one's tenth, would differ from the whole one.
    """
    if state.replica is state.model:
        return
    shape = (1, 2)
    if config.compile:  # which would make graphs of a shape that no step has
        shape = (config.batch_size // max(state.micro_batches, distributed.world_size()), config.data.seq_len + 1)
    tokens = torch.zeros(shape, dtype=torch.long, device=state.device)
    with autocast(config, state.device):
        next_token_loss(state.replica, tokens).backward()  # type: ignore[no-untyped-call]
    state.replica.zero_grad()


def start_facts(config: RunConfig, state: TrainState) -> Row:
    first_batch = state.data.batch(config.stream_seed("data"), 0, config.batch_size)
    shared_out = state.optimizers.distribution
    if shared_out and state.layout.shared:
        shared_out = Distribution("owner")
    return {
        "num_parameters": sum(p.numel() for p in state.model.parameters()),
        "init_hash": state.layout.init_hash,
        "first_batch_hash": seeds.hash_tokens(first_batch),
        "data_hash": state.data.data_hash,
        "world_size": distributed.world_size(),
        "device": environment.device_name(state.device),
        "distribution_json": json.dumps(asdict(shared_out)) if shared_out else None,
    }


def autocast(config: RunConfig, device: torch.device) -> Any:
    """The run's precision for forward passes, a context manager."""
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
