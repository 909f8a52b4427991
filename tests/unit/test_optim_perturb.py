"""Noise: its distribution, its norm, when it is drawn, and what it depends on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muon_core.optim.muon import Muon
from muon_core.optim.perturb import ANNEALINGS, GATE_METRICS, NOISE_NORMS, Gate, Noise, isotropic, orthogonal

KINDS = {"orthogonal": orthogonal, "isotropic": isotropic}


def noisy(shape_noise: Callable[[Tensor], Tensor], *, seed: int = 1, noise_norm: str = "fro", **gate: Any) -> Noise:
    return Noise(shape_noise, Gate(**gate), seed, noise_norm)


both_kinds = pytest.mark.parametrize("shape_noise", KINDS.values(), ids=KINDS.keys())


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(*values: float) -> Tensor:
    """Square matrix with these singular values."""
    size = len(values)
    u, v = torch.linalg.qr(gaussian(size, size, seed=1)).Q, torch.linalg.qr(gaussian(size, size, seed=2)).Q
    return (u * torch.tensor(values, dtype=torch.float64) @ v.mT).float()


@pytest.mark.parametrize("shape", [(8, 8), (20, 5), (5, 20), (1, 7), (7, 1)])
def test_orthogonal_has_unit_singular_values(shape: tuple[int, int]) -> None:
    singular = torch.linalg.svdvals(orthogonal(gaussian(3, *shape)))
    torch.testing.assert_close(singular, torch.ones(3, min(shape), dtype=torch.float64), rtol=0, atol=1e-12)


def test_orthogonal_is_haar() -> None:
    """Under Haar measure the trace has mean 0 and variance 1: 600 draws give the mean to 0.04 and the variance to 0.06.

    LAPACK's QR without the sign fix has a mean trace near -0.54 sqrt(m), and fails.
    """
    draws = gaussian(600, 32, 32)
    trace = orthogonal(draws).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(trace.mean()) < 0.2
    assert abs(trace.var() - 1) < 0.3
    unfixed = torch.linalg.qr(draws).Q.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert unfixed.mean() < -2


def test_orthogonal_entries_have_the_haar_variance() -> None:
    """Every entry of a wide or tall draw has mean square 1 / max(rows, cols)."""
    for shape in ((6, 24), (24, 6)):
        mean_square = orthogonal(gaussian(3000, *shape)).square().mean(0)
        assert (mean_square * 24 - 1).abs().max() < 0.15


@both_kinds
@pytest.mark.parametrize("noise_norm", NOISE_NORMS)
@pytest.mark.parametrize("shape", [(6, 6), (12, 4), (4, 12), (1, 5)])
def test_noise_has_alpha_times_the_momentum_norm(
    shape_noise: Callable[[Tensor], Tensor], noise_norm: str, shape: tuple[int, int]
) -> None:
    momentum = gaussian(3, *shape) * torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64).view(3, 1, 1)
    noise = noisy(shape_noise, alpha=0.5, seed=1, noise_norm=noise_norm)(momentum, "abc", 7) - momentum
    order = {"fro": "fro", "spectral": 2}[noise_norm]
    ratio = torch.linalg.matrix_norm(noise, order) / torch.linalg.matrix_norm(momentum, order)
    torch.testing.assert_close(ratio, torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-12, atol=0)


@both_kinds
def test_draws_depend_on_seed_name_and_step_alone(shape_noise: Callable[[Tensor], Tensor]) -> None:
    momentum = gaussian(3, 4, 6).float()
    noise = noisy(shape_noise, alpha=0.5, seed=1)
    first = noise(momentum, ["a", "b", "c"], 3)
    torch.manual_seed(99)
    assert torch.equal(noise(momentum, ["a", "b", "c"], 3), first)
    assert torch.equal(noise(momentum.flip(0), ["c", "b", "a"], 3), first.flip(0))  # not on place in the stack
    assert torch.equal(noise(momentum[1:2], ["b"], 3)[0], first[1])  # nor on the neighbours
    for other in (
        noisy(shape_noise, alpha=0.5, seed=2)(momentum, ["a", "b", "c"], 3),
        noise(momentum, ["x", "y", "z"], 3),
        noise(momentum, ["a", "b", "c"], 4),
    ):
        assert (other != first).any(dim=(1, 2)).all()


@both_kinds
def test_momentum_is_not_modified(shape_noise: Callable[[Tensor], Tensor]) -> None:
    momentum = gaussian(2, 4, 6).float()
    before = momentum.clone()
    assert not torch.equal(noisy(shape_noise, alpha=0.5, seed=1)(momentum, "ab", 0), before)
    assert torch.equal(momentum, before)


@pytest.mark.parametrize(
    ("anneal", "step", "multiplier"),
    [
        ("none", 10**6, 1.0),
        ("exponential", 0, 1.0),
        ("exponential", 2, 0.993 * 0.993),
        ("exponential", 327, 0.993**327),  # 0.1006, the last above a tenth
        ("exponential", 328, 0.1),
        ("linear", 0, 1.0),
        ("linear", 500, 0.55),
        ("linear", 1000, 0.1),
        ("linear", 5000, 0.1),
    ],
)
def test_annealing_by_hand(anneal: str, step: int, multiplier: float) -> None:
    assert ANNEALINGS[anneal](step) == pytest.approx(multiplier, rel=1e-12)


def test_annealed_noise_is_the_same_draw_made_smaller() -> None:
    momentum = gaussian(2, 4, 6)
    full = noisy(orthogonal, alpha=0.5, seed=1)(momentum, "ab", 500) - momentum
    annealed = noisy(orthogonal, alpha=0.5, seed=1, anneal="linear")(momentum, "ab", 500) - momentum
    torch.testing.assert_close(annealed, 0.55 * full, rtol=1e-10, atol=1e-12)


def test_noise_starts_at_its_step() -> None:
    momentum = gaussian(2, 4, 6)
    noise = noisy(orthogonal, alpha=0.5, seed=1, start_step=50)
    assert noise(momentum, "ab", 49) is momentum
    assert not torch.equal(noise(momentum, "ab", 50), momentum)


def test_gate_opens_below_the_rank_threshold_matrix_by_matrix() -> None:
    """Effective ranks of 4 x 4: equal values 4, one value 1, two equal values 2."""
    momentum = torch.stack([spectrum(1, 1, 1, 1), spectrum(1, 0, 0, 0), spectrum(1, 1, 0, 0)])

    def opened(threshold: float) -> list[bool]:
        perturbed = noisy(orthogonal, alpha=0.5, seed=1, rank_threshold=threshold)(momentum, "abc", 0)
        return (perturbed != momentum).any(dim=(1, 2)).tolist()

    assert opened(0.2) == [False, False, False]
    assert opened(0.3) == [False, True, False]
    assert opened(0.6) == [False, True, True]
    assert opened(1.0) == [True, True, True]


def test_threshold_of_one_measures_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(momentum: Tensor) -> Tensor:
        raise AssertionError("the effective rank was computed")

    monkeypatch.setitem(GATE_METRICS, "erank", fail)
    noisy(orthogonal, alpha=0.5, seed=1, rank_threshold=1.0)(gaussian(2, 4, 4), "ab", 0)
    with pytest.raises(AssertionError, match="was computed"):
        noisy(orthogonal, alpha=0.5, seed=1, rank_threshold=0.9)(gaussian(2, 4, 4), "ab", 0)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_zero_momentum_stays_zero(threshold: float) -> None:
    momentum = torch.zeros(2, 3, 5)
    noise = noisy(orthogonal, alpha=0.5, seed=1, rank_threshold=threshold)
    assert torch.equal(noise(momentum, "ab", 0), momentum)


@pytest.mark.parametrize("noise_norm", NOISE_NORMS)
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_momentum_that_is_not_finite_passes_through(threshold: float, noise_norm: str) -> None:
    """The loss of the next step tells of it; LAPACK's complaint would end the run as failed instead of diverged."""
    momentum = torch.stack([torch.full((3, 5), torch.nan), gaussian(3, 5).float()])
    noise = noisy(orthogonal, alpha=0.5, seed=1, rank_threshold=threshold, noise_norm=noise_norm)
    assert noise(momentum, "ab", 0).isfinite().all(dim=(1, 2)).tolist() == [False, True]


