"""What a run is: immutable configurations, their presets, and the identity derived from them. Imports no torch."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    WrapValidator,
    model_serializer,
    model_validator,
)

from muon_core.config import hf
from muon_core.config.base import Config
from muon_core.config.identity import Identity
from muon_core.config.optimizers import OPTIMIZERS, MuonConfig, OptimizerConfig
from muon_core.config.reference import ReferenceConfig

_BY_REFERENCE = "by reference"  # no name of a built-in one has a space


def _which(fields: Any) -> Any:
    """Tag of the config class that an optimizer's fields are of."""
    if isinstance(fields, dict):
        return _BY_REFERENCE if "reference" in fields else fields.get("name")
    return _BY_REFERENCE if isinstance(fields, ReferenceConfig) else getattr(fields, "name", None)


if TYPE_CHECKING:
    AnyOptimizer = OptimizerConfig
else:  # with the fields of its own class
    AnyOptimizer = Annotated[
        reduce(or_, (Annotated[cls, Tag(tag)] for tag, cls in {**OPTIMIZERS, _BY_REFERENCE: ReferenceConfig}.items())),
        Discriminator(_which),
    ]
if TYPE_CHECKING:
    MicroBatches = int | Literal["auto"]
else:  # of a union, pydantic would say what is wrong once for each member
    MicroBatches = Annotated[
        int,
        Field(gt=0),
        WrapValidator(lambda value, number: value if value == "auto" else number(value)),
        PlainSerializer(lambda value: value, return_type=int | str),
        WithJsonSchema({"anyOf": [{"exclusiveMinimum": 0, "type": "integer"}, {"const": "auto", "type": "string"}]}),
    ]
TAGS = (*OPTIMIZERS, _BY_REFERENCE)
"""What pydantic calls the class of an optimizer's config where it says what is wrong."""

SCHEMA = 1  # raised when the meaning of a field changes, so that old and new runs never share an identity


class ModelConfig(Config):
    """Shape of the decoder-only transformer, or a Hugging Face model in its place."""

    d_model: int = Field(64, gt=0)
    """Width of the residual stream."""
    num_layers: int = Field(4, gt=0)
    """Transformer blocks, each of attention and an MLP."""
    num_heads: int = Field(4, gt=0)
    """Query heads; `d_model / num_heads` is the head size, an even number."""
    num_kv_heads: int = Field(2, gt=0)
    """Key/value heads; divides `num_heads` (grouped-query attention)."""
    d_ff: int = Field(256, gt=0)
    """Width of the squared-ReLU MLP."""
    vocab_size: int = Field(1024, ge=257)
    """Tokens of the byte-level BPE: 256 bytes, one end-of-text, the rest merges."""
    rope_base: float = Field(10_000.0, gt=0)
    """Pair i of a head turns by rope_base^(-2i / head size) radians a position (RoPE, arXiv 2104.09864)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the embeddings, attention weights, and outputs of attention and MLP that are set to zero in training."""
    hf: str | None = None
    """A decoder-only Hugging Face model in place of ours, which gives the shape above: a folder with its `config.json`,
    seen from the file that names it, or `OWNER/NAME` on the Hub; `hf:` before it may be there. Needs `.[hf]`."""
    revision: str | None = None
    """Branch, tag or commit of `hf` on the Hub; null: its main branch."""
    weights: Literal["random", "pretrained"] = "random"
    """With `hf`: start from `random` weights, as its architecture draws them, or from its `pretrained` ones."""
    hf_config: str | None = None
    """Content of the `config.json` of `hf`, which is the identity, not the name; filled in when a run is planned."""
    weights_sha256: str | None = None
    """Hash of the pretrained weights; filled in when a run is planned."""
    hf_sizes: str | None = None
    """How many weights `hf` has and of which shapes, for FLOPs and memory; filled in when a run is planned."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hf is not None:
            return self
        if self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} must be even, as the size of a head is (RoPE turns pairs)")
        if (self.d_model // 2) % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must divide half of d_model {self.d_model}, for heads of an even size "
                f"(RoPE turns pairs); choose a divisor of {self.d_model // 2}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        return self

    @model_validator(mode="after")
    def _shape_is_that_of_hf(self) -> Self:
        if self.hf is None:
            for name in _OF_HF:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is of a Hugging Face model; name it with model.hf, or leave it out")
            return self
        if self.rope_base != type(self).model_fields["rope_base"].default:
            raise ValueError(f"rope_base {self.rope_base:g} is not read with hf, whose config.json says it; remove it")
        for name, value in hf.shape(self.hf_config).items() if self.hf_config else ():
            if (given := getattr(self, name)) != value:
                raise ValueError(f"{name} {given}: {self.hf} has {value}; leave it out, hf gives the shape")
        return self

    @model_serializer(mode="wrap")
    def _ours_as_ever(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields of Hugging Face models only where there is one: runs of ours keep their identity."""
        fields: dict[str, Any] = serialize(self)
        return fields if self.hf is not None else {key: fields[key] for key in fields if key not in ("hf", *_OF_HF)}


