"""Profiles: published Muons by name, re-derived here in a few lines each."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from muon_core.config.optimizers import IsotropicConfig, MuonConfig, NolahConfig, OrthoNoiseConfig
from muon_core.config.profiles import PROFILES, Profile
from muon_core.config.run import AnyOptimizer
from muon_core.optim.build import Setting, muon
from muon_core.optim.newton_schulz import POLAR_EXPRESS

SHAPES = [(16, 16), (48, 16), (16, 48), (1, 24)]
MU, LR = 0.95, 0.03


def quintic(matrix: Tensor, divisor: Callable[[Tensor], Tensor], coefficients: Any, *, fused: bool = False) -> Tensor:
    """As the published scripts spell it: bf16, the short side first, products and sums, or multiply-adds."""
    x = matrix.bfloat16()
    x = x / divisor(x.norm())
    x = x.T if matrix.size(0) > matrix.size(1) else x
    for a, b, c in coefficients:
        gram = x @ x.T
        if fused:
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        else:
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.size(0) > matrix.size(1) else x


QUINTIC = [(3.4445, -4.7750, 2.0315)] * 5


def keller(param: Tensor, grad: Tensor, buffer: Tensor, decay: float) -> None:
    """github.com/KellerJordan/Muon, which puts the Nesterov momentum into the gradient's memory; here a copy."""
    buffer.lerp_(grad, 1 - MU)
    update = quintic(grad.clone().lerp_(buffer, MU), lambda norm: norm + 1e-7, QUINTIC)
    update *= max(1, grad.size(0) / grad.size(1)) ** 0.5
    param.mul_(1 - LR * decay)
    param.add_(update, alpha=-LR)


def moonlight(param: Tensor, grad: Tensor, buffer: Tensor, decay: float) -> None:
    """github.com/MoonshotAI/Moonlight."""
    buffer.mul_(MU).add_(grad)
    update = quintic(grad.add(buffer, alpha=MU), lambda norm: norm + 1e-7, QUINTIC)
    param.mul_(1 - LR * decay)
    param.add_(update, alpha=-LR * 0.2 * max(grad.shape) ** 0.5)


def simple12(param: Tensor, grad: Tensor, buffer: Tensor, decay: float) -> None:
    """modded-nanogpt track 3."""
    buffer.lerp_(grad, 1 - MU)
    update = quintic(grad.lerp(buffer, MU), lambda norm: norm + 1e-7, [(2, -1.5, 0.5)] * 12)
    param.mul_(1 - LR * decay)
    param.add_(update, alpha=-LR * max(1, grad.size(0) / grad.size(1)) ** 0.5)


def polar_express(param: Tensor, grad: Tensor, buffer: Tensor, decay: float) -> None:
    """The first design of this project's baseline: five polynomials, a margin of 1 %."""
    buffer.lerp_(grad, 1 - MU)
    update = quintic(grad.lerp(buffer, MU), lambda norm: norm * 1.01 + 1e-7, POLAR_EXPRESS, fused=True)
    param.add_(update, alpha=-LR * max(1, grad.size(0) / grad.size(1)) ** 0.5)


def torch_optim(param: Tensor, grad: Tensor, buffer: Tensor, decay: float) -> None:
    """torch.optim.Muon, given the buffer to go on with."""
    copy = nn.Parameter(param.clone())
    copy.grad = grad.clone()
    optimizer = torch.optim.Muon([copy], lr=LR, weight_decay=decay, momentum=MU)
    optimizer.state[copy]["momentum_buffer"] = buffer
    optimizer.step()
    param.copy_(copy.detach())


def as_seed(param: Tensor, grad: Tensor, buffer: Tensor, decay: float) -> None:
    """The noise arms' baseline as first written: a sum, its polar factor, no scale."""
    buffer.mul_(MU).add_(grad)
    u, _, vh = torch.linalg.svd(buffer, full_matrices=False)
    param.mul_(1 - LR * decay)
    param.add_(u @ vh, alpha=-LR)


def exact(param: Tensor, grad: Tensor, buffer: Tensor, decay: float) -> None:
    """The polar factor in float32."""
    buffer.lerp_(grad, 1 - MU)
    u, _, vh = torch.linalg.svd(grad.lerp(buffer, MU), full_matrices=False)
    param.mul_(1 - LR * decay)
    param.add_(u @ vh, alpha=-LR * max(1, grad.size(0) / grad.size(1)) ** 0.5)


SOURCES: dict[str, Callable[[Tensor, Tensor, Tensor, float], None]] = {
    "torch": torch_optim, "keller": keller, "moonlight": moonlight, "polar_express": polar_express, "exact": exact,
    "simple12": simple12, "as_seed": as_seed,
}  # fmt: skip
"""Profile -> one whole step as its source takes it: (weight, gradient, buffer, decay), in place."""


def run(config: MuonConfig, step: Callable[[Tensor, Tensor, Tensor, float], None]) -> list[tuple[Tensor, Tensor]]:
    """(ours, reference) of every weight after five steps; gradients must keep their bits."""
    torch.manual_seed(0)
    pairs = [(f"w{index}", nn.Parameter(torch.randn(shape))) for index, shape in enumerate(SHAPES)]
    references = [(param.detach().clone(), torch.zeros_like(param)) for _, param in pairs]
    optimizer = muon(pairs, config, Setting(0))
    for _ in range(5):
        gradients = [torch.randn_like(param) for _, param in pairs]
        for (_, param), grad, (reference, buffer) in zip(pairs, gradients, references, strict=True):
            param.grad = grad.clone()
            step(reference, grad, buffer, config.weight_decay)
        optimizer.step()
        for (_, param), grad in zip(pairs, gradients, strict=True):
            assert param.grad is not None
            assert torch.equal(param.grad, grad)
    return [(param.detach(), reference) for (_, param), (reference, _) in zip(pairs, references, strict=True)]


