"""The noise arms as first written: the order of operations, the three switches, and how they fail."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muon_core.config.optimizers import OPTIMIZERS
from muon_core.optim.as_seed import AsSeed, NonFiniteMomentum, cubic_steps, qr, sgd_where_not_finite
from muon_core.optim.build import Setting, hidden_optimizer
from muon_core.optim.newton_schulz import polar_factor
from muon_core.optim.nolah import GATES, brake, root_mean_square
from muon_core.optim.perturb import Gate, draw

MU, LR = 0.95, 0.03
SEED = 5


def gradients(*shape: int, steps: int = 4, scale: float = 0.1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(shape, generator=generator) for _ in range(steps)]


def trained(name: str, grads: list[Tensor], **fields: Any) -> tuple[Tensor, Any]:
    """Weight and optimizer after one step per gradient, from a zero weight."""
    param = nn.Parameter(torch.zeros_like(grads[0]))
    config = OPTIMIZERS[name](lr=LR, mode="as_seed", **fields)  # type: ignore[call-arg]
    optimizer: Any = hidden_optimizer([("w", param)], config, Setting(SEED))
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach(), optimizer


@pytest.mark.parametrize("shape", [(12, 4), (6, 6), (4, 12)])
@pytest.mark.parametrize("name", ["orthonoise", "isotropic"])
def test_noise_arms_follow_the_order_first_written(name: str, shape: tuple[int, int]) -> None:
    grads = gradients(*shape)
    weight, momentum = torch.zeros(shape), torch.zeros(shape)
    for step, grad in enumerate(grads):
        momentum = MU * momentum + grad
        gaussian = draw(SEED, momentum[None], ["w"], step)[0]
        wide = shape[0] < shape[1]
        q = torch.linalg.qr(gaussian.T if wide else gaussian).Q
        noise = gaussian if name == "isotropic" else q.T if wide else q
        momentum = momentum + 0.25 * grad.norm() * noise
        for _ in range(3 if name == "orthonoise" else 0):
            momentum = 1.5 * momentum - 0.5 * momentum @ momentum.T @ momentum
        weight -= LR * polar_factor(momentum)
    ours, optimizer = trained(name, grads, alpha=0.25, rank_threshold=1.0)
    torch.testing.assert_close(ours, weight, rtol=0, atol=1e-5)
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state["momentum_buffer"], momentum, rtol=0, atol=1e-4)


@pytest.mark.parametrize("gate", GATES)
def test_nolah_follows_the_order_first_written(gate: str) -> None:
    """40 entries: two are above the 95th percentile."""
    weight, momentum = torch.zeros(8, 5), torch.zeros(8, 5)
    grads = gradients(8, 5, scale=1.0)
    for grad in grads:
        gated = {"tanh": grad.tanh() * grad.abs(), "sigmoid": grad.sigmoid() * grad, "relu": grad.relu()}[gate]
        momentum = MU * momentum + gated
        largest = grad.abs().flatten().argsort()[-2:]
        momentum.view(-1)[largest] *= 0.95
        weight -= LR * polar_factor(momentum * momentum.sigmoid())
    ours, optimizer = trained("nolah", grads, gate=gate)
    torch.testing.assert_close(ours, weight, rtol=0, atol=1e-5)
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state["momentum_buffer"], momentum, rtol=0, atol=1e-5)


def test_brake_holds_back_the_largest_twentieth() -> None:
    gradient = torch.arange(40.0).view(8, 5) - 20  # largest in size: -20 and then 19 and -19
    factors = brake(gradient.where(gradient != -19, 0.0))
    assert factors.view(-1)[[0, 39]].tolist() == pytest.approx([0.95, 0.95])
    assert int((factors == 1).sum()) == 38


@pytest.mark.parametrize("gate", GATES)
def test_well_posed_nolah_does_not_depend_on_the_scale_of_the_loss(gate: str) -> None:
    def weight(scale: float) -> Tensor:
        param = nn.Parameter(torch.zeros(8, 5))
        config: Any = OPTIMIZERS["nolah"](lr=LR, gate=gate, ns_dtype="fp32")  # type: ignore[call-arg]
        optimizer = hidden_optimizer([("w", param)], config, Setting(0))
        for grad in gradients(8, 5, scale=1.0):
            param.grad = grad * scale
            optimizer.step()
        return param.detach()

    assert torch.equal(weight(1.0), weight(2.0**-12))


def test_root_mean_square_of_zero_is_one() -> None:
    assert root_mean_square(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])).flatten().tolist() == pytest.approx(
        [12.5**0.5, 1]
    )


def test_closed_gate_adds_no_noise_but_cubic_steps_stay() -> None:
    momentum = torch.eye(4)[None] * 0.5  # effective rank 4 of 4
    perturb = AsSeed(qr, Gate(0.5, rank_threshold=0.5), seed=1)
    torch.testing.assert_close(perturb(momentum, ["w"], 0, [torch.ones(4, 4)]), cubic_steps(momentum))
    assert float(perturb.seen["w"].noise) == 0


def test_qr_keeps_the_shape_of_wide_matrices_or_the_run_ends() -> None:
    wide = torch.randn(1, 3, 8)
    assert qr(wide).shape == wide.shape
    perturb = AsSeed(qr, Gate(0.5), seed=1, wide="raise")
    with pytest.raises(
        ValueError, match=r"noise of blocks\.0\.down: the QR of a wide 3 x 8 matrix .* set wide to transp"
    ):
        perturb(wide, ["blocks.0.down"], 0, [wide[0]])
    perturb(wide.mT, ["blocks.0.up"], 0, [wide[0].mT])


def test_momentum_that_diverges_ends_the_run_with_its_cause() -> None:
    """A gradient of norm 30 puts singular values far above sqrt 5."""
    with pytest.raises(NonFiniteMomentum) as caught:
        trained("orthonoise", gradients(6, 6, scale=5.0), alpha=0.1)
    message = str(caught.value)
    assert message.startswith("as_seed momentum of w is not finite at step ")
    assert "sigma_max was " in message
    assert "and cubic steps diverge above sqrt(5) = 2.236; " in message
    assert message.endswith("use mode well_posed, a smaller lr or alpha, or on_nonfinite sgd_fallback")


def test_gradient_that_is_not_finite_ends_nolah() -> None:
    message = (
        "as_seed momentum of w is not finite at step 1: sigma_max was nan, so a gradient .* a smaller lr, or on_no"
    )
    with pytest.raises(NonFiniteMomentum, match=message):
        trained("nolah", [torch.ones(3, 3), torch.full((3, 3), torch.inf)])


def test_without_cubic_steps_no_singular_value_is_too_large() -> None:
    perturb = AsSeed(lambda noise: noise, Gate(0.1, rank_threshold=1.0), seed=1, cubic=0)
    perturb(torch.eye(4)[None] * 100, ["w"], 0, [torch.ones(4, 4)])
    assert perturb.seen["w"].sigma.isnan().all()


def test_fallback_is_plain_sgd_from_then_on() -> None:
    grads = gradients(6, 6, scale=5.0, steps=6)
    whole, optimizer = trained("orthonoise", grads, alpha=0.1, on_nonfinite="sgd_fallback")
    before, _ = trained("orthonoise", grads[:-1], alpha=0.1, on_nonfinite="sgd_fallback")
    (state,) = optimizer.state.values()
    assert not state["momentum_buffer"].isfinite().all()
    torch.testing.assert_close(whole, before - LR * grads[-1], rtol=0, atol=1e-6)


def test_fallback_replaces_only_what_is_not_finite() -> None:
    updates = torch.stack([torch.eye(2), torch.full((2, 2), torch.nan)])
    repaired = sgd_where_not_finite(updates, [torch.ones(2, 2), 3 * torch.ones(2, 2)])
    assert torch.equal(repaired, torch.stack([torch.eye(2), 3 * torch.ones(2, 2)]))


def test_alpha_zero_still_differs_from_plain_muon_by_its_cubic_steps() -> None:
    """They keep singular vectors, so the first update is the same; they act through the momentum they overwrite."""
    grads = gradients(6, 6, scale=0.3)
    param = nn.Parameter(torch.zeros(6, 6))
    config: Any = OPTIMIZERS["muon"](lr=LR, profile="as_seed")  # type: ignore[call-arg]
    plain = hidden_optimizer([("w", param)], config, Setting(0))
    for step, grad in enumerate(grads):
        param.grad = grad.clone()
        plain.step()
        ours, _ = trained("orthonoise", grads[: step + 1], alpha=0.0)
        assert torch.allclose(ours, param.detach(), atol=1e-5) == (step == 0)
