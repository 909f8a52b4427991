"""How much memory a run takes, from its config alone, and what to change where it takes more than there is.

Counted is what cannot be done without: weights, gradients, the optimizer's state, what autograd keeps of the forward
pass for the backward pass, and the logits. What comes on top (kernels' scratch space, the allocator's gaps, DDP's
buckets, the masks of dropout) is not, so a run that is refused would not have fit. The largest moment is the start of
the backward pass, when all activations are there, or the optimizer step, when all gradients are. What tracking copies
on a GPU is told apart: where there is no room for it, training waits instead.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from muon_core.config.optimizers import MuonConfig
from muon_core.config.run import ModelConfig, RunConfig
from muon_core.config.sizes import largest_matrix, num_hidden, num_multiplied, num_parameters

CHUNK_LOGITS = 2**25
"""Logits computed at a time: 128 MiB in fp32, 682 tokens of a vocabulary of 49,152."""
CHUNK_MATRICES = 2**28
"""Bytes of fp64 copies of matrices that a GPU measures at a time: more would find less room beside a step's passes."""
_SCRATCH = 4
"""What they take with all that is computed of them, by counting allocations: 3.9 times their own size if square."""
_STATE = {"adamw": 2, "soap": 3, "adamuon": 2}  # fp32 numbers an optimizer keeps of a hidden weight; of others one
GIB = 2**30


class DoesNotFit(ValueError, MemoryError):
    """A run that needs more memory than there is; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a worker holds of each kind."""

    weights: int
    """Of fp32, and under bf16 the copies of them that are multiplied."""
    gradients: int
    optimizer: int
    """State kept between steps."""
    activations: int
    """What a micro-batch's forward pass keeps for its backward pass."""
    loss: int
    """Logits and their gradients."""
    tracking: int
    """On a GPU with room for it: copies of hidden matrices that are measured beside training, and what that takes."""
    gathered: int = 0
    """Matrices and their gradients that an owner has whole during the optimizer step, under `parallel: fsdp`."""
    accumulates: bool = False
    """Whether gradients of an earlier micro-batch are there while the next is computed."""

    @property
    def peak(self) -> int:
        """At the largest moment, without tracking."""
        passes = self.activations + self.loss + (self.gradients if self.accumulates else 0)
        return self.weights + self.optimizer + max(passes, self.gradients + self.gathered)

    def describe(self) -> str:
        """`13.0 GiB (weights 0.5, gradients 0.3, ...)`."""
        left_out = ("accumulates", "tracking")
        parts = {name: value for name, value in asdict(self).items() if value and name not in left_out}
        return f"{gib(self.peak)} GiB ({', '.join(f'{name} {gib(value)}' for name, value in parts.items())})"


def gib(value: float) -> str:
    """Bytes as GiB, two digits that count."""
    return f"{value / GIB:.1f}" if value >= GIB else f"{value / GIB:.2g}"


