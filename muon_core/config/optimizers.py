"""The optimizers a run can have, each with its own parameters: what a field means, its range and its default.

A config class is all that is said of an optimizer without torch: its name, its parameters and, in `builder`, the
function that builds it. `OPTIMIZERS` holds every class that has a name of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from muon_core.config.base import Config
from muon_core.config.profiles import (
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
)

_Beta = Annotated[float, Field(ge=0, lt=1)]
# A list is how JSON writes a tuple; strict validation after a `before` validator would not know it.
Betas = Annotated[
    tuple[_Beta, _Beta], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]


class OptimizerConfig(Config):
    """An optimizer of the hidden matrices, and the settings of AdamW, which steps all else (embeddings, norms, biases)
    in every arm."""

    builder: ClassVar[str]
    """`module:function` that makes it of named parameters, its config and a `Setting` (`muon_core.optim.build`)."""
    decoupled: ClassVar[bool] = True
    """Whether weights shrink by `lr * weight_decay` apart from the update, which is then shown without it."""
    name: str
    """What sweep files, run ids and figures call it."""
    embedding_lr: float = Field(0.08, gt=0)
    """Learning rate of embeddings, norms and other one-dimensional parameters, which AdamW steps in every arm; each arm
    has its own optimum, and the defaults are those of the tiny preset (docs/tuning.md)."""
    adam_betas: Betas = (0.9, 0.95)
    """What AdamW keeps of its means of the gradient and of its square each step (arXiv 1711.05101)."""
    adam_eps: float = Field(1e-10, gt=0)
    """Added to the root of the mean square that divides AdamW's step."""
    clipping: Literal["none", "adamw_only", "all"] = "none"
    """Whose gradients are scaled down to `max_grad_norm`: `adamw_only` those AdamW steps, by their own norm; `all`
    every gradient by the norm of all, under Muon with a warning: it reweights the steps in its momentum."""
    max_grad_norm: float = Field(1.0, gt=0)
    """L2 norm of the gradients, together, above which `clipping` acts."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Register a class with a name; one that derives from it and has none of its own is a part of others."""
        if not cls.model_fields["name"].is_required():
            OPTIMIZERS.setdefault(cls.model_fields["name"].default, cls)

    def is_set(self, field: str) -> bool:
        """Whether a field has another value than it has by itself."""
        return bool(getattr(self, field) != type(self).model_fields[field].default)


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {}
"""Config class by name, in the order in which they are defined."""


class AdamWConfig(OptimizerConfig):
    """AdamW on the hidden matrices too."""

    builder = "muon_core.optim.build:adamw"
    name: Literal["adamw"] = "adamw"
    lr: float = Field(3e-3, gt=0)
    """Learning rate of the hidden matrices."""
    embedding_lr: float = Field(0.02, gt=0)
    """Learning rate of embeddings, norms and other one-dimensional parameters, which AdamW steps in every arm; each arm
    has its own optimum, and the defaults are those of the tiny preset (docs/tuning.md)."""
    weight_decay: float = Field(0.0, ge=0)
    """The hidden matrices shrink by `lr * weight_decay` a step, nothing else decays."""


class _NoMuon(OptimizerConfig):
    """What the rivals that are no Muon share."""

    embedding_lr: float = Field(0.04, gt=0)
    """Learning rate of embeddings, norms and other one-dimensional parameters, which AdamW steps in every arm; each arm
    has its own optimum, and the defaults are those of the tiny preset (docs/tuning.md)."""
    weight_decay: float = Field(0.0, ge=0)
    """The hidden matrices shrink by `lr * weight_decay` a step, nothing else decays."""


class LionConfig(_NoMuon):
    """Lion (arXiv 2302.06675): every entry moves by the learning rate, by the sign of a momentum."""

    builder = "muon_core.optim.build:lion"
    name: Literal["lion"] = "lion"
    lr: float = Field(2e-3, gt=0)
    """Learning rate of the hidden matrices."""
    betas: Betas = (0.9, 0.99)
    """What Lion's momentum keeps a step: the first where its sign is taken, the second where it is stored."""


