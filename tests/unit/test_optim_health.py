"""What the `health` table says of a step, and that frozen and runaway momenta are noticed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muon_core.config.optimizers import OPTIMIZERS
from muon_core.optim.build import build_optimizers
from muon_core.optim.health import OBSERVED, agreement, cosine, failing, measure, summed_up
from muon_core.optim.newton_schulz import polar_factor
from muon_core.optim.optimizers import Optimizers
from muon_core.tables import HEALTH

W = "blocks.0.attention.q.weight"
PATTERNS: Any = [("embedding.weight", "vectors"), ("blocks.*", "hidden")]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Run:
    """One matrix of 12 x 6 under an optimizer, fed with given gradients."""

    def __init__(self, name: str, **fields: Any) -> None:
        self.named = {"embedding.weight": nn.Parameter(torch.zeros(2, 2)), W: nn.Parameter(gaussian(12, 6))}
        config: Any = OPTIMIZERS[name](**fields)
        self.optimizers: Optimizers = build_optimizers(
            self.named.items(), config, noise_seed=1, patterns=PATTERNS, head_size=4
        )

    def step(self, step: int, gradient: Tensor) -> tuple[Tensor, dict[str, float | None]]:
        """(update, health) of a step, compared with the one before it."""
        for param in self.named.values():
            param.grad = torch.zeros_like(param)
        self.named[W].grad = gradient.clone()
        update = self.optimizers.step(step, keep_updates=True, next_keeps=True)[W]
        look = self.optimizers.look()
        assert look is not None
        return update, summed_up(*measure(look))[W]


def test_cosine_and_agreement_by_hand() -> None:
    a, b = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[4.0, 0.0], [0.0, 3.0]])
    assert float(cosine(a, b)) == pytest.approx(24 / 25)
    assert float(cosine(a, torch.zeros(2, 2))) == 0
    assert float(agreement(-torch.eye(2), a)) == pytest.approx(1)  # steepest descent: 7 of a nuclear norm of 7
    assert float(agreement(torch.eye(2), a)) == pytest.approx(-1)
    assert float(agreement(-0.01 * torch.diag(torch.tensor([1.0, -1.0])), a)) == pytest.approx(-1 / 7)
    assert float(agreement(torch.zeros(2, 2), a)) == 0


def test_columns_are_those_of_the_table() -> None:
    _, row = Run("orthonoise").step(0, gaussian(12, 6))
    assert {*row, "layer", "projection"} | {"run_id", "attempt", "seq", "step", "tokens"} == HEALTH.columns.keys()
    assert OBSERVED.keys() < row.keys()


def test_first_step_of_exact_muon_by_hand() -> None:
    """Momentum is colinear with the gradient and the update its polar factor: agreement 1, no perturbation."""
    gradient = gaussian(12, 6, seed=1)
    _, row = Run("muon", profile="exact", momentum=0.0).step(0, gradient)
    assert row["cos_previous_update"] is None
    assert row["gradient_agreement"] == pytest.approx(1, abs=1e-5)
    assert row["sigma_max"] == pytest.approx(float(torch.linalg.matrix_norm(gradient, 2)), rel=1e-5)
    s = torch.linalg.svdvals(gradient)
    p = s / s.sum()
    assert row["momentum_effective_rank"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-5)
    assert (row["gate_open"], row["noise_ratio"], row["cos_noise_free"]) == (0, 0, pytest.approx(1))
    assert (row["alpha"], row["num_sign_flips"], row["num_divergent"]) == (None, None, None)
    assert (row["num_nonfinite"], row["num_fallbacks"]) == (0, 0)


def test_updates_are_compared_with_those_of_the_step_before() -> None:
    run = Run("muon", profile="exact")
    before, _ = run.step(0, gaussian(12, 6, seed=1))
    update, row = run.step(1, gaussian(12, 6, seed=2))
    assert row["cos_previous_update"] == pytest.approx(float(cosine(update, before)), abs=1e-6)


def test_comparison_survives_a_checkpoint() -> None:
    whole, resumed = Run("muon", profile="exact"), Run("muon", profile="exact")
    whole.step(0, gaussian(12, 6, seed=1))
    resumed.optimizers.load_state_dict(whole.optimizers.state_dict())
    resumed.named[W].data.copy_(whole.named[W])
    expected, row = whole.step(1, gaussian(12, 6, seed=2))
    update, of_resumed = resumed.step(1, gaussian(12, 6, seed=2))
    assert torch.equal(update, expected)
    assert of_resumed == row


@pytest.mark.parametrize("name", ["orthonoise", "isotropic", "damped"])
def test_noise_is_realised_as_configured(name: str) -> None:
    run = Run(name, alpha=0.5, anneal="linear", profile="exact")
    _, row = run.step(500, gaussian(12, 6, seed=1))
    assert row["alpha"] == pytest.approx(0.5 * 0.55)
    assert row["noise_ratio"] == pytest.approx(0.5 * 0.55, rel=1e-5)
    assert row["gate_open"] == 1
    assert row["cos_noise_free"] is not None
    assert 0.8 < row["cos_noise_free"] < 0.9999


def test_closed_gate_is_seen_as_closed() -> None:
    _, row = Run("orthonoise", alpha=0.5, rank_threshold=0.01).step(0, gaussian(12, 6))
    assert (row["gate_open"], row["noise_ratio"], row["cos_noise_free"]) == (0, 0, pytest.approx(1))


def test_as_seed_shows_what_its_cubic_steps_hide() -> None:
    """Singular values 3, 2, 1 and their bounds sqrt 5 = 2.24 and sqrt 3 = 1.73."""
    gradient = torch.zeros(12, 6)
    gradient[0, 0], gradient[1, 1], gradient[2, 2] = 3, 2, 1
    _, row = Run("orthonoise", mode="as_seed", alpha=0.0).step(0, gradient)
    assert row["sigma_max"] == pytest.approx(3, rel=1e-6)
    assert (row["num_sign_flips"], row["num_divergent"], row["noise_ratio"]) == (2, 1, 0)


def test_fallback_is_counted() -> None:
    _, row = Run("isotropic", mode="as_seed", alpha=0.0, on_nonfinite="sgd_fallback").step(
        0, torch.full((12, 6), torch.inf)
    )
    assert row["num_nonfinite"] == 72
    assert row["num_fallbacks"] == 0  # the raw gradient is no better
    run = Run("isotropic", mode="as_seed", alpha=0.0, on_nonfinite="sgd_fallback")
    run.step(0, torch.full((12, 6), torch.inf))
    _, row = run.step(1, torch.ones(12, 6))
    assert (row["num_nonfinite"], row["num_fallbacks"]) == (72, 1)


def test_adamw_is_compared_and_has_no_momentum_columns() -> None:
    run = Run("adamw")
    run.step(0, gaussian(12, 6, seed=1))
    _, row = run.step(1, gaussian(12, 6, seed=1))
    assert row["cos_previous_update"] == pytest.approx(1, abs=1e-3)
    assert all(row[column] is None for column in OBSERVED)


@pytest.mark.parametrize("option", ["merge_qkvo", "per_head"])
def test_blocks_are_summed_up_by_matrix(option: str) -> None:
    """Rows 0-3, 4-7 and 8-11 are heads; noise is in every block at the configured ratio."""
    run = Run("orthonoise", alpha=0.5, attention_blocks=option)
    gradient = gaussian(12, 6)
    _, row = run.step(0, gradient)
    assert row["noise_ratio"] == pytest.approx(0.5, rel=1e-5)
    parts = [gradient] if option == "merge_qkvo" else [gradient[:4], gradient[4:8], gradient[8:]]
    sigma = max(float(torch.linalg.matrix_norm(part, 2)) for part in parts)
    assert row["sigma_max"] == pytest.approx(sigma * (1 - 0.95) * 1.95, rel=1e-4)  # (1 - mu)(1 + mu) g after one step


def test_health_is_measured_on_request_only() -> None:
    run = Run("muon")
    run.named[W].grad = gaussian(12, 6)
    run.optimizers.step(0)
    assert run.optimizers.look() is None
    hidden: Any = run.optimizers.hidden
    assert hidden.watch is None


def test_frozen_momentum_of_as_seed_is_flagged_within_20_steps() -> None:
    """Under gradients of 1e-3, cubic steps soon hold every singular value at 1, and nothing turns the update any more.

    Measured at step 20, cosine to the update before and agreement with the gradient: 1.000 and -0.06. The same
    conventions without cubic steps 0.917 and 0.19, plain Muon 0.649 and 0.48: neither is flagged.
    """
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "as_seed": ("orthonoise", {"mode": "as_seed", "alpha": 1e-3}),
        "its baseline": ("muon", {"profile": "as_seed"}),
        "torch": ("muon", {}),
    }
    flags = {}
    for arm, (name, fields) in arms.items():
        run = Run(name, **fields)
        for step in range(20):
            _, row = run.step(step, 1e-3 * gaussian(12, 6, seed=step))
        flags[arm] = failing(20, {W: row})
    assert flags.pop("as_seed") == (
        "frozen momentum: 1 of 1 matrices repeat their update "
        "(cosine above 0.99, gradient agreement below 0.2) at step 20"
    )
    assert set(flags.values()) == {None}


def healthy(**changes: float | None) -> dict[str, float | None]:
    row: dict[str, float | None] = {
        "cos_previous_update": 0.9, "gradient_agreement": 0.3, "num_nonfinite": 0, "num_divergent": None, "sigma_max": 9
    }  # fmt: skip
    return row | changes


FROZEN = {"cos_previous_update": 0.999, "gradient_agreement": 0.02}


def test_frozen_is_half_the_matrices_or_more() -> None:
    assert failing(5, {"a": healthy(**FROZEN), "b": healthy(), "c": healthy()}) is None
    assert failing(5, {}) is None
    flag = failing(5, {"a": healthy(**FROZEN), "b": healthy(**FROZEN), "c": healthy()})
    assert flag == (
        "frozen momentum: 2 of 3 matrices repeat their update "
        "(cosine above 0.99, gradient agreement below 0.2) at step 5"
    )


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"num_nonfinite": 3}, "runaway momentum: b is not finite at step 4"),
        ({"num_divergent": 1, "sigma_max": 2.5}, "runaway momentum: sigma_max 2.5 of b is above sqrt(5) at step 4"),
    ],
)
def test_runaway_momentum_is_flagged_at_once(changes: Any, flag: str) -> None:
    assert failing(4, {"a": healthy(), "b": healthy(**changes)}) == flag


def test_updates_unlike_the_gradient_alone_are_no_sign() -> None:
    assert failing(4, {"a": healthy(gradient_agreement=0.0), "b": healthy(cos_previous_update=1.0)}) is None


def test_polar_factor_agrees_most() -> None:
    gradient = gaussian(12, 6)
    best = float(agreement(-polar_factor(gradient), gradient))
    assert best == pytest.approx(1, abs=1e-6)
    for seed in range(5):
        assert float(agreement(gaussian(12, 6, seed=seed + 1), gradient)) < best
