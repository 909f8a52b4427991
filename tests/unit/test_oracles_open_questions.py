"""The five questions the first design of the noise arms left open, each answered by a measurement."""

from typing import Any

import pytest
import torch
from torch import Tensor

from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.run import ModelConfig
from muon_core.metrics.spectrum import momentum_effective_rank
from muon_core.model import Transformer, init_weights, next_token_loss
from muon_core.optim.as_seed import cubic_steps
from muon_core.optim.build import build_optimizers
from muon_core.optim.health import measure, summed_up
from muon_core.optim.newton_schulz import polar_factor
from muon_core.optim.optimizers import Optimizers
from muon_core.optim.perturb import Gate, Noise, isotropic, orthogonal


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Tiny:
    """A language model of two layers on random tokens, stepped by an optimizer."""

    def __init__(self, name: str, **fields: Any) -> None:
        shape = ModelConfig(d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, d_ff=64, vocab_size=257)
        self.model = Transformer(shape)
        init_weights(self.model, 0)
        config: Any = OPTIMIZERS[name](**fields)
        self.optimizers: Optimizers = build_optimizers(self.model.named_parameters(), config, noise_seed=3)
        self.tokens = torch.randint(0, 40, (8, 33), generator=torch.Generator().manual_seed(1))

    def step(self, step: int, *, look: bool = False) -> dict[str, dict[str, float | None]]:
        """One optimizer step; with `look` its health."""
        self.optimizers.zero_grad()
        next_token_loss(self.model, self.tokens).backward()
        self.optimizers.step(step, keep_updates=look)
        left = self.optimizers.look()
        return summed_up(*measure(left)) if left else {}


def test_qr_of_bf16_needs_fp32() -> None:
    """1. LAPACK has no bf16 QR, SVD or eigenvalues; noise is drawn and shaped in the momentum's fp32.

    A bf16 momentum would lose the noise: at alpha 1e-4 97 % of the entries keep their bits, in fp32 0.05 %.
    """
    for decomposition in (torch.linalg.qr, torch.linalg.svd, torch.linalg.eigh):
        with pytest.raises(RuntimeError, match="not implemented for 'BFloat16'"):
            decomposition(torch.eye(4, dtype=torch.bfloat16))
    momentum = gaussian(1, 64, 64).bfloat16().float()
    noisy = Noise(orthogonal, Gate(1e-4), seed=1)(momentum, "a", 0)
    assert (noisy == momentum).float().mean() < 0.01
    assert (noisy.bfloat16() == momentum.bfloat16()).float().mean() > 0.9


@pytest.mark.parametrize(
    ("sigma", "after"),
    [
        (0.5, 0.9753),  # below sqrt 3: to 1, in more than three steps
        (1.7, 0.2084),  # just below: nearly to 0, and slowly back
        (1.8, -0.4622),  # above: to -1, the sign flipped
        (2.2, 0.9813),  # near sqrt 5: by way of -2.0 to 1; at 2.23 to -1
        (2.23, -1.1039),
        (2.3, -61.7971),  # above: outwards
        (3.0, -21621249.0),
    ],
)
def test_three_cubic_steps_converge_only_below_sqrt_3(sigma: float, after: float) -> None:
    """2a. 1.5 s - 0.5 s^3 three times, on a matrix with this singular value and one of 1, which stays."""
    result = cubic_steps(torch.diag(torch.tensor([sigma, 1.0])))
    expected = sigma
    for _ in range(3):
        expected = 1.5 * expected - 0.5 * expected**3
    assert float(result[0, 0]) == pytest.approx(expected, rel=1e-3)
    assert float(result[0, 0]) == pytest.approx(after, rel=1e-3)
    assert float(result[1, 1]) == 1


def test_cubic_steps_above_sqrt_5_end_in_infinity() -> None:
    """2b. sqrt 5 is mapped to its negative; from 2.3 on, twice three steps are not finite any more."""
    edge = torch.tensor([[5.0**0.5]], dtype=torch.float64)
    torch.testing.assert_close(cubic_steps(edge, 1), -edge, rtol=1e-12, atol=0)
    assert not cubic_steps(torch.tensor([[2.3]]), 9).isfinite().any()


def test_three_cubic_steps_do_not_orthogonalize() -> None:
    """2c. Even normalised, a spectrum that decays by 0.7 ends 0.96 from orthogonal; polar factor: 0."""
    u, v = torch.linalg.qr(gaussian(64, 64, seed=1)).Q, torch.linalg.qr(gaussian(64, 64, seed=2)).Q
    matrix = u * 0.7 ** torch.arange(64.0) @ v.mT

    def error(x: Tensor) -> float:
        return float((x @ x.mT - torch.eye(64)).norm() / 8)

    assert error(cubic_steps(matrix / matrix.norm())) > 0.9
    assert error(polar_factor(u * (0.5 + torch.rand(64)) @ v.mT)) < 1e-4