@pytest.mark.parametrize(
    ("profile", "weight_decay"),
    [(name, 0.0) for name in PROFILES] + [(name, 0.1) for name, row in PROFILES.items() if row.decay != "none"],
)
def test_profile_has_the_bits_of_its_source(profile: Profile, weight_decay: float) -> None:
    """But for SVDs: ours is taken in float64."""
    config = MuonConfig(profile=profile, lr=LR, weight_decay=weight_decay)
    for ours, reference in run(config, SOURCES[profile]):
        if config.orthogonalizer == "svd":
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5)
        else:
            assert torch.equal(ours, reference)


def test_the_names_are_those_of_the_table() -> None:
    assert set(get_args(Profile)) == PROFILES.keys()


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_fills_in_what_is_not_given(profile: Profile) -> None:
    config = MuonConfig(profile=profile)
    assert {name: getattr(config, name) for name in PROFILES[profile].__slots__} == {
        name: getattr(PROFILES[profile], name) for name in PROFILES[profile].__slots__
    }
    assert MuonConfig.model_validate_json(config.model_dump_json()) == config


def test_defaults_are_those_of_torch() -> None:
    defaults = {name: MuonConfig.model_fields[name].default for name in PROFILES["torch"].__slots__}
    assert defaults == {name: getattr(PROFILES["torch"], name) for name in defaults}


def test_explicit_knob_overrides_the_profile() -> None:
    config = MuonConfig(profile="moonlight", nesterov=False, ns_dtype="fp32")
    assert (config.momentum_kind, config.nesterov, config.ns_dtype) == ("sum", False, "fp32")


def test_replacing_the_profile_brings_its_conventions_along() -> None:
    config = MuonConfig(profile="moonlight", lr=0.5, nesterov=False)
    assert config.replace(profile="keller", products="fused") == MuonConfig(profile="keller", lr=0.5, products="fused")
    assert config.replace(lr=0.25) == MuonConfig(profile="moonlight", lr=0.25, nesterov=False)
    seed = OrthoNoiseConfig(alpha=0.5).replace(mode="as_seed")
    assert seed == OrthoNoiseConfig(alpha=0.5, mode="as_seed")
    assert seed.replace(mode="well_posed") == OrthoNoiseConfig(alpha=0.5)


@pytest.mark.parametrize("config", [OrthoNoiseConfig, IsotropicConfig, NolahConfig])
def test_as_seed_has_conventions_of_its_own(config: Any) -> None:
    seed = config(mode="as_seed")
    assert (seed.profile, seed.momentum_kind, seed.nesterov, seed.orthogonalizer, seed.adjust) == (
        "as_seed", "sum", False, "svd", "none"
    )  # fmt: skip
    if config is not NolahConfig:
        assert (seed.noise_norm, seed.rank_threshold) == ("as_seed", 0.5)
        assert config(mode="as_seed", rank_threshold=1.0).rank_threshold == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "muon", "profile": "kellr"}, "'torch', 'keller', 'moonlight', 'polar_express', 'exact', 'simple12'"),
        ({"name": "muon", "momentum": 1.0}, "less than 1 [type=less_than, input_value=1.0,"),
        ({"name": "muon", "momentum": -0.1}, "greater than or equal to 0 [type=greater_than_equal, input_value=-0.1,"),
        ({"name": "orthonoise", "alpha": -0.5}, "than or equal to 0 [type=greater_than_equal, input_value=-0.5,"),
        ({"name": "orthonoise", "rank_threshold": 0.0}, "greater than 0 [type=greater_than, input_value=0.0,"),
        ({"name": "damped", "rank_threshold": 1.5}, "less than or equal to 1 [type=less_than_equal, input_value=1.5,"),
        ({"name": "muon", "profile": "polar_express", "weight_decay": 0.5}, "weight_decay 0.5 under decay none; set"),
        ({"name": "isotropic", "mode": "as_seed", "nesterov": True}, "nesterov True under mode as_seed, which has Fal"),
        ({"name": "nolah", "mode": "as_seed", "nesterov": True}, "nesterov True under mode as_seed, which has False"),
        ({"name": "orthonoise", "mode": "as_seed", "profile": "keller"}, "momentum_kind ema under mode as_seed, which"),
        ({"name": "nolah", "mode": "as_seed", "orthogonalizer": "quintic"}, "orthogonalizer quintic under mode"),
        ({"name": "muon", "profile": "exact", "ns_dtype": "bf16"}, "ns_dtype bf16 under orthogonalizer svd, which"),
        ({"name": "orthonoise", "wide": "raise"}, "wide raise changes nothing under mode well_posed; remove it"),
        ({"name": "nolah", "on_nonfinite": "sgd_fallback"}, "on_nonfinite sgd_fallback changes nothing under mode "),
        ({"name": "isotropic", "mode": "as_seed", "wide": "raise"}, "wide raise changes nothing under isotropic, "),
        ({"name": "orthonoise", "mode": "as_seed", "noise_norm": "fro"}, "noise_norm fro under mode as_seed, which ha"),
    ],
)  # fmt: skip
def test_bad_field_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"1 validation error") as caught:
        TypeAdapter(AnyOptimizer).validate_python(fields)
    assert message in str(caught.value)