@pytest.mark.parametrize(
    "silent",
    [
        noisy(orthogonal, alpha=0.0, seed=1),
        noisy(orthogonal, alpha=0.5, seed=1, rank_threshold=1e-6),
        noisy(orthogonal, alpha=0.5, seed=1, start_step=5),
    ],
    ids=["alpha 0", "gate closed", "before start_step"],
)
def test_silent_noise_has_the_bits_of_plain_muon(silent: Noise) -> None:
    weight = gaussian(6, 4).float()
    params = [nn.Parameter(weight.clone()) for _ in range(3)]
    plain, quiet, loud = params
    optimizers = [
        Muon([("w", plain)], lr=0.03),
        Muon([("w", quiet)], lr=0.03, perturb=silent),
        Muon([("w", loud)], lr=0.03, perturb=noisy(orthogonal, alpha=0.5, seed=1)),
    ]
    for step in range(5):
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = gaussian(6, 4, seed=10 + step).float()
            optimizer.step()
    assert torch.equal(quiet, plain)
    assert not torch.equal(loud, plain)


def test_stored_momentum_stays_free_of_noise() -> None:
    weight = gaussian(6, 4).float()
    buffers = []
    for alpha in (0.0, 0.5):
        param = nn.Parameter(weight.clone())
        muon = Muon([("w", param)], perturb=noisy(isotropic, alpha=alpha, seed=1))
        for step in range(3):
            param.grad = gaussian(6, 4, seed=10 + step).float()
            muon.step()
        buffers.append(muon.state[param]["momentum_buffer"])
    assert torch.equal(*buffers)