PLANNED = ("hf_config", "weights_sha256", "hf_sizes")
"""Fields of a ModelConfig that are filled in when a run is planned."""
_OF_HF = ("revision", "weights", *PLANNED)


class DataConfig(Config):
    """Which text, and how it is cut."""

    corpus: str = "stdlib"
    """`stdlib`, the Python standard library's own source; the path of a text file or a folder of text files, seen from
    the file that names it; or a data set of `muon data prepare`, by its path or its `s3://bucket/prefix`."""
    corpus_sha256: str | None = None
    """Content hash of a corpus given by path, which is its identity, not the path; filled in when a run is planned."""
    seq_len: int = Field(128, gt=1)
    """Tokens a sequence predicts; a window reads one more."""
    validation_share: float = Field(0.05, gt=0, lt=1)
    """Share of the files kept for validation, chosen by a stable hash of their relative path, none cut in two. A
    prepared data set was split when it was prepared."""
    validation_tokens: int = Field(32_768, gt=0)
    """Tokens evaluated at each evaluation, spread evenly over the validation files."""


class ScheduleConfig(Config):
    """Trapezoid: linear warm-up, flat, linear cool-down."""

    warmup_steps: int = Field(10, ge=0)
    """Optimizer steps over which the learning rate rises linearly to its full value; 0: at once."""
    cooldown: float = Field(0.4, ge=0, le=1)
    """Share of the steps, at the end, over which the learning rate falls linearly."""
    final: float = Field(0.1, ge=0, le=1)
    """What the learning rate is multiplied by at the last step."""


class SeedsConfig(Config):
    """Random streams set apart from the run's seed; null follows it."""

    init: int | None = Field(None, ge=0)
    """Of the initial weights."""
    data: int | None = Field(None, ge=0)
    """Of the order in which the training text is read."""
    noise: int | None = Field(None, ge=0)
    """Of the noise that `orthonoise` and `isotropic` draw."""
    dropout: int | None = Field(None, ge=0)
    """Of the dropout masks."""


class TrackingConfig(Config):
    """What is measured when, in optimizer steps. No part of a run's identity: measuring changes no result."""

    log_every: int = Field(1, gt=0)
    """A `train` row each so many steps."""
    eval_every: int = Field(20, gt=0)
    """A `val` row each so many steps, and at step 0 and the last."""
    track_every: int = Field(20, gt=0)
    """`layers` rows each so many steps, and at step 0 and the last."""
    spectra_every: int | None = Field(None, gt=0)
    """`spectra` rows (all singular values), with `layers` rows beside them, each so many steps; they are written at
    step 0, at checkpoint milestones and at the last step in any case, and for null only there."""
    flush_every_s: float = Field(15.0, gt=0)
    """Rows become readable after at most so many seconds, on a GPU those that wait for a measurement once it is taken
    up; each time costs a small object for every table."""


class CheckpointConfig(Config):
    """When a run's state is saved to the results store. No part of a run's identity."""

    every_s: float | None = Field(60.0, gt=0)
    """Save `latest` after so many seconds; null: never by the clock."""
    every_steps: int | None = Field(None, gt=0)
    """Save `latest` each so many optimizer steps; null: never by the step."""
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Token counts at which a checkpoint is kept for good, at the first step that reaches them; at the last step too
    where it falls short by less than half a step, as that of a budget in tokens does (1e6 are 61 steps of 16,384)."""
    keep_last: int = Field(2, gt=0)
    """So many `latest` checkpoints are kept."""
    model: bool = True
    """Save the weights after the last step."""


class SpikeConfig(Config):
    """What counts as a loss spike, and what follows that or a value that is not finite. Part of a run's identity where
    a step may change by it."""

    above: float = Field(1.0, gt=0)
    """Nats per token above the median of the last `window` train losses."""
    window: int = Field(50, gt=1)
    """Train losses of which the median is taken; no spike is seen before there are so many."""
    action: Literal["flag", "end"] = "flag"
    """`flag` counts it in the run's record; `end` ends the run as diverged, before the update."""
    nonfinite: Literal["end", "skip"] = "end"
    """Where loss or gradient are not finite: `end` the run as diverged, or `skip` the update and count it in the run's
    record."""