class SOAPConfig(_NoMuon):
    """SOAP (arXiv 2409.11321): Adam in the eigenbases of Shampoo, of the rows and columns of gradients."""

    builder = "muon_core.optim.build:soap"
    name: Literal["soap"] = "soap"
    lr: float = Field(3e-3, gt=0)
    """Learning rate of the hidden matrices."""
    betas: Betas = (0.95, 0.95)
    """What SOAP keeps of its means a step: the first of the gradient, the second of its square and of the products that
    the bases are taken from."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the mean square that divides a step, in the rotated coordinates."""
    precondition_frequency: int = Field(10, gt=0)
    """Steps between two new bases."""
    max_precondition_dim: int = Field(10_000, gt=0)
    """Longest side of a matrix that is rotated; for a longer one it would take too long."""


class SGDConfig(_NoMuon):
    """Gradient descent with momentum, as torch.optim.SGD but for its decay."""

    builder = "muon_core.optim.build:sgd"
    name: Literal["sgd"] = "sgd"
    lr: float = Field(0.05, gt=0)
    """Learning rate of the hidden matrices."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """mu, the share of the momentum B that each step keeps: B = mu B + g."""
    nesterov: bool = True
    """Step by the momentum one step ahead, g + mu B."""


_LITERAL = {"momentum_kind": "sum", "nesterov": False, "orthogonalizer": "svd", "noise_norm": "as_seed"}
"""What mode `as_seed` cannot be without, where a config has it."""


class MuonConfig(OptimizerConfig):
    """Muon with the conventions of a named profile, each of which can be set apart."""

    builder = "muon_core.optim.build:muon"
    name: Literal["muon"] = "muon"
    profile: Profile = "torch"
    """The published Muon whose conventions fill in the parameters from `momentum_kind` to `ns_dtype` that are not given
    (Profiles in docs/parameters.md)."""
    lr: float = Field(0.02, gt=0)
    """Learning rate of the hidden matrices."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """mu, the share of the momentum B that each step keeps (see `momentum_kind`)."""
    weight_decay: float = Field(0.0, ge=0)
    """The hidden matrices shrink by `lr * weight_decay` a step, nothing else decays."""
    momentum_kind: MomentumKind = "ema"
    """How the gradient g enters the momentum: `ema` B = mu B + (1 - mu) g, or `sum` B = mu B + g."""
    nesterov: bool = True
    """Orthogonalize the momentum one step ahead: mu B + (1 - mu) g, or g + mu B under `sum`."""
    normalization: Normalization = "clamped"
    """What the Frobenius norm becomes before it divides: `clamped` max(norm, 1e-7), `added` norm + 1e-7, `margin_1`
    1.01 norm + 1e-7, `margin_2` 1.02 norm + 1e-6."""
    orthogonalizer: Orthogonalizer = "quintic"
    """How singular values are brought to 1: `quintic` five steps of one polynomial, `polar_express_1` and
    `polar_express_2` five of different ones (the paper's with 1 %, modded-nanogpt's with 2 % left for rounding),
    `simple12` twelve that converge, `svd` the polar factor."""
    products: Products = "fused"
    """Where an iteration rounds: `fused` multiply-adds, `plain` products and sums, or with a matrix that is
    `squared` and rounded before its factor."""
    adjust: Adjust = "original"
    """Scale of an update: `original` sqrt(max(1, rows/cols)), `match_rms_adamw` 0.2 sqrt(max(rows, cols)), or
    `none`."""
    scale_on: ScaleOn = "lr"
    """Whether the scale multiplies the learning rate, or the update in its own dtype."""
    decay: Decay = "decoupled"
    """Whether weights decay apart from the gradient (`decoupled`), or not at all: `none` allows no `weight_decay`."""
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
    """How alpha falls: `exponential` alpha * 0.993^step, `linear` over 1,000 steps; both stop at alpha / 10."""
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
    """What orthonoise under mode `as_seed` does with wide matrices, whose QR has the wrong shape: take the transpose's,
    or end the run."""
    on_nonfinite: Literal["fail", "sgd_fallback"] = "fail"
    """What follows a momentum that is no longer finite, under mode `as_seed`: end the run, or apply the raw gradient
    from then on."""
    rng: Literal["counter"] = "counter"
    """`counter`: draws are a function of the noise seed, the parameter's name and the step."""

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

    builder = "muon_core.optim.build:orthogonal_noise"
    name: Literal["orthonoise"] = "orthonoise"  # type: ignore[assignment]


