"""From a config to the optimizers of a model: one for the hidden matrices, AdamW for everything else.

A Muon is put together from functions: the momentum rule, the partition, the perturbation, the orthogonalizer, the scale
and how updates are shared out. A variant is another function in one of these places, so all of them share one `step()`,
and what two arms differ in can be read off here. The class of a config names the function that builds its optimizer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from muon_core.compiled import Compiled, pays
from muon_core.config.optimizers import (
    AdaMuonConfig,
    AdamWConfig,
    DampedConfig,
    IsotropicConfig,
    LionConfig,
    MuonConfig,
    NolahConfig,
    NorMuonConfig,
    OddSetting,
    OptimizerConfig,
    OrthoNoiseConfig,
    SGDConfig,
    SOAPConfig,
    odd_clipping,
)
from muon_core.config.reference import ReferenceConfig
from muon_core.optim.adamw import AdamW, fused
from muon_core.optim.as_seed import AsSeed, qr, sgd_where_not_finite
from muon_core.optim.blocks import Attention, Partition, merge_qkvo, per_head, whole
from muon_core.optim.damped import Damped, top_block
from muon_core.optim.lion import Lion
from muon_core.optim.momentum import MOMENTA
from muon_core.optim.muon import Muon, keep, match_rms_adamw, original, scale_lr, scale_update, unscaled
from muon_core.optim.newton_schulz import COEFFICIENTS, DIVISORS, ITERATIONS, iterations, newton_schulz, polar_factor
from muon_core.optim.nolah import Project, as_they_are, braked, gated, root_mean_square
from muon_core.optim.optimizers import Optimizers
from muon_core.optim.param_groups import PATTERNS, Group, NamedParameters, assign
from muon_core.optim.perturb import Gate, Noise, isotropic, orthogonal
from muon_core.optim.second_moment import of_signs, per_entry, per_neuron
from muon_core.optim.sgd import SGD
from muon_core.optim.sharding import choose_distribution
from muon_core.optim.soap import SOAP
from muon_core.stopwatch import Stopwatch

ADJUSTMENTS: dict[str, Callable[[int, int], float]] = {
    "original": original, "match_rms_adamw": match_rms_adamw, "none": unscaled,
}  # fmt: skip
SCALE_ON = {"lr": scale_lr, "update": scale_update}
NS_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Distribute = Literal["auto", "owner", "replicated"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What an optimizer depends on beside its config."""

    noise_seed: int
    head_size: int | None = None
    """Of the model's attention; needed by `per_head` alone."""
    attention: Attention | None = None
    """Its matrices, where they are not named as in our own model; for `per_head` and `merge_qkvo`."""
    distribute: Distribute = "auto"
    compile: bool = False
    """Newton-Schulz through torch.compile."""


def adamw(params: NamedParameters, config: AdamWConfig, setting: Setting) -> AdamW:
    """AdamW on the hidden matrices."""
    return AdamW(
        params,
        lr=config.lr,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=fused(params),
    )