class RunConfig(Config):
    """One training, complete: the same value on the same CPU and threads gives the same curves, bit for bit.

    On GPUs it does so as far as the kernels that PyTorch chooses are deterministic, which is not enforced.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: AnyOptimizer = MuonConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    steps: int = Field(200, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(16, gt=0)
    """Sequences an optimizer step, over all workers."""
    micro_batches: MicroBatches = 1
    """Parts a step's batch is cut into, over all workers; `auto`: as few as the device has memory for, found by a step
    that is tried. Changes the order of float sums only, not the identity."""
    allow_epochs: float = Field(4.0, gt=0)
    """So often a run may read a prepared data set; one whose steps need more is refused when it is planned. No part of
    the identity."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Floating-point type of the forward and backward passes; parameters are fp32."""
    compile: bool = False
    """Pass the model, and on GPUs Muon's Newton-Schulz in every arm that has one, through `torch.compile`: faster there
    after a minute or so of compilation, which needs a C compiler, and on CPUs one for C++. AdamW is fused on GPUs
    already; other rivals and optimizers by reference step as they are. Changes the order of float sums only, not the
    identity."""
    activation_checkpointing: bool = False
    """Keep of each block only its input, and compute the rest again for the backward pass: the same bits in a third
    more time, with the activations of one block at a time."""
    seed: int = Field(42, ge=0)
    """Of all four random streams (see `seeds`). A sweep takes it from its list of seeds."""
    seeds: SeedsConfig = SeedsConfig()
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each of several workers holds: the whole model (`ddp`), or its share of weights, gradients and optimizer
    state (`fsdp`), for models larger than one GPU. Changes the order of float sums only, not the identity."""
    reduction: Literal["ddp", "tree"] = "ddp"
    """How gradients are summed: `ddp` is fast; `tree` gives the same bits at every world size, and needs micro_batches
    to be a power of two that the workers divide."""
    distribute: Literal["auto", "owner", "replicated"] = "auto"
    """With several workers: each computes the updates of its own matrices (`owner`), or all of all (`replicated`);
    `auto` measures which is faster."""
    check_replicas_every: int = Field(100, ge=0)
    """Compare the workers' weights each so many optimizer steps; 0 never. Under `fsdp` each weight is there once, and
    nothing is compared."""
    tracking: TrackingConfig = TrackingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    spike: SpikeConfig = SpikeConfig()

    EXECUTION: ClassVar[frozenset[str]] = frozenset({
        "tracking", "micro_batches", "allow_epochs", "compile", "activation_checkpointing", "parallel", "reduction",
        "distribute", "check_replicas_every", "checkpoint", "spike",
    })  # fmt: skip
    """Fields that say how a run is carried out and watched, not what it computes (`science` knows two exceptions)."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.micro_batches != "auto" and self.batch_size % self.micro_batches:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of micro_batches {self.micro_batches}")
        return self

    @model_validator(mode="after")
    def _masks_are_known(self) -> Self:
        if self.model.dropout and self.micro_batches == "auto":
            raise ValueError(
                f"micro_batches auto goes by the device, and dropout {self.model.dropout} draws masks for each "
                "micro-batch, which decide the result; set micro_batches to a number"
            )
        return self

    @model_validator(mode="after")
    def _tree_is_binary(self) -> Self:
        if self.reduction == "tree" and self.micro_batches != "auto" and self.micro_batches & (self.micro_batches - 1):
            raise ValueError(f"reduction tree needs micro_batches to be a power of two, got {self.micro_batches}")
        return self

    @model_validator(mode="after")
    def _shares_are_possible(self) -> Self:
        if self.parallel == "ddp":
            return self
        if self.reduction == "tree":
            raise ValueError("parallel fsdp keeps no whole gradients, which reduction tree adds up; set reduction: ddp")
        if self.distribute == "replicated":
            raise ValueError("parallel fsdp computes each update once, by its owner; set distribute: owner or auto")
        if isinstance(self.optimizer, ReferenceConfig):
            raise ValueError(
                f"parallel fsdp deals matrices to workers, and {self.optimizer.reference} may need all at once; "
                "set parallel: ddp"
            )
        return self

    @model_validator(mode="after")
    def _hf_can(self) -> Self:
        if self.model.hf is None:
            return self
        longest = hf.max_positions(self.model.hf_config) if self.model.hf_config else None
        if longest is not None and self.data.seq_len > longest:
            raise ValueError(f"data.seq_len {self.data.seq_len}: {self.model.hf} has {longest} positions; lower it")
        return self

    def check_workers(self, workers: int) -> None:
        """Raises ValueError unless the micro-batches can be dealt out evenly to `workers`."""
        if self.parallel == "fsdp" and workers > self.model.num_layers:
            raise ValueError(
                f"parallel fsdp deals {self.model.num_layers} layers to {workers} workers, some of which would have "
                f"none; use at most {self.model.num_layers}"
            )
        if self.micro_batches == "auto":
            if not self.micro_batch_choices(workers):
                what = "power of two" if self.reduction == "tree" else "number"
                raise ValueError(
                    f"micro_batches auto finds no {what} that divides batch_size {self.batch_size} and that {workers} "
                    "workers divide; change workers or batch_size"
                )
            return
        if self.reduction == "tree" and self.micro_batches % workers:
            raise ValueError(
                f"reduction tree deals {self.micro_batches} micro-batches to {workers} workers; "
                f"set micro_batches to a power of two that {workers} divides"
            )
        if self.model.dropout and self.micro_batches < workers:
            raise ValueError(
                f"dropout masks are drawn for each micro-batch, and {self.micro_batches} for {workers} workers would "
                f"give other masks than one worker has; set micro_batches to a multiple of {workers}"
            )
        parts = max(self.micro_batches, workers)
        if parts % workers or parts % self.micro_batches or self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} in {self.micro_batches} micro-batches does not divide over "
                f"{workers} workers; choose numbers of which each divides the next"
            )

    def micro_batch_choices(self, workers: int) -> list[int]:
        """What `micro_batches: auto` may take for so many workers, fewest first."""
        even = (n for n in range(workers, self.batch_size + 1, workers) if self.batch_size % n == 0)
        return [n for n in even if self.reduction == "ddp" or n & (n - 1) == 0]

    def most_micro_batches(self, workers: int = 1) -> int:
        """`micro_batches`, or the most that `auto` may take."""
        return self.micro_batch_choices(workers)[-1] if self.micro_batches == "auto" else self.micro_batches

    def has_spectra(self, step: int) -> bool:
        """Whether `spectra` rows are written once `step` optimizer steps are done."""
        every = self.tracking.spectra_every
        return step in (0, self.steps) or self.milestone(step) is not None or (every is not None and step % every == 0)

    def milestone(self, step: int) -> int | None:
        """The greatest of the checkpoint milestones, in tokens, that is reached by `step` optimizer steps first."""
        before, tokens = (step - 1) * self.tokens_per_step, step * self.tokens_per_step
        reach = tokens + (self.tokens_per_step - 1) // 2 if step == self.steps else tokens
        return max((target for target in self.checkpoint.milestones if before < target <= reach), default=None)

    @property
    def tokens_per_step(self) -> int:
        """Training tokens an optimizer step."""
        return self.batch_size * self.data.seq_len

    def stream_seed(self, stream: Literal["init", "data", "noise", "dropout"]) -> int:
        """Seed of one stream: its own where set apart, else the run's."""
        own: int | None = getattr(self.seeds, stream)
        return self.seed if own is None else own

    def science(self) -> dict[str, Any]:
        """The fields that decide the result, defaults filled in, as plain JSON values."""
        decides = {"spike"} if self.spike.action == "end" or self.spike.nonfinite == "skip" else set()
        if self.model.dropout:
            decides.add("micro_batches")  # dropout masks are drawn for each
        science = self.model_dump(mode="json", exclude=set(self.EXECUTION - decides))
        if self.data.corpus_sha256 is not None:
            science["data"]["corpus"] = "sha256"  # the content is the identity, not where it lies
        if self.model.hf is not None:
            for name in ("hf", "revision", "hf_sizes"):
                del science["model"][name]  # as with the corpus
        if isinstance(self.optimizer, ReferenceConfig):
            del science["optimizer"]["reference"]  # as here
        return science | {"schema": SCHEMA}

    def identity(self) -> Identity:
        """What the run is called, and those that differ from it in the seed alone."""
        return Identity(self.arm_label, self.science())

    @property
    def run_id(self) -> str:
        """Readable and unique to the science: `orthonoise-a0.001-s42-3f9a1c07`."""
        return self.identity().run_id(self.seed)

    @property
    def arm_id(self) -> str:
        """The same for runs that differ only in seed: `orthonoise-a0.001-91bc22d0`."""
        return self.identity().arm_id

    @property
    def arm_label(self) -> str:
        """Optimizer, alpha, and the parameters that differ from their defaults: `orthonoise-a0.001-lr0.02`."""
        optimizer = self.optimizer
        parts: list[str] = [optimizer.name]
        for field, prefix in _LABELLED.items():
            value = getattr(optimizer, field, None)
            if value is not None and (optimizer.is_set(field) or (field == "alpha" and isinstance(value, float))):
                parts.append(f"{prefix}{value:g}" if isinstance(value, float) else f"{prefix}{value}")
        return "-".join(parts).replace("+", "")  # 1e+30: a run id is part of object names


_LABELLED = {
    "profile": "", "gate": "", "alpha": "a", "rank_threshold": "rt", "anneal": "", "noise_norm": "",
    "lr": "lr", "embedding_lr": "elr",
}  # fmt: skip
