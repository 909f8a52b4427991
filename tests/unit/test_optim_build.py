"""The optimizers of a model as one: rates, updates and saved state."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muon_core.config.optimizers import AdamWConfig, IsotropicConfig, MuonConfig, OrthoNoiseConfig
from muon_core.optim.build import build_optimizers
from muon_core.optim.newton_schulz import newton_schulz
from muon_core.optim.optimizers import Optimizers
from muon_core.optim.perturb import Gate, Noise, isotropic, orthogonal

UP = "blocks.0.mlp.up.weight"


def model(**extra: Tensor) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    weights = {
        "embedding.weight": torch.randn(5, 3),
        "blocks.0.mlp_norm.weight": torch.randn(3),
        UP: torch.randn(12, 3),
    }
    params = {name: nn.Parameter(weight) for name, weight in (weights | extra).items()}
    for param in params.values():
        param.grad = torch.randn(param.shape)
    return params


def built(config: Any, params: dict[str, nn.Parameter], noise_seed: int = 0) -> Optimizers:
    return build_optimizers(params.items(), config, noise_seed=noise_seed)


@pytest.mark.parametrize("config", [AdamWConfig(embedding_lr=0.25), MuonConfig(embedding_lr=0.25)])
def test_vectors_take_their_own_rate_in_every_arm(config: Any) -> None:
    """AdamW's first step is lr * sign(gradient)."""
    params = model()
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizers = built(config, params)
    optimizers.set_lr_multiplier(0.5)
    optimizers.step(0)
    for name in ("embedding.weight", "blocks.0.mlp_norm.weight"):
        gradient = params[name].grad
        assert gradient is not None
        torch.testing.assert_close(params[name].detach(), before[name] - 0.125 * gradient.sign(), rtol=0, atol=1e-6)


def test_multiplier_sets_every_rate_from_its_configured_value() -> None:
    optimizers = built(MuonConfig(lr=0.5, embedding_lr=0.25), model())
    for multiplier in (0.5, 0.25, 1.0):
        optimizers.set_lr_multiplier(multiplier)
        assert optimizers.hidden_lr == 0.5 * multiplier
        assert optimizers.vectors.param_groups[0]["lr"] == 0.25 * multiplier


def test_muon_update_is_the_step_without_decay() -> None:
    """First step, Nesterov: momentum is colinear with the gradient; scale sqrt(12 / 3) = 2."""
    params = model()
    gradient, before = params[UP].grad, params[UP].detach().clone()
    assert gradient is not None
    optimizers = built(MuonConfig(lr=0.5, weight_decay=0.1, ns_dtype="fp32"), params)
    updates = optimizers.step(0, keep_updates=True)
    assert list(updates) == [UP]
    expected = -0.5 * 2 * newton_schulz(gradient, dtype=torch.float32)
    torch.testing.assert_close(updates[UP], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(params[UP].detach(), before * (1 - 0.5 * 0.1) + expected, rtol=0, atol=1e-5)


def test_adamw_update_is_the_step_without_decay() -> None:
    params = model()
    gradient, before = params[UP].grad, params[UP].detach().clone()
    assert gradient is not None
    optimizers = built(AdamWConfig(lr=0.5, weight_decay=0.1), params)
    updates = optimizers.step(0, keep_updates=True)
    torch.testing.assert_close(updates[UP], -0.5 * gradient.sign(), rtol=0, atol=1e-6)
    torch.testing.assert_close(params[UP].detach(), before * 0.95 - 0.5 * gradient.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.1), MuonConfig(weight_decay=0.1)])
def test_update_without_gradient_is_zero(config: Any) -> None:
    params = model()
    optimizers = built(config, params)
    optimizers.set_lr_multiplier(0.7)
    optimizers.zero_grad()
    assert all(param.grad is None for param in params.values())
    assert torch.equal(optimizers.step(0, keep_updates=True)[UP], torch.zeros(12, 3))


def test_updates_are_kept_on_request_only() -> None:
    assert built(MuonConfig(), model()).step(0) == {}


@pytest.mark.parametrize(
    ("config", "share"), [(MuonConfig(momentum=0.75), 0.25), (AdamWConfig(adam_betas=(0.75, 0.9)), 0.25)]
)
def test_momenta_are_what_the_optimizer_averages_and_zero_before_the_first_gradient(config: Any, share: float) -> None:
    params = model()
    optimizers = built(config, params)
    assert {name: matrix.abs().max().item() for name, matrix in optimizers.momenta().items()} == {UP: 0}
    optimizers.step(0)
    gradient = params[UP].grad
    assert gradient is not None
    torch.testing.assert_close(optimizers.momenta()[UP], share * gradient)


def test_config_reaches_the_noise() -> None:
    gate: dict[str, Any] = {
        "alpha": 0.25, "anneal": "linear", "rank_threshold": 0.5, "gate_metric": "nuclear", "start_step": 7
    }  # fmt: skip
    arms = {OrthoNoiseConfig: orthogonal, IsotropicConfig: isotropic}
    for config, shape_noise in arms.items():
        hidden: Any = built(config(**gate, noise_norm="spectral"), model(), noise_seed=3).hidden
        assert hidden.perturb == Noise(shape_noise, Gate(**gate), seed=3, noise_norm="spectral")


def test_config_reaches_muon() -> None:
    hidden: Any = built(
        MuonConfig(momentum=0.5, nesterov=False, weight_decay=0.25, adjust="match_rms_adamw", ns_dtype="fp32"), model()
    ).hidden
    assert hidden.defaults | {"lr": 0.03} == {
        "lr": 0.03, "momentum": 0.5, "nesterov": False, "weight_decay": 0.25, "step": 0
    }  # fmt: skip
    assert hidden.scale(100, 1) == 2.0
    assert hidden.orthogonalize(torch.eye(2)).dtype == torch.float32


def test_step_number_keys_the_noise() -> None:
    """The same step number gives the same noise in a fresh optimizer, another number gives another."""

    def after(step: int) -> Tensor:
        params = model()
        built(OrthoNoiseConfig(alpha=0.5), params).step(step)
        return params[UP].detach()

    assert torch.equal(after(3), after(3))
    assert not torch.equal(after(3), after(4))


def test_matrix_group_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.conv\.weight has shape \(2, 2, 2\); reshape it"):
        built(MuonConfig(), model(**{"blocks.0.conv.weight": torch.zeros(2, 2, 2)}))


def test_state_of_another_model_is_refused_and_changes_nothing() -> None:
    optimizers = built(MuonConfig(), model())
    optimizers.step(0)
    state = optimizers.state_dict()
    saved = io.BytesIO()
    torch.save(state, saved)
    with pytest.raises(
        ValueError, match=r"lacks parameter blocks\.0\.mlp\.up\.weight; load it into the model it comes"
    ):
        optimizers.load_state_dict({name: values for name, values in state.items() if name != UP})
    with pytest.raises(ValueError, match=r"has unknown parameter blocks\.9\.odd"):
        optimizers.load_state_dict(state | {"blocks.9.odd": {}})
    with pytest.raises(ValueError, match=r"up\.weight/momentum_buffer has shape \(3, 3\), its parameter \(12, 3\)"):
        optimizers.load_state_dict(state | {UP: {"momentum_buffer": torch.zeros(3, 3)}})
    unchanged = io.BytesIO()
    torch.save(optimizers.state_dict(), unchanged)
    assert unchanged.getvalue() == saved.getvalue()
