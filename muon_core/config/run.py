"""What a run is: immutable configurations, their presets, and the identity derived from them. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from muon_core.optim.profiles import (
    Adjust,
    Conventions,
    Decay,
    Dtype,
    MomentumKind,
    Normalization,
    Orthogonalizer,
    Products,
    Profile,
    ScaleOn,
    fill,
)  # fmt: skip

SCHEMA = 1  # raised when the meaning of a field changes, so that old and new runs never share an identity


class Config(BaseModel):
    """Immutable, rejects unknown keys, documents a field by the string below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`, validated again (pydantic's `model_copy` would not)."""
        return type(self).model_validate(dict(self) | changes)


class ModelConfig(Config):
    """Shape of the decoder-only transformer."""

    d_model: int = Field(64, gt=0)
    """Width of the residual stream."""
    num_layers: int = Field(4, gt=0)
    num_heads: int = Field(4, gt=0)
    """Query heads; `d_model / num_heads` is the head size, an even number."""
    num_kv_heads: int = Field(2, gt=0)
    """Key/value heads; divides `num_heads` (grouped-query attention)."""
    d_ff: int = Field(256, gt=0)
    """Width of the squared-ReLU MLP."""
    vocab_size: int = Field(1024, ge=257)
    """Tokens of the byte-level BPE: 256 bytes, one end-of-text, the rest merges."""
    rope_base: float = Field(10_000.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} over num_heads {self.num_heads} must give an even head size (RoPE turns pairs)"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        return self


class DataConfig(Config):
    """Which text, and how it is cut."""

    corpus: str = "stdlib"
    """`stdlib`: the Python standard library's own source, or a path to a text file or a folder of text files."""
    corpus_sha256: str | None = None
    """Content hash of a corpus given by path; filled in when the run is planned; its identity, not the path."""
    seq_len: int = Field(128, gt=1)
    """Tokens a sequence predicts; a window reads one more."""
    validation_share: float = Field(0.05, gt=0, lt=1)
    """Share of the files kept for validation, chosen by a stable hash of their relative path, none cut in two."""
    validation_tokens: int = Field(32_768, gt=0)
    """Tokens evaluated at each evaluation, spread evenly over the validation files."""


_Beta = Annotated[float, Field(ge=0, lt=1)]
# A list is how JSON writes a tuple; strict validation after a `before` validator would not know it.
Betas = Annotated[
    tuple[_Beta, _Beta], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]


class _Vectors(Config):
    """AdamW for what is no hidden matrix (embeddings, norms, biases): the same settings in every arm."""

    embedding_lr: float = Field(0.08, gt=0)
    """Learning rate of embeddings, norms and other one-dimensional parameters; each arm has its own optimum, and the
    defaults are those of the tiny preset (docs/tuning.md)."""
    adam_betas: Betas = (0.9, 0.95)
    adam_eps: float = Field(1e-10, gt=0)
    clipping: Literal["none", "adamw_only", "all"] = "none"
    """Whose gradients are scaled down to `max_grad_norm`: `adamw_only` those AdamW steps, by their own norm; `all`
    every gradient by the norm of all, under Muon with a warning: it reweights the steps in its momentum."""
    max_grad_norm: float = Field(1.0, gt=0)
    """L2 norm of the gradients, together, above which `clipping` acts."""


class AdamWConfig(_Vectors):
    """AdamW on the hidden matrices too."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(3e-3, gt=0)
    """Learning rate of the hidden matrices."""
    embedding_lr: float = Field(0.02, gt=0)
    """Learning rate of embeddings, norms and other one-dimensional parameters."""
    weight_decay: float = Field(0.0, ge=0)


_LITERAL = {"momentum_kind": "sum", "nesterov": False, "orthogonalizer": "svd", "noise_norm": "as_seed"}
"""What mode `as_seed` cannot be without, where a config has it."""


class MuonConfig(_Vectors):
    """Muon with the conventions of a named profile, each of which can be set apart."""

    name: Literal["muon"] = "muon"
    profile: Profile = "torch"
    """Whose conventions fill in the knobs from `momentum_kind` to `ns_dtype` that are not given; see
    `muon_core.optim.profiles`."""
    lr: float = Field(0.02, gt=0)
    """Learning rate of the hidden matrices."""
    momentum: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    """Weights shrink by `lr * weight_decay` a step (see `decay`)."""
    momentum_kind: MomentumKind = "ema"
    """`ema` B = mu B + (1 - mu) g, or `sum` B = mu B + g."""
    nesterov: bool = True
    """Orthogonalize the momentum one step ahead: mu B + (1 - mu) g, or g + mu B under `sum`."""
    normalization: Normalization = "clamped"
    """What the Frobenius norm becomes before it divides: `clamped` max(norm, 1e-7), `added` norm + 1e-7, `margin_1`
    1.01 norm + 1e-7, `margin_2` 1.02 norm + 1e-6."""
    orthogonalizer: Orthogonalizer = "quintic"
    """`quintic` five steps of one polynomial, `polar_express` five of different ones, `simple12` twelve that converge,
    `svd` the polar factor."""
    products: Products = "fused"
    """Where an iteration rounds: `fused` multiply-adds, or `plain` products and sums."""
    adjust: Adjust = "original"
    """Scale: `original` sqrt(max(1, rows/cols)), `match_rms_adamw` 0.2 sqrt(max(rows, cols)), or `none`."""
    scale_on: ScaleOn = "lr"
    """Whether the scale multiplies the learning rate, or the update in its own dtype."""
    decay: Decay = "decoupled"
    """`none` allows no `weight_decay`."""
    ns_dtype: Dtype = "bf16"
    """Arithmetic of the orthogonalizer but for `svd`, which is always fp32. On a CPU without bf16 products, `fp32` is
    ten times faster."""
    attention_blocks: Literal["whole", "merge_qkvo", "per_head"] = "whole"
    """What is orthogonalized as one: each attention matrix, the four of a layer together, or each head's part."""

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, fields: Any) -> Any:
        return fill(fields) if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _decay_is_allowed(self) -> Self:
        if self.decay == "none" and self.weight_decay:
            raise ValueError(f"weight_decay {self.weight_decay} under decay none; set decay to decoupled, or remove it")
        return self

    @model_validator(mode="after")
    def _svd_is_fp32(self) -> Self:
        if self.orthogonalizer == "svd" and self.ns_dtype != "fp32":
            raise ValueError(f"ns_dtype {self.ns_dtype} under orthogonalizer svd, which is fp32 only; set it to fp32")
        return self

    @model_validator(mode="after")
    def _as_seed_is_literal(self) -> Self:
        for name, value in _LITERAL.items() if getattr(self, "mode", None) == "as_seed" else ():
            if (found := getattr(self, name, value)) != value:
                raise ValueError(
                    f"{name} {found} under mode as_seed, which has {value}; remove what sets it, or the mode"
                )
        return self

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`; a new profile or mode brings all its conventions that are not changed along."""
        fields = dict(self)
        if not changes.keys().isdisjoint(("profile", "mode")):
            derived = {"profile", "noise_norm", "rank_threshold", *Conventions.__slots__}
            fields = {name: value for name, value in fields.items() if name not in derived}
        return type(self).model_validate(fields | changes)


class _PerturbedMuon(MuonConfig):
    """Muon whose orthogonalizer sees a perturbed momentum; the stored one stays clean."""

    alpha: float = Field(0.05, ge=0)
    """Noise norm as a share of the momentum's norm (see `noise_norm`)."""
    anneal: Literal["none", "exponential", "linear"] = "none"
    """`exponential` alpha * 0.993^step, `linear` down over 1,000 steps; both stop at alpha / 10."""
    rank_threshold: float = Field(1.0, gt=0, le=1)
    """Noise is added while effective rank / min(rows, cols) of the Nesterov momentum is below it; 1.0: always."""
    gate_metric: Literal["erank", "nuclear"] = "erank"
    """Effective rank for the threshold: `erank` exp(entropy of the singular values), or `nuclear`
    (||M||_* / ||M||_F)^2, which needs no singular values."""
    noise_norm: Literal["fro", "spectral", "as_seed"] = "fro"
    """Which norm of the noise equals alpha times the same norm of the momentum; `as_seed`: the draw, times alpha times
    the gradient's Frobenius norm."""
    start_step: int = Field(0, ge=0)
    """First optimizer step with noise; annealing counts from step 0 all the same."""


