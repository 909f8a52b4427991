"""Every arm and profile derived once more, in NumPy and float64, over steps that open and close gates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.published import MODDED, PAPER, QUINTIC, Coefficients
from torch import nn

from muon_core.config.optimizers import OPTIMIZERS
from muon_core.optim.build import Setting, hidden_optimizer
from muon_core.optim.perturb import draw

Matrix = NDArray[np.float64]
Direction = Callable[[Matrix, Matrix, int], Matrix]
"""(Nesterov momentum, gradient, step) -> what the weights move against."""

MU, LR, DECAY, ALPHA, SEED, STEPS = 0.95, 0.03, 0.1, 0.3, 5, 6
SHAPES = [(12, 5), (5, 12), (6, 6)]


def gradients(shape: tuple[int, int]) -> list[Matrix]:
    """Near rank one, each of its own: the momentum's rank grows."""
    random = np.random.default_rng(0)
    low = [np.outer(random.normal(size=shape[0]), random.normal(size=shape[1])) for _ in range(STEPS)]
    return [(matrix + 0.1 * random.normal(size=shape)).astype(np.float32).astype(np.float64) for matrix in low]


def polar(matrix: Matrix) -> Matrix:
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(u @ vt)


def expected(shape: tuple[int, int], direction: Direction, scale: float, decay: float = DECAY) -> Matrix:
    """The weight after the steps, from zero, with the momentum B = mu B + (1 - mu) g."""
    weight, buffer = np.ones(shape), np.zeros(shape)
    for step, gradient in enumerate(gradients(shape)):
        buffer = MU * buffer + (1 - MU) * gradient
        ahead = MU * buffer + (1 - MU) * gradient
        weight = weight * (1 - LR * decay) - LR * scale * direction(ahead, gradient, step)
    return weight


def ours(name: str, shape: tuple[int, int], **fields: Any) -> Matrix:
    param = nn.Parameter(torch.ones(shape))
    config: Any = OPTIMIZERS[name](**({"lr": LR, "weight_decay": DECAY} | fields))  # type: ignore[arg-type]
    optimizer = hidden_optimizer([("w", param)], config, Setting(SEED))
    for gradient in gradients(shape):
        param.grad = torch.from_numpy(gradient).float()
        optimizer.step()
    return param.detach().double().numpy()


def original(shape: tuple[int, int]) -> float:
    return float(np.sqrt(max(1, shape[0] / shape[1])))


PROFILES: dict[str, tuple[Coefficients, float]] = {
    "torch": (QUINTIC, 1.0),
    "keller": (QUINTIC, 1.0),
    "moonlight": (QUINTIC, 1.0),
    "polar_express": (PAPER, 1.01),
    "modded_nanogpt": (MODDED, 1.02),
    "muon_llm_research": (MODDED, 1.01),
    "simple12": ([(2.0, -1.5, 0.5)] * 12, 1.0),
}
"""Polynomials, and the margin on the norm; the 1e-7 beside it is below these tests' tolerance."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("profile", PROFILES)
def test_profile_is_its_row_of_the_table(profile: str, shape: tuple[int, int]) -> None:
    """A sum momentum is 1 / (1 - mu) times the mean's, and the norm takes that out."""
    polynomials, margin = PROFILES[profile]

    def direction(momentum: Matrix, gradient: Matrix, step: int) -> Matrix:
        u, s, vt = np.linalg.svd(momentum, full_matrices=False)
        s = s / (margin * np.sqrt((s**2).sum()))
        for a, b, c in polynomials:
            s = a * s + b * s**3 + c * s**5
        return np.asarray(u * s @ vt)

    scale = 0.2 * float(np.sqrt(max(shape))) if profile == "moonlight" else original(shape)
    decay = 0.0 if profile in ("polar_express", "muon_llm_research") else DECAY
    result = ours("muon", shape, profile=profile, ns_dtype="fp32", weight_decay=decay)
    np.testing.assert_allclose(result, expected(shape, direction, scale, decay), rtol=0, atol=2e-5)


ANNEALED: dict[str, Callable[[int], float]] = {
    "none": lambda step: ALPHA,
    "exponential": lambda step: ALPHA * 0.993**step,
    "linear": lambda step: ALPHA * (1 - 0.9 * step / 1000),
}


def effective_rank(momentum: Matrix) -> float:
    p = np.linalg.svd(momentum, compute_uv=False)
    p = p / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def nuclear_rank(momentum: Matrix) -> float:
    return float((np.linalg.norm(momentum, "nuc") / np.linalg.norm(momentum)) ** 2)


