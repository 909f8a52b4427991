"""From a config to the optimizers of a model: one for the hidden matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from muon_core.config import AdamWConfig, IsotropicConfig, MuonConfig, OptimizerConfig, OrthoNoiseConfig
from muon_core.optim.muon import Muon, match_rms_adamw, original
from muon_core.optim.newton_schulz import newton_schulz
from muon_core.optim.param_groups import PATTERNS, Group, NamedParameters, assign
from muon_core.optim.perturb import Noise, Perturb, isotropic, orthogonal, unperturbed

ADJUSTMENTS: dict[str, Callable[[int, int], float]] = {"original": original, "match_rms_adamw": match_rms_adamw}
NS_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def adamw(params: NamedParameters, config: AdamWConfig, noise_seed: int) -> AdamW:
    """AdamW on the hidden matrices."""
    return AdamW(params, lr=config.lr, betas=config.adam_betas, eps=config.adam_eps, weight_decay=config.weight_decay)


def muon(params: NamedParameters, config: MuonConfig, noise_seed: int, perturb: Perturb = unperturbed) -> Muon:
    """Muon with the conventions of `torch.optim.Muon`."""
    return Muon(
        params,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        perturb=perturb,
        orthogonalize=partial(newton_schulz, dtype=NS_DTYPES[config.ns_dtype]),
        scale=ADJUSTMENTS[config.adjust],
    )


def noisy_muon(
    params: NamedParameters,
    config: OrthoNoiseConfig | IsotropicConfig,
    noise_seed: int,
    shape_noise: Callable[[Tensor], Tensor],
) -> Muon:
    """Muon that orthogonalizes momentum plus noise."""
    noise = Noise(
        shape_noise,
        alpha=config.alpha,
        seed=noise_seed,
        anneal=config.anneal,
        rank_threshold=config.rank_threshold,
        noise_norm=config.noise_norm,
        start_step=config.start_step,
    )
    return muon(params, config, noise_seed, noise)


HIDDEN: dict[str, Callable[[NamedParameters, Any, int], Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
    "orthonoise": partial(noisy_muon, shape_noise=orthogonal),
    "isotropic": partial(noisy_muon, shape_noise=isotropic),
}
"""Optimizer of the hidden matrices by config name: (named matrices, config, noise seed) -> optimizer."""


def build_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    *,
    noise_seed: int,
    patterns: Sequence[tuple[str, Group]] = PATTERNS,
) -> Optimizers:
    """Optimizers for all of a model's parameters.

    Raises: ValueError if the patterns do not fit the model, or Muon is given something other than matrices.
    """
    groups = assign(named_parameters, patterns)
    hidden = HIDDEN[config.name](groups["hidden"], config, noise_seed)
    vectors = AdamW(
        groups["vectors"], lr=config.embedding_lr, betas=config.adam_betas, eps=config.adam_eps, weight_decay=0.0
    )
    return Optimizers(hidden, vectors)


class Optimizers:
    """The optimizer of the hidden matrices and AdamW for the rest, stepped, scheduled and saved as one."""

    def __init__(self, hidden: Optimizer, vectors: Optimizer) -> None:
        self.hidden, self.vectors = hidden, vectors
        for group in self._groups:
            group["initial_lr"] = group["lr"]

    @property
    def hidden_lr(self) -> float:
        """Current learning rate of the hidden matrices."""
        return float(self.hidden.param_groups[0]["lr"])

    def set_lr_multiplier(self, multiplier: float) -> None:
        """Set every learning rate to `multiplier` times its configured value."""
        for group in self._groups:
            group["lr"] = group["initial_lr"] * multiplier

    def step(self, step: int, *, keep_updates: bool = False) -> dict[str, Tensor]:
        """Apply optimizer step `step`, counted from 0; noise is drawn for this number.

        Returns: with `keep_updates` the change of each hidden matrix by name, weight decay taken out; else nothing. It
            is the difference of the weights around the step: what was applied, rounding included, in every arm alike.
            It costs a copy of the matrices.
        """
        before = [param.detach().clone() for _, param, _ in self._hidden_matrices()] if keep_updates else []
        for group in self.hidden.param_groups:
            group["step"] = step
        self.hidden.step()
        self.vectors.step()
        if not keep_updates:
            return {}
        return {
            name: param.detach() - old * kept
            for (name, param, kept), old in zip(self._hidden_matrices(), before, strict=True)
        }

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.hidden.zero_grad()
        self.vectors.zero_grad()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State of every parameter by its name, empty before its first step: tensors and numbers, no copies.

        Learning rates and noise are functions of config and step: there is nothing of them to save.
        """
        return {name: dict(optimizer.state.get(param, {})) for name, param, optimizer in self._named()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Continue from `state`, which is copied to the parameters' devices.

        Raises: ValueError if names or shapes are not those of the model; nothing is changed then.
        """
        named = {name: param for name, param, _ in self._named()}
        if differing := sorted(named.keys() ^ state.keys()):
            side = "lacks" if differing[0] in named else "has unknown"
            raise ValueError(f"optimizer state {side} parameter {differing[0]}; load it into the model it comes from")
        for name, values in state.items():
            for key, value in values.items():
                _check_shape(f"{name}/{key}", value, named[name])
        for name, param, optimizer in self._named():
            optimizer.state[param] = {key: _placed(value, param.device) for key, value in state[name].items()}

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [*self.hidden.param_groups, *self.vectors.param_groups]

    def _named(self) -> Iterable[tuple[str, nn.Parameter, Optimizer]]:
        for optimizer in (self.hidden, self.vectors):
            for group in optimizer.param_groups:
                for name, param in zip(group["param_names"], group["params"], strict=True):
                    yield name, param, optimizer

    def _hidden_matrices(self) -> Iterable[tuple[str, nn.Parameter, float]]:
        """Name, parameter, and the factor by which this step's weight decay shrinks it (1 without a gradient)."""
        for group in self.hidden.param_groups:
            kept = 1 - group["lr"] * group["weight_decay"]
            for name, param in zip(group["param_names"], group["params"], strict=True):
                yield name, param, 1.0 if param.grad is None else kept


def _check_shape(name: str, value: Any, param: Tensor) -> None:
    """A state tensor is a counter or as large as its parameter."""
    if isinstance(value, Tensor) and value.ndim and value.shape != param.shape:
        raise ValueError(
            f"optimizer state {name} has shape {tuple(value.shape)}, its parameter {tuple(param.shape)}; "
            "load it into the model it was saved from"
        )


def _placed(value: Any, device: torch.device) -> Any:
    """A copy of a state value for a parameter on `device`; counters stay where they are, as AdamW wants them."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, copy=True) if value.ndim else value.clone()