class _NoisyMuon(_PerturbedMuon):
    """Muon with random noise, well-posed or as first written."""

    mode: Literal["well_posed", "as_seed"] = "well_posed"
    """`as_seed`: noise and three cubic steps (none under isotropic) are written into a sum momentum, whose polar factor
    is the update. Defaults then are profile `as_seed`, noise_norm `as_seed` and rank_threshold 0.5."""
    wide: Literal["transpose", "raise"] = "transpose"
    """As_seed orthonoise of wide matrices, whose QR has the wrong shape: take the transpose's, or end the run."""
    on_nonfinite: Literal["fail", "sgd_fallback"] = "fail"
    """As_seed, a momentum that is no longer finite: end the run, or apply the raw gradient from then on."""
    rng: Literal["counter"] = "counter"
    """Draws are a function of noise seed, parameter name and step."""

    @model_validator(mode="before")
    @classmethod
    def _fill_as_seed(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("mode") == "as_seed":
            return {"noise_norm": "as_seed", "rank_threshold": 0.5} | fields
        return fields

    @model_validator(mode="after")
    def _switches_act(self) -> Self:
        """One that changes nothing would train the same run twice, under two names."""
        if self.mode == "well_posed":
            _refuse_set(self, "mode well_posed", wide="transpose", on_nonfinite="fail")
        elif isinstance(self, IsotropicConfig):
            _refuse_set(self, "isotropic, whose draws have any shape", wide="transpose")
        return self


class OrthoNoiseConfig(_NoisyMuon):
    """Noise is a Haar-distributed (semi-)orthogonal matrix."""

    name: Literal["orthonoise"] = "orthonoise"  # type: ignore[assignment]


class IsotropicConfig(_NoisyMuon):
    """Control: Gaussian noise of the same norm."""

    name: Literal["isotropic"] = "isotropic"  # type: ignore[assignment]


class DampedConfig(_PerturbedMuon):
    """Control without chance: U diag(s / sqrt(s^2 + eps^2)) V', the mean update of the noise arms within a few per cent
    where a matrix is tall or wide, within 10 to 17 % where it is square."""

    name: Literal["damped"] = "damped"  # type: ignore[assignment]


class NolahConfig(MuonConfig):
    """Muon of a gated gradient; large gradient entries shrink the momentum, and a sigmoid weighs its entries."""

    name: Literal["nolah"] = "nolah"  # type: ignore[assignment]
    gate: Literal["tanh", "sigmoid", "relu"] = "tanh"
    """What the gradient g becomes: tanh(g)|g|, sigmoid(g) g, or max(g, 0)."""
    mode: Literal["well_posed", "as_seed"] = "well_posed"
    """`well_posed` gates and weighs entries in units of their matrix's root mean square and stores a clean momentum;
    `as_seed` takes them as they are, stores the shrunken momentum, and uses profile `as_seed`."""
    on_nonfinite: Literal["fail", "sgd_fallback"] = "fail"
    """As_seed, a momentum that is no longer finite: end the run, or apply the raw gradient from then on."""

    @model_validator(mode="after")
    def _switches_act(self) -> Self:
        if self.mode == "well_posed":
            _refuse_set(self, "mode well_posed", on_nonfinite="fail")
        return self


def _refuse_set(config: MuonConfig, where: str, **defaults: str) -> None:
    for name, default in defaults.items():
        if (found := getattr(config, name)) != default:
            raise ValueError(f"{name} {found} changes nothing under {where}; remove it")


OptimizerConfig = Annotated[
    AdamWConfig | MuonConfig | OrthoNoiseConfig | IsotropicConfig | DampedConfig | NolahConfig,
    Field(discriminator="name"),
]
OPTIMIZERS: dict[str, type[_Vectors]] = {
    "adamw": AdamWConfig,
    "muon": MuonConfig,
    "orthonoise": OrthoNoiseConfig,
    "isotropic": IsotropicConfig,
    "damped": DampedConfig,
    "nolah": NolahConfig,
}


class ScheduleConfig(Config):
    """Trapezoid: linear warm-up, flat, linear cool-down."""

    warmup_steps: int = Field(10, ge=0)
    cooldown: float = Field(0.4, ge=0, le=1)
    """Share of the steps, at the end, over which the rate falls linearly."""
    final: float = Field(0.1, ge=0, le=1)
    """Multiplier reached at the last step."""


class SeedsConfig(Config):
    """Streams set apart from the run's seed; None follows it."""

    init: int | None = Field(None, ge=0)
    data: int | None = Field(None, ge=0)
    noise: int | None = Field(None, ge=0)
    dropout: int | None = Field(None, ge=0)


class TrackingConfig(Config):
    """What is measured when, in optimizer steps. No part of a run's identity: measuring changes no result."""

    log_every: int = Field(1, gt=0)
    """A `train` row each so many steps."""
    eval_every: int = Field(20, gt=0)
    """A `val` row each so many steps, and at step 0 and the last."""
    track_every: int = Field(20, gt=0)
    """`layers` rows each so many steps, and at the last."""
    spectra_every: int | None = Field(None, gt=0)
    """`spectra` rows (all singular values), with `layers` rows beside them, each so many steps; they are written at
    checkpoint milestones and at the last step in any case, and for None only there."""
    flush_every_s: float = Field(15.0, gt=0)
    """Rows become readable after at most so many seconds; each time costs a small object for every table."""


class CheckpointConfig(Config):
    """When a run's state is saved to the results store. No part of a run's identity."""

    every_s: float | None = Field(60.0, gt=0)
    """Save `latest` after so many seconds; None never by the clock."""
    every_steps: int | None = Field(None, gt=0)
    """Save `latest` each so many optimizer steps; None never by the step."""
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Token counts at which a checkpoint is kept for good, at the first step that reaches them."""
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
    optimizer: OptimizerConfig = MuonConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    steps: int = Field(200, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(16, gt=0)
    """Sequences an optimizer step, over all workers."""
    micro_batches: int = Field(1, gt=0)
    """Parts a step's batch is cut into, over all workers. Changes the order of float sums only, not the identity."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the forward and backward passes; parameters are fp32."""
    compile: bool = False
    """Pass the model through `torch.compile`: faster on GPUs after a minute or so of compilation, for which CPUs need
    a C++ compiler. Changes the order of float sums only, not the identity."""
    seed: int = Field(42, ge=0)
    seeds: SeedsConfig = SeedsConfig()
    reduction: Literal["ddp", "tree"] = "ddp"
    """How gradients are summed: `ddp` is fast; `tree` gives the same bits at every world size, and needs micro_batches
    to be a power of two that the workers divide."""
    distribute: Literal["auto", "owner", "replicated"] = "auto"
    """With several workers: each computes the updates of its own matrices (`owner`), or all of all (`replicated`);
    `auto` measures which is faster."""
    check_replicas_every: int = Field(100, ge=0)
    """Compare the workers' weights each so many optimizer steps; 0 never."""
    tracking: TrackingConfig = TrackingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    spike: SpikeConfig = SpikeConfig()

    EXECUTION: ClassVar[frozenset[str]] = frozenset({
        "tracking", "micro_batches", "compile", "reduction", "distribute", "check_replicas_every", "checkpoint", "spike"
    })  # fmt: skip
    """Fields that say how a run is carried out and watched, not what it computes (`science` knows two exceptions)."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.micro_batches:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of micro_batches {self.micro_batches}")
        return self

    @model_validator(mode="after")
    def _tree_is_binary(self) -> Self:
        if self.reduction == "tree" and self.micro_batches & (self.micro_batches - 1):
            raise ValueError(f"reduction tree needs micro_batches to be a power of two, got {self.micro_batches}")
        return self

    def check_workers(self, workers: int) -> None:
        """Raises ValueError unless the micro-batches can be dealt out evenly to `workers`."""
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

    def has_spectra(self, step: int) -> bool:
        """Whether `spectra` rows are written once `step` optimizer steps are done."""
        every = self.tracking.spectra_every
        return step == self.steps or self.reaches_milestone(step) or (every is not None and step % every == 0)

    def reaches_milestone(self, step: int) -> bool:
        """Whether `step` optimizer steps are the first to reach one of the checkpoint milestones."""
        before, tokens = (step - 1) * self.tokens_per_step, step * self.tokens_per_step
        return any(before < target <= tokens for target in self.checkpoint.milestones)

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
        return science | {"schema": SCHEMA}

    @property
    def run_id(self) -> str:
        """Readable and unique to the science: `orthonoise-a0.001-s42-3f9a1c07`."""
        return f"{self.arm_label}-s{self.seed}-{_short_hash(self.science())}"

    @property
    def arm_id(self) -> str:
        """The same for runs that differ only in seed: `orthonoise-a0.001-91bc22d0`."""
        science = {key: value for key, value in self.science().items() if key not in ("seed", "seeds")}
        return f"{self.arm_label}-{_short_hash(science)}"

    @property
    def arm_label(self) -> str:
        """Optimizer, alpha, and the parameters that differ from their defaults: `orthonoise-a0.001-lr0.02`."""
        optimizer = self.optimizer
        parts: list[str] = [optimizer.name]
        for field, prefix in _LABELLED.items():
            value = getattr(optimizer, field, None)
            if value is not None and (field == "alpha" or value != type(optimizer).model_fields[field].default):
                parts.append(f"{prefix}{value:g}" if isinstance(value, float) else f"{prefix}{value}")
        return "-".join(parts).replace("+", "")  # 1e+30: a run id is part of object names


_LABELLED = {
    "profile": "", "gate": "", "alpha": "a", "rank_threshold": "rt", "anneal": "", "noise_norm": "",
    "lr": "lr", "embedding_lr": "elr",
}  # fmt: skip


def _short_hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:8]


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, shortest floats; raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


# Partial run configs by name. `tiny` runs on one CPU core; the others are the sizes the comparisons are published at.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "88m": {
        "model": {
            "d_model": 512, "num_layers": 22, "num_heads": 8, "num_kv_heads": 4, "d_ff": 2048, "vocab_size": 49_152
        },
        "data": {"seq_len": 2048},
        "batch_size": 8,
        "precision": "bf16",
    },
    "350m": {
        "model": {
            "d_model": 1024, "num_layers": 26, "num_heads": 16, "num_kv_heads": 8, "d_ff": 4096, "vocab_size": 49_152
        },
        "data": {"seq_len": 2048},
        "batch_size": 64,
        "precision": "bf16",
    },
    "1b": {
        "model": {
            "d_model": 2048, "num_layers": 20, "num_heads": 16, "num_kv_heads": 4, "d_ff": 8192, "vocab_size": 49_152
        },
        "data": {"seq_len": 2048},
        "batch_size": 128,
        "precision": "bf16",
    },
}  # fmt: skip