def haar(gaussian: Matrix) -> Matrix:
    wide = gaussian.shape[0] < gaussian.shape[1]
    q, r = np.linalg.qr(gaussian.T if wide else gaussian)
    q = q * np.sign(np.diag(r))
    return np.asarray(q.T if wide else q)


class Noisy:
    """Direction under noise, or its mean, and where the gate was open."""

    def __init__(self, name: str, anneal: str, noise_norm: str, threshold: float, metric: str) -> None:
        self.name, self.alpha, self.noise_norm = name, ANNEALED[anneal], noise_norm
        self.threshold, self.rank = threshold, {"erank": effective_rank, "nuclear": nuclear_rank}[metric]
        self.opened: list[bool] = []

    def __call__(self, momentum: Matrix, gradient: Matrix, step: int) -> Matrix:
        self.opened.append(step >= 1 and self.rank(momentum) / min(momentum.shape) < self.threshold)
        if not self.opened[-1]:
            return polar(momentum)
        return self.damped(momentum, gradient, step) if self.name == "damped" else self.noisy(momentum, gradient, step)

    def noisy(self, momentum: Matrix, gradient: Matrix, step: int) -> Matrix:
        gaussian = draw(SEED, torch.zeros(1, *momentum.shape), ["w"], step)[0].double().numpy()
        noise = haar(gaussian) if self.name == "orthonoise" else gaussian
        order: Any = {"fro": "fro", "spectral": 2}.get(self.noise_norm)
        unit = (
            np.linalg.norm(gradient)
            if order is None
            else np.linalg.norm(momentum, order) / np.linalg.norm(noise, order)
        )
        return polar(momentum + self.alpha(step) * unit * noise)

    def damped(self, momentum: Matrix, gradient: Matrix, step: int) -> Matrix:
        u, s, vt = np.linalg.svd(momentum, full_matrices=False)
        unit = {
            "fro": np.sqrt((s**2).sum() / len(s)), "spectral": s[0], "as_seed": np.linalg.norm(gradient)
        }[self.noise_norm]  # fmt: skip
        eps = self.alpha(step) * unit
        return np.asarray(u * (s / np.sqrt(s**2 + eps**2)) @ vt)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise_norm", ["fro", "spectral", "as_seed"])
@pytest.mark.parametrize("name", ["orthonoise", "isotropic", "damped"])
@pytest.mark.parametrize(
    ("anneal", "metric", "threshold"),
    [("none", "erank", 0.56), ("exponential", "nuclear", 0.45), ("linear", "erank", 0.56)],
)
def test_perturbed_arm_is_its_formula(
    name: str, anneal: str, metric: str, threshold: float, noise_norm: str, shape: tuple[int, int]
) -> None:
    direction = Noisy(name, anneal, noise_norm, threshold, metric)
    derived = expected(shape, direction, original(shape))
    assert set(direction.opened[1:]) == {True, False}
    assert not direction.opened[0]  # before start_step
    result = ours(
        name, shape, profile="exact", alpha=ALPHA, anneal=anneal, noise_norm=noise_norm,
        rank_threshold=threshold, gate_metric=metric, start_step=1,
    )  # fmt: skip
    np.testing.assert_allclose(result, derived, rtol=0, atol=1e-4)


def sigmoid(x: Matrix) -> Matrix:
    return np.asarray(1 / (1 + np.exp(-x)))


def root_mean_square(x: Matrix) -> float:
    return float(np.sqrt((x**2).mean()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gate", ["tanh", "sigmoid", "relu"])
def test_nolah_is_its_formula(gate: str, shape: tuple[int, int]) -> None:
    """Gate and sigmoid in units of the root mean square; entries above the 95th percentile braked by 5 %."""
    gates = {"tanh": lambda x: np.tanh(x) * abs(x), "sigmoid": lambda x: sigmoid(x) * x, "relu": lambda x: x.clip(0)}
    weight, buffer = np.ones(shape), np.zeros(shape)
    for gradient in gradients(shape):
        unit = root_mean_square(gradient)
        gated = gates[gate](gradient / unit) * unit
        buffer = MU * buffer + (1 - MU) * gated
        ahead = MU * buffer + (1 - MU) * gated
        braked = np.where(abs(gradient) > np.quantile(abs(gradient), 0.95), 0.95, 1) * ahead
        projected = braked * sigmoid(braked / root_mean_square(braked))
        weight = weight * (1 - LR * DECAY) - LR * original(shape) * polar(projected)
    np.testing.assert_allclose(ours("nolah", shape, profile="exact", gate=gate), weight, rtol=0, atol=1e-4)