def memory(config: RunConfig, workers: int = 1) -> Memory:
    """What one of `workers` holds; of `micro_batches: auto`, with the most that it may take."""
    model, bf16 = config.model, config.precision == "bf16"
    total, hidden = num_parameters(model), num_hidden(model)
    pieces = max(config.most_micro_batches(workers), workers)
    tokens = config.batch_size // pieces * config.data.seq_len
    rest, kept = total - hidden, _STATE.get(config.optimizer.name, 1)
    whole = Memory(
        weights=4 * total + (2 * num_multiplied(model) if bf16 else 0),
        gradients=4 * total,
        optimizer=4 * (kept * hidden + 2 * rest),
        activations=tokens * _activations(model, bf16=bf16, checkpointing=config.activation_checkpointing),
        loss=_loss(model, tokens),
        tracking=_tracking(config, workers if config.parallel == "fsdp" else 1),
        accumulates=pieces > workers,
    )
    if workers == 1 or config.parallel == "ddp":
        return whole
    # Rows of all weights; whole beside them embedding and norms all along, and an MLP while it is computed. State of
    # hidden matrices is that of whole layers, of which some workers have one more than others.
    mlp, owned = 2 * model.d_model * model.d_ff, hidden // model.num_layers * -(-model.num_layers // workers)
    return replace(
        whole,
        weights=4 * total // workers + (6 * rest + 2 * mlp if bf16 else 4 * (rest + mlp)),
        gradients=4 * total // workers,
        optimizer=4 * (kept * owned + 2 * rest // workers),
        gathered=8 * owned,
    )


def cut_to_fit(config: RunConfig, free: int, workers: int = 1) -> RunConfig | None:
    """`config` in as few micro-batches as fit into `free` bytes, with activation checkpointing if it takes that.

    None if nothing of that is enough.
    """
    for saving in dict.fromkeys((config.activation_checkpointing, True)):
        for pieces in config.micro_batch_choices(workers):
            cut = config.replace(micro_batches=pieces, activation_checkpointing=saving)
            if memory(cut, workers).peak <= free:
                return cut
    return None


def block_activations(model: ModelConfig, *, bf16: bool) -> int:
    """Bytes of a token that autograd keeps of a block, by the terms of what `model.py` computes.

    Under autocast the residual stream and what norms keep are fp32, and what linear layers multiply is bf16, of which
    q, k and v have a copy each.
    """
    width, kv = model.d_model, model.d_model // model.num_heads * model.num_kv_heads
    heads, kv_heads = model.num_heads, model.num_kv_heads
    if bf16:
        return 34 * width + 8 * kv + 6 * model.d_ff + 8 * heads + 4 * kv_heads + 8
    return 4 * (10 * width + 3 * kv + 3 * model.d_ff + 2 * heads + kv_heads + 2)


def _activations(model: ModelConfig, *, bf16: bool, checkpointing: bool) -> int:
    """Bytes of a token over all blocks and the last norm."""
    block = block_activations(model, bf16=bf16)
    last = (10 if bf16 else 12) * model.d_model + 4
    if checkpointing:  # inputs of all, and one in full while its gradients are computed
        return model.num_layers * 4 * model.d_model + block + last
    return model.num_layers * block + last


def _loss(model: ModelConfig, tokens: int) -> int:
    """Logits, softmax and its gradient; or those of a chunk, and the weights' gradient before and after scaling."""
    logits = tokens * model.vocab_size
    if logits <= CHUNK_LOGITS:
        return 12 * logits
    return 4 * CHUNK_LOGITS + 8 * model.vocab_size * model.d_model


def _tracking(config: RunConfig, shares: int) -> int:
    """Weights, updates, momenta, gradients, and of a Muon what it orthogonalized, in fp32; and a chunk in fp64."""
    total, hidden = num_parameters(config.model), num_hidden(config.model)
    copies = 4 if isinstance(config.optimizer, MuonConfig) else 3
    gradients = total if config.reduction == "tree" else hidden  # which are parts of one vector there
    chunk = max(CHUNK_MATRICES, 24 * largest_matrix(config.model))  # of which there is one at least
    return (4 * (copies * hidden + gradients)) // shares + _SCRATCH * min(chunk, 24 * hidden // shares)


def check_fits(config: RunConfig, free: int, where: str, workers: int = 1) -> None:
    """Raises DoesNotFit, with what would help, if a worker needs more than `free` bytes of what `where` names."""
    needed = memory(config, workers)
    least = needed
    if config.model.hf is not None:  # of whose blocks some, as OPT's, keep half as much as ours
        least = replace(needed, activations=needed.activations // 2)
    if least.peak <= free:
        return
    helps = {text: memory(other, workers).peak for text, other in _smaller(config, workers).items()}
    less = [f"{text} ({gib(peak)} GiB)" for text, peak in helps.items() if peak < needed.peak]
    enough = any(peak <= free for peak in helps.values())
    remedy = ("set " + ", or ".join(less)) if less else "it has the smallest micro-batches already"
    more = "" if enough else "; that is not enough: shorten data.seq_len, or take a smaller model or more memory"
    raise DoesNotFit(f"this run needs about {needed.describe()} and {where} has {gib(free)} GiB free; {remedy}{more}")


def _can_share(config: RunConfig, workers: int) -> bool:
    try:
        config.replace(parallel="fsdp").check_workers(workers)
    except ValueError:
        return False
    return True


def _smaller(config: RunConfig, workers: int) -> dict[str, RunConfig]:
    """The same run in less memory, by what is to be set."""
    size = config.batch_size
    pieces = size if config.reduction == "ddp" else size & -size  # the largest power of two in it
    more = pieces % workers == 0 and pieces > config.most_micro_batches(workers)
    micro: dict[str, Any] = {"micro_batches": pieces} if more else {}
    saving: dict[str, Any] = {} if config.activation_checkpointing else {"activation_checkpointing": True}
    ways = [micro, saving, micro | saving if micro and saving else {}]
    if workers > 1 and config.parallel == "ddp" and _can_share(config, workers):
        ways += [{"parallel": "fsdp"}, micro | saving | {"parallel": "fsdp"}]
    texts = [" and ".join(f"{name}: {str(value).lower()}" for name, value in way.items()) for way in ways]
    return {text: config.replace(**way) for text, way in zip(texts, ways, strict=True) if way}
