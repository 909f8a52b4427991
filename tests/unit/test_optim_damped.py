"""The deterministic mean of the noise: its formula, its gate, and the noise itself by Monte Carlo."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muon_core.optim.damped import Damped, top_block
from muon_core.optim.muon import Muon
from muon_core.optim.newton_schulz import newton_schulz, polar_factor
from muon_core.optim.perturb import Gate, Noise, isotropic, nuclear_rank, orthogonal

plain_where_closed = partial(top_block, orthogonalize=newton_schulz)
exact = partial(top_block, orthogonalize=polar_factor)


def matrix(*spectrum: float, rows: int, cols: int, seed: int = 0) -> Tensor:
    """Random singular vectors and these singular values, float64."""
    draw = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, len(spectrum), generator=draw, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(cols, len(spectrum), generator=draw, dtype=torch.float64)).Q
    return u * torch.tensor(spectrum, dtype=torch.float64) @ v.mT


def formula(momentum: Tensor, eps: float) -> Tensor:
    u, s, vh = torch.linalg.svd(momentum, full_matrices=False)
    return u * (s / (s.square() + eps**2).sqrt()) @ vh


@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (7, 3), (3, 7)])
@pytest.mark.parametrize(
    ("noise_norm", "eps"), [("fro", 0.5 * 3 / 3**0.5), ("spectral", 0.5 * 2), ("as_seed", 0.5 * 4)]
)
def test_damped_is_its_formula(rows: int, cols: int, noise_norm: str, eps: float) -> None:
    """Singular values 2, 2, 1: Frobenius norm 3, spectral norm 2; a gradient of Frobenius norm 4."""
    momentum = matrix(2, 2, 1, rows=rows, cols=cols)
    gradient = 4 * matrix(1, rows=rows, cols=cols, seed=1)
    damped = exact(Damped(Gate(0.5), noise_norm)(momentum[None], ["a"], 0, [gradient]))[0]
    torch.testing.assert_close(damped, formula(momentum, eps), rtol=0, atol=1e-6)


def test_damped_stack_damps_open_gates_and_leaves_the_others_their_bits() -> None:
    """Effective ranks of 4: 4 and 1.1. The closed ones are what the orthogonalizer alone gives."""
    stack = torch.stack([matrix(1, 1, 1, 1, rows=8, cols=4), matrix(4, 0.1, rows=8, cols=4)]).float()
    orthogonalize = partial(newton_schulz, dtype=torch.float32)
    damped = top_block(Damped(Gate(0.5, rank_threshold=0.5))(stack, "ab", 0), orthogonalize=orthogonalize)
    plain = orthogonalize(stack)
    assert torch.equal(damped[0], plain[0])
    assert not torch.allclose(damped[1], plain[1], atol=1e-3)


@pytest.mark.parametrize("gate", [Gate(0.0), Gate(0.5, rank_threshold=1e-6), Gate(0.5, start_step=5)])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)])
def test_silent_damping_has_the_bits_of_plain_muon(gate: Gate, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    plain, quiet = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    optimizers = [
        Muon([("w", plain)], lr=0.03),
        Muon([("w", quiet)], lr=0.03, perturb=Damped(gate), orthogonalize=plain_where_closed),
    ]
    for _ in range(4):
        plain.grad = torch.randn(shape)
        quiet.grad = plain.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, quiet)


@pytest.mark.parametrize("shape_noise", [orthogonal, isotropic])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_mean_of_the_noise_follows_the_damped_polar(shape_noise: Any, alpha: float) -> None:
    """Over 400 draws on a tall momentum with a decaying spectrum the two correlate at 0.98 or more.

    Measured: 0.999 (alpha 0.1) and 0.998 (0.5), orthogonal and Gaussian alike; the noise-free polar factor, which an
    eps far too small would give, 0.92 and 0.78. An eps half as large again or a third smaller fits worse: at most 0.996
    and 0.991.
    """
    momentum = matrix(*[0.7**k for k in range(16)], rows=128, cols=16).float()
    stack = momentum.expand(400, -1, -1)
    noisy = Noise(shape_noise, Gate(alpha), seed=3)(stack, [f"draw {index}" for index in range(400)], 0)
    mean = polar_factor(noisy).mean(0)
    damped, larger, smaller = (
        exact(Damped(Gate(a))(momentum[None], ["a"], 0))[0] for a in (alpha, 1.5 * alpha, alpha / 1.5)
    )
    assert correlation(mean, damped) >= 0.98
    assert correlation(mean, damped) > max(correlation(mean, larger), correlation(mean, smaller)) + 1e-3
    assert correlation(mean, damped) > correlation(mean, polar_factor(momentum)) + 0.05
    assert (mean - damped).norm() < 0.12 * damped.norm()


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize(("spectrum", "rank"), [((1, 1, 1, 1), 4.0), ((3,), 1.0), ((1, 1), 2.0), ((3, 1), 1.6)])
def test_nuclear_rank_by_hand(spectrum: tuple[float, ...], rank: float) -> None:
    """(sum s)^2 / sum s^2: for 3 and 1, 16 / 10."""
    stack = torch.stack([matrix(*spectrum, rows=6, cols=4), torch.zeros(6, 4)]).float()
    assert nuclear_rank(stack).tolist() == [pytest.approx(rank, rel=0.02), 0.0]


def test_both_gate_metrics_decide_alike() -> None:
    """On 200 momenta of effective ranks over the whole range the decisions at 0.5 differ in at most one of ten."""
    ratios = torch.linspace(0.3, 1, 200).tolist()
    stack = torch.stack([matrix(*[r**k for k in range(16)], rows=48, cols=16) for r in ratios]).float()
    gates = [Gate(0.5, rank_threshold=0.5, gate_metric=metric) for metric in ("erank", "nuclear")]
    erank, nuclear = (set(gate.chosen(stack, 0)) for gate in gates)
    assert 40 < len(erank) < 160
    assert len(erank ^ nuclear) <= 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -0.1}, r"alpha -0\.1 is negative; give"),
        ({"alpha": 0.1, "rank_threshold": 0.0}, r"rank_threshold 0\.0 is outside \(0, 1\]"),
        ({"alpha": 0.1, "rank_threshold": 1.1}, r"rank_threshold 1\.1 is outside \(0, 1\]"),
    ],
)
def test_bad_gate_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(**fields)  # type: ignore[arg-type]
