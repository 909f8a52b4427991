"""Profiles: published Muons by name, re-derived here in a few lines each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from support.published import MODDED, PAPER, QUINTIC, Coefficients
from torch import Tensor, nn

from muon_core.config.optimizers import IsotropicConfig, MuonConfig, NolahConfig, OrthoNoiseConfig
from muon_core.config.profiles import PROFILES, REVISIONS, Profile
from muon_core.config.run import AnyOptimizer, RunConfig
from muon_core.optim.build import Setting, muon
from muon_core.optim.newton_schulz import POLAR_EXPRESS_1, POLAR_EXPRESS_2

SHAPES = [(16, 16), (48, 16), (16, 48), (1, 24)]
MU, LR = 0.95, 0.03


def iterated(
    matrix: Tensor, dtype: torch.dtype, divisor: Callable[[Tensor], Tensor], coefficients: Coefficients, products: str
) -> Tensor:
    """As the scripts spell it: the short side first; multiply-adds, or products and sums in one of two orders."""
    x = matrix.to(dtype)
    x = x / divisor(x.norm())
    x = x.T if matrix.size(0) > matrix.size(1) else x
    for a, b, c in coefficients:
        gram = x @ x.T
        if products == "multiply-adds":
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        elif products == "c A A":
            x = a * x + (b * gram + c * gram @ gram) @ x
        else:
            square = gram @ gram
            x = a * x + (b * gram + c * square) @ x
    return x.T if matrix.size(0) > matrix.size(1) else x


def taller(matrix: Tensor) -> float:
    return float(max(1, matrix.size(0) / matrix.size(1)) ** 0.5)


def nesterov(grad: Tensor, buffer: Tensor) -> Tensor:
    """Averages, and looks a step ahead. Some sources put it into the gradient's memory."""
    buffer.lerp_(grad, 1 - MU)
    return grad.lerp(buffer, MU)