def lion(params: NamedParameters, config: LionConfig, setting: Setting) -> Lion:
    """Lion."""
    return Lion(params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def soap(params: NamedParameters, config: SOAPConfig, setting: Setting) -> SOAP:
    """SOAP."""
    return SOAP(
        params,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        precondition_frequency=config.precondition_frequency,
        max_precondition_dim=config.max_precondition_dim,
    )


def sgd(params: NamedParameters, config: SGDConfig, setting: Setting) -> SGD:
    """Gradient descent."""
    return SGD(
        params, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
    )


def muon(params: NamedParameters, config: MuonConfig, setting: Setting, **functions: Any) -> Muon:
    """Muon with the conventions of the config; `functions` replace some."""
    if functions.get("store_perturbed") and setting.distribute == "owner":
        raise ValueError("distribute owner: as_seed writes into the momentum of every rank; use auto or replicated")
    chosen: dict[str, Any] = {
        "rule": MOMENTA[config.momentum_kind],
        "partition": _partition(config, setting),
        "orthogonalize": orthogonalizer(config, compiled=setting.compile),
        "scale": ADJUSTMENTS[config.adjust],
        "scale_on": SCALE_ON[config.scale_on],
    }
    built = Muon(
        params,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        **chosen | functions,
    )
    if not built.store_perturbed:  # what is stored must be computed on every rank
        step = getattr(config, "start_step", 0)  # the first with noise, which costs an owner its time, too
        built.distribution = choose_distribution(
            setting.distribute, built.all_blocks, lambda probe: built.direct(probe, ["probe"], step, list(probe))[1]
        )
        built.distribute = built.distribution.function(_update_dtype(config))
    return built


def orthogonalizer(config: MuonConfig, *, compiled: bool = False) -> Callable[[Tensor], Tensor]:
    """The function from momenta `(k, rows, cols)` to update directions that the config describes.

    `compiled`: Newton-Schulz; a singular value decomposition is one call either way.
    """
    if config.orthogonalizer == "svd":
        return polar_factor
    return partial(
        newton_schulz,
        coefficients=COEFFICIENTS[config.orthogonalizer],
        dtype=NS_DTYPES[config.ns_dtype],
        divisor=DIVISORS[config.normalization],
        iteration=ITERATIONS[config.products],
        iterate=Compiled(iterations) if compiled else iterations,
    )


def noisy(
    params: NamedParameters,
    config: OrthoNoiseConfig | IsotropicConfig,
    setting: Setting,
    *,
    shape_noise: Callable[[Tensor], Tensor],
    as_seed: Callable[[Tensor], Tensor],
    cubic: int,
) -> Muon:
    """Muon that orthogonalizes momentum plus noise."""
    if config.mode == "well_posed":
        noise = Noise(shape_noise, _gate(config), setting.noise_seed, config.noise_norm)
        return muon(params, config, setting, perturb=noise)
    fails = config.on_nonfinite == "fail"
    perturb = AsSeed(as_seed, _gate(config), setting.noise_seed, cubic, config.wide if cubic else "transpose", fails)
    return muon(
        params, config, setting, perturb=perturb, store_perturbed=True, repair=keep if fails else sgd_where_not_finite
    )


def orthogonal_noise(params: NamedParameters, config: OrthoNoiseConfig, setting: Setting) -> Muon:
    """Muon with Haar-distributed noise."""
    return noisy(params, config, setting, shape_noise=orthogonal, as_seed=qr, cubic=3)


def isotropic_noise(params: NamedParameters, config: IsotropicConfig, setting: Setting) -> Muon:
    """Muon with Gaussian noise."""
    return noisy(params, config, setting, shape_noise=isotropic, as_seed=isotropic, cubic=0)


def damped(params: NamedParameters, config: DampedConfig, setting: Setting) -> Muon:
    """Muon with the mean effect of noise."""
    return muon(
        params,
        config,
        setting,
        perturb=Damped(_gate(config), config.noise_norm),
        orthogonalize=partial(top_block, orthogonalize=orthogonalizer(config, compiled=setting.compile)),
    )


def nolah(params: NamedParameters, config: NolahConfig, setting: Setting) -> Muon:
    """Muon with NOLAH's gate, brake and projection."""
    rule = MOMENTA[config.momentum_kind]
    if config.mode == "well_posed":
        return muon(params, config, setting, rule=gated(rule, config.gate, root_mean_square), perturb=Project())
    fails = config.on_nonfinite == "fail"
    return muon(
        params,
        config,
        setting,
        rule=braked(gated(rule, config.gate, as_they_are)),
        perturb=Project(as_they_are, brakes=False, fails=fails),
        repair=keep if fails else sgd_where_not_finite,
    )


def normuon(params: NamedParameters, config: NorMuonConfig, setting: Setting) -> Muon:
    """Muon whose updates are divided row by row."""
    return muon(params, config, setting, adapt=partial(per_neuron, beta2=config.beta2))


def adamuon(params: NamedParameters, config: AdaMuonConfig, setting: Setting) -> Muon:
    """Muon of signs, whose updates are divided entry by entry."""
    return muon(
        params,
        config,
        setting,
        orthogonalize=partial(of_signs, orthogonalize=orthogonalizer(config, compiled=setting.compile)),
        adapt=partial(per_entry, beta2=config.beta2),
    )


def hidden_optimizer(params: NamedParameters, config: OptimizerConfig, setting: Setting) -> Optimizer:
    """The optimizer of the hidden matrices, by the function that the config's class names."""
    module, _, function = config.builder.partition(":")
    built: Optimizer = getattr(import_module(module), function)(params, config, setting)
    return built


def _gate(config: OrthoNoiseConfig | IsotropicConfig | DampedConfig) -> Gate:
    return Gate(config.alpha, config.anneal, config.rank_threshold, config.gate_metric, config.start_step)


def _partition(config: MuonConfig, setting: Setting) -> Partition:
    if config.attention_blocks == "per_head":
        if setting.head_size is None:
            raise ValueError("attention_blocks per_head needs the model's head size; give it, or use whole")
        return partial(per_head, head_size=setting.head_size, attention=setting.attention)
    return partial(merge_qkvo, attention=setting.attention) if config.attention_blocks == "merge_qkvo" else whole


def _update_dtype(config: MuonConfig) -> torch.dtype:
    return torch.float32 if config.orthogonalizer == "svd" else NS_DTYPES[config.ns_dtype]


def build_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    *,
    noise_seed: int,
    head_size: int | None = None,
    attention: Attention | None = None,
    distribute: Distribute = "auto",
    patterns: Sequence[tuple[str, Group]] = PATTERNS,
    shared: bool = False,
    compile: bool = False,
    stopwatch: Stopwatch | None = None,
) -> Optimizers:
    """Optimizers for all of a model's parameters.

    Args:
        distribute: of Muon's updates over ranks; `auto` is decided by a probe, on all of them.
        shared: ranks hold different parameters, whose gradients are clipped together.
        compile: Newton-Schulz, where that pays.
        stopwatch: counts what is spent on watching a step, and not on stepping, to tracking.
    Raises: ValueError if the patterns do not fit the model, or Muon is given something other than matrices.
    """  # all ranks
    groups = assign(named_parameters, patterns)
    matrices = [name for name, _ in groups["hidden"]]
    if isinstance(config, ReferenceConfig) and config.takes == "all":
        groups = {"hidden": groups["hidden"] + groups["vectors"], "vectors": []}
    setting = Setting(noise_seed, head_size, attention, distribute, compile and pays(groups["hidden"]))
    hidden = hidden_optimizer(groups["hidden"], config, setting)
    vectors = None
    if groups["vectors"]:
        vectors = AdamW(
            groups["vectors"],
            lr=config.embedding_lr,
            betas=config.adam_betas,
            eps=config.adam_eps,
            weight_decay=0.0,
            fused=fused(groups["vectors"]),
        )
    if config.clipping == "all" and isinstance(hidden, Muon):
        warnings.warn(odd_clipping(config), OddSetting, stacklevel=2)
    return Optimizers(
        hidden,
        vectors,
        matrices=matrices,
        decoupled=config.decoupled,
        clipping=config.clipping,
        max_grad_norm=config.max_grad_norm,
        shared=shared,
        stopwatch=stopwatch,
    )