class IsotropicConfig(_NoisyMuon):
    """Control: Gaussian noise of the same norm."""

    builder = "muon_core.optim.build:isotropic_noise"
    name: Literal["isotropic"] = "isotropic"  # type: ignore[assignment]


class DampedConfig(_PerturbedMuon):
    """Control without chance: U diag(s / sqrt(s^2 + eps^2)) V', the mean update of the noise arms within a few per cent
    where a matrix is tall or wide, within 10 to 17 % where it is square."""

    builder = "muon_core.optim.build:damped"
    name: Literal["damped"] = "damped"  # type: ignore[assignment]


class NolahConfig(MuonConfig):
    """Muon of a gated gradient; large gradient entries shrink the momentum, and a sigmoid weighs its entries."""

    builder = "muon_core.optim.build:nolah"
    name: Literal["nolah"] = "nolah"  # type: ignore[assignment]
    gate: Literal["tanh", "sigmoid", "relu"] = "tanh"
    """What the gradient g becomes: tanh(g)|g|, sigmoid(g) g, or max(g, 0)."""
    mode: Literal["well_posed", "as_seed"] = "well_posed"
    """`well_posed` gates and weighs entries in units of their matrix's root mean square and stores a clean momentum;
    `as_seed` takes them as they are, stores the shrunken momentum, and uses profile `as_seed`."""
    on_nonfinite: Literal["fail", "sgd_fallback"] = "fail"
    """What follows a momentum that is no longer finite, under mode `as_seed`: end the run, or apply the raw gradient
    from then on."""

    @model_validator(mode="after")
    def _switches_act(self) -> Self:
        if self.mode == "well_posed":
            _refuse_set(self, "mode well_posed", on_nonfinite="fail")
        return self


class _AdaptiveMuon(MuonConfig):
    """Muon whose updates are divided by the root of their own mean square over the steps."""

    beta2: float = Field(0.95, ge=0, lt=1)
    """What the mean square of the updates that divides them, by rows in normuon and by entries in adamuon, keeps of
    itself a step."""


class NorMuonConfig(_AdaptiveMuon):
    """NorMuon (arXiv 2510.05491): Muon with updates whose rows have one size over the steps."""

    builder = "muon_core.optim.build:normuon"
    name: Literal["normuon"] = "normuon"  # type: ignore[assignment]

    @model_validator(mode="after")
    def _neurons_are_rows(self) -> Self:
        if self.attention_blocks != "whole":
            raise ValueError(
                f"attention_blocks {self.attention_blocks} under normuon, whose neurons are rows of whole matrices; "
                "remove it"
            )
        return self


class AdaMuonConfig(_AdaptiveMuon):
    """AdaMuon (arXiv 2507.11005): Muon of a momentum's signs, with entries of one size over the steps."""

    builder = "muon_core.optim.build:adamuon"
    name: Literal["adamuon"] = "adamuon"  # type: ignore[assignment]
    lr: float = Field(0.015, gt=0)
    """Learning rate of the hidden matrices."""
    profile: Profile = "moonlight"
    """The published Muon whose conventions fill in the parameters from `momentum_kind` to `ns_dtype` that are not given
    (Profiles in docs/parameters.md)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_moonlight(cls, fields: Any) -> Any:
        return {"profile": "moonlight"} | fields if isinstance(fields, dict) else fields


class OddSetting(UserWarning):
    """About a valid setting that its author may not mean; a plan says the same of a sweep, before it is paid for."""


def odd_clipping(config: OptimizerConfig) -> str:
    """What is odd about clipping the gradients of a Muon too."""
    return (
        f"clipping all at norm {config.max_grad_norm:g} under {config.name}: Muon's updates have a fixed size, and "
        "clipping only reweights the steps in its momentum; adamw_only clips where it matters"
    )


def _refuse_set(config: MuonConfig, where: str, **defaults: str) -> None:
    for name, default in defaults.items():
        if (found := getattr(config, name)) != default:
            raise ValueError(f"{name} {found} changes nothing under {where}; remove it")