def torch_optim(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    update = iterated(nesterov(grad, buffer), dtype, lambda norm: norm.clamp(min=1e-7), QUINTIC, "multiply-adds")
    param.mul_(1 - LR * decay)
    param.add_(update, alpha=-LR * taller(grad))


def keller(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    update = iterated(nesterov(grad, buffer), dtype, lambda norm: norm + 1e-7, QUINTIC, "c A A")
    update *= taller(grad)
    param.mul_(1 - LR * decay)
    param.add_(update, alpha=-LR)


def moonlight(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    buffer.mul_(MU).add_(grad)
    update = iterated(grad.add(buffer, alpha=MU), dtype, lambda norm: norm + 1e-7, QUINTIC, "c A A")
    param.mul_(1 - LR * decay)
    param.add_(update, alpha=-LR * 0.2 * max(grad.shape) ** 0.5)


def polar_express(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    """Algorithm 1, in place of Newton-Schulz in Muon, which the paper takes as given: here with Nesterov and scale."""
    update = iterated(nesterov(grad, buffer), dtype, lambda norm: norm * 1.01 + 1e-7, PAPER, "c A A")
    param.add_(update, alpha=-LR * taller(grad))


def modded_nanogpt(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    """Its kernels multiply and add in fp32 and round once, as addmm does."""
    update = iterated(nesterov(grad, buffer), dtype, lambda norm: norm * (1 + 2e-2) + 1e-6, MODDED, "multiply-adds")
    param.mul_(1 - LR * decay)
    param.add_(update, alpha=-LR * taller(grad))


def muon_llm_research(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    update = iterated(nesterov(grad, buffer), dtype, lambda norm: norm * 1.01 + 1e-7, MODDED, "c (A A)")
    param.add_(update.to(param.dtype) * (-LR * taller(grad)))


def simple12(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    update = iterated(nesterov(grad, buffer), dtype, lambda norm: norm + 1e-7, [(2, -1.5, 0.5)] * 12, "c A A")
    update *= taller(grad)
    param.mul_(1 - LR * decay)
    param.add_(update, alpha=-LR)


def as_seed(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    """A sum, its polar factor, no scale."""
    buffer.mul_(MU).add_(grad)
    u, _, vh = torch.linalg.svd(buffer, full_matrices=False)
    param.mul_(1 - LR * decay)
    param.add_(u @ vh, alpha=-LR)


def exact(param: Tensor, grad: Tensor, buffer: Tensor, decay: float, dtype: torch.dtype) -> None:
    u, _, vh = torch.linalg.svd(nesterov(grad, buffer), full_matrices=False)
    param.mul_(1 - LR * decay)
    param.add_(u @ vh, alpha=-LR * taller(grad))


Step = Callable[[Tensor, Tensor, Tensor, float, torch.dtype], None]
SOURCES: dict[str, Step] = {
    "torch": torch_optim, "keller": keller, "moonlight": moonlight, "polar_express": polar_express, "exact": exact,
    "simple12": simple12, "modded_nanogpt": modded_nanogpt, "muon_llm_research": muon_llm_research, "as_seed": as_seed,
}  # fmt: skip
"""Profile -> one whole step as its source takes it: (weight, gradient, buffer, decay, dtype of products), in place."""


@dataclass(frozen=True)
class Stepped:
    """One weight before five steps, and after, in the reference's dtype."""

    start: Tensor
    ours: Tensor
    reference: Tensor


def five_steps(config: MuonConfig, precision: torch.dtype = torch.float32) -> list[Stepped]:
    """Ours beside the source's, which holds all in `precision` and multiplies in bf16, but in fp64 for fp64.

    Gradients must keep their bits.
    """
    torch.manual_seed(0)
    pairs = [(f"w{index}", nn.Parameter(torch.randn(shape))) for index, shape in enumerate(SHAPES)]
    starts = [param.detach().to(precision, copy=True) for _, param in pairs]
    references = [(start.clone(), torch.zeros_like(start)) for start in starts]
    products = torch.float64 if precision == torch.float64 else torch.bfloat16
    optimizer = muon(pairs, config, Setting(0))
    for _ in range(5):
        gradients = [torch.randn_like(param) for _, param in pairs]
        for (_, param), grad, (reference, buffer) in zip(pairs, gradients, references, strict=True):
            param.grad = grad.clone()
            SOURCES[config.profile](reference, grad.to(precision), buffer, config.weight_decay, products)
        optimizer.step()
        for (_, param), grad in zip(pairs, gradients, strict=True):
            assert param.grad is not None
            assert torch.equal(param.grad, grad)
    ends = [param.detach().to(precision) for _, param in pairs]
    return [Stepped(*each) for each in zip(starts, ends, (reference for reference, _ in references), strict=True)]


@pytest.mark.parametrize(
    ("profile", "weight_decay"),
    [(name, 0.0) for name in PROFILES] + [(name, 0.1) for name, row in PROFILES.items() if row.decay != "none"],
)
def test_profile_has_the_bits_of_its_source(profile: Profile, weight_decay: float) -> None:
    """But for SVDs, which we take in float64, and where the source rounds the update before it adds it."""
    config = MuonConfig(profile=profile, lr=LR, weight_decay=weight_decay)
    for each in five_steps(config):
        if config.orthogonalizer == "svd":
            torch.testing.assert_close(each.ours, each.reference, rtol=0, atol=1e-5)
        elif profile == "muon_llm_research":
            torch.testing.assert_close(each.ours, each.reference, rtol=0, atol=1e-6)
        else:
            assert torch.equal(each.ours, each.reference)


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_in_fp32_is_its_source_in_fp64(profile: Profile) -> None:
    """So what bf16 leaves, in docs/optimizers.md, is rounding. The slopes of Polar Express multiply to a thousand, and
    with it what fp32 rounds at the start."""
    for each in five_steps(MuonConfig(profile=profile, lr=LR, ns_dtype="fp32"), torch.float64):
        error = (each.ours - each.reference).norm() / (each.reference - each.start).norm()
        assert error < 3e-5


def polynomials(num: int, cushion: float, safety: float) -> Coefficients:
    """Polar Express's recipe: odd quintics p, each as near to 1 as can be on the range [low, high] the last one left.

    Four points where the error is largest, with alternating sign, give p; its own extrema give the next points, until
    they stay. Where the range is wider than `cushion` allows, p is made for a narrower one, and scaled so that the ends
    of the whole one lie as far from 1. All but the last are of s / `safety`.
    """
    low, high, found = 1e-3, 1.0, []
    for index in range(num):
        begin = max(low, cushion * high)
        points = np.array([begin, (3 * begin + high) / 4, (begin + 3 * high) / 4, high])
        for _ in range(50):
            system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
            p = np.linalg.solve(system, np.ones(4))[:3]
            extrema = np.sort(np.roots([5 * p[2], 3 * p[1], p[0]]).real)  # of s^2
            points = np.array([begin, *np.sqrt(extrema), high])
        powers = np.array([1, 3, 5])
        p *= 2 / ((p * low**powers).sum() + (p * high**powers).sum())
        if index < num - 1:
            p /= safety**powers
        found.append(tuple(p))
        low = float((p * low**powers).sum())
        high = 2 - low
    return found


def test_polar_express_is_what_its_recipe_gives() -> None:
    """The paper puts its safety factor in when all are made; modded-nanogpt makes each for what that leaves."""
    paper = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in polynomials(6, 0.02407327424182761, 1.0)[:5]]
    np.testing.assert_allclose(POLAR_EXPRESS_1, paper, rtol=1e-12)
    np.testing.assert_allclose(POLAR_EXPRESS_2, polynomials(5, 0.02, 1.02), rtol=1e-12)


ARMS = {
    "torch": "muon-e59b5cfc",
    "keller": "muon-keller-8c4a1226",
    "moonlight": "muon-moonlight-157c99dc",
    "polar_express": "muon-polar_express-fdd81bef",
    "exact": "muon-exact-1a03ddbe",
    "simple12": "muon-simple12-f739a797",
    "modded_nanogpt": "muon-modded_nanogpt-41152f4e",
    "muon_llm_research": "muon-muon_llm_research-2bdbf92a",
    "as_seed": "muon-as_seed-01dd67f0",
}


@pytest.mark.parametrize("profile", PROFILES)
def test_runs_of_a_profile_keep_their_name_as_long_as_its_arithmetic_stays(profile: Profile) -> None:
    assert RunConfig(optimizer=MuonConfig(profile=profile)).arm_id == ARMS[profile]


def test_the_names_are_those_of_the_table() -> None:
    assert set(get_args(Profile)) == PROFILES.keys() == REVISIONS.keys()


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