def test_cubic_steps_keep_the_update_of_the_same_step() -> None:
    """2d. Singular vectors stay, so the polar factor is the one before them; they act through the stored momentum."""
    matrix = gaussian(12, 6)
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
    torch.testing.assert_close(polar_factor(cubic_steps(matrix)), polar_factor(matrix), rtol=0, atol=1e-4)


def test_rank_thresholds_open_gates_in_their_order() -> None:
    """3. Share of gates open over the first 20 steps of a tiny model at thresholds 0.3, 0.5 and 0.7.

    Measured: 0.08, 0.61 and 0.92.
    """
    opened = dict.fromkeys((0.3, 0.5, 0.7), 0.0)
    for threshold in opened:
        tiny = Tiny("orthonoise", alpha=0.05, rank_threshold=threshold, ns_dtype="fp32")
        seen = [row["gate_open"] for step in range(20) for row in tiny.step(step, look=True).values()]
        opened[threshold] = sum(share for share in seen if share) / len(seen)
    assert opened[0.3] < opened[0.5] < opened[0.7]
    assert opened[0.3] < 0.3
    assert opened[0.7] > 0.7


def test_noise_begins_at_its_start_step() -> None:
    """4. With `start_step` 3 the first three updates are plain Muon's, bit for bit, and the fourth is not.

    Measured: noise ratio 0 three times, then 0.0500 in every matrix; cosine to the noise-free update 1, then 0.72 to
    0.99.
    """
    plain, noisy = Tiny("muon", ns_dtype="fp32"), Tiny("orthonoise", alpha=0.05, start_step=3, ns_dtype="fp32")
    for step in range(4):
        plain.step(step)
        rows = noisy.step(step, look=True).values()
        pairs = zip(plain.model.parameters(), noisy.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (step < 3)
        ratios, cosines = ([row[column] or 0 for row in rows] for column in ("noise_ratio", "cos_noise_free"))
        assert ratios == pytest.approx([0 if step < 3 else 0.05] * 12, rel=1e-4)
        assert (min(cosines) > 0.9999) == (step < 3)
    assert 0.6 < min(cosines) < 0.8


def test_noise_needs_no_communication() -> None:
    """5. A rank draws what any other would: by name and step, whichever matrices it holds, in whichever order.

    Measured: draws of one name and step are equal bit for bit; those of other steps or names correlate at -0.02 and
    0.01, as independent ones of 16,384 entries do. That two ranks step like one process is in the contract suite.
    """
    momentum, names = gaussian(4, 64, 64), ["a", "b", "c", "d"]
    noise = Noise(orthogonal, Gate(0.5), seed=1)
    whole = noise(momentum, names, 9)
    for owned in ([0, 2], [3, 1]):
        part = noise(momentum[owned], [names[index] for index in owned], 9)
        assert torch.equal(part, whole[owned])
    for other in (noise(momentum, names, 10), noise(momentum, ["b", "c", "d", "a"], 9)):
        pair = torch.stack([(whole - momentum).flatten(), (other - momentum).flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.04


def test_control_at_equal_alpha_is_confounded_as_first_written() -> None:
    """Raw Gaussian noise has sqrt(max(r, c)) times the norm of orthogonal noise: 22.6 at 512; well-posed noise, 1."""
    draw = gaussian(1, 512, 128)
    ratio = isotropic(draw).norm() / orthogonal(draw).norm()
    assert float(ratio) == pytest.approx(512**0.5, rel=0.02)
    momentum = gaussian(1, 512, 128, seed=2)
    added = [(Noise(kind, Gate(0.1), seed=1)(momentum, "a", 0) - momentum).norm() for kind in (isotropic, orthogonal)]
    assert float(added[0] / added[1]) == pytest.approx(1, rel=1e-4)


def test_early_momentum_has_a_low_effective_rank() -> None:
    """Effective rank over full rank after ten steps of a tiny model: measured 0.36 to 0.76 over its matrices."""
    tiny = Tiny("muon", ns_dtype="fp32")
    for step in range(10):
        tiny.step(step)
    state = tiny.optimizers.hidden.state
    buffers = [values["momentum_buffer"] for values in state.values()]
    shares = [float(momentum_effective_rank(buffer)) / min(buffer.shape) for buffer in buffers]
    assert 0.2 < min(shares) < 0.5
    assert 0.6 < max(shares) < 0.9
