import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from muon_core.metrics.layers import layer_metrics
from muon_core.metrics.spectrum import METRICS, momentum_effective_rank, singular_values
from muon_core.tables import LAYERS

SHAPES = [(64, 64), (32, 64), (256, 64), (64, 256)]


def spectral_metrics(weights: Sequence[Tensor]) -> dict[str, Tensor]:
    zeros = [torch.zeros_like(weight) for weight in weights]
    columns = layer_metrics(weights, zeros, zeros).columns
    return {name: columns[name] for name in METRICS}


def reference(weight: Tensor) -> dict[str, float]:
    """The definitions, on the SVD in fp64."""
    s = torch.linalg.svdvals(weight.double())
    p = s / s.sum()
    wide = weight.double() if weight.size(0) <= weight.size(1) else weight.double().mT
    deviation = wide @ wide.mT / s[0] ** 2 - torch.eye(len(s))
    entropy = float(-(p * p.log()).nansum())
    return {
        "spectral_norm": float(s[0]),
        "spectral_gap": float(s[0] / s[1]),
        "entropy": entropy,
        "effective_rank": math.exp(entropy),
        "stable_rank": float((s**2).sum() / s[0] ** 2),
        "orthogonality_error": float(deviation.norm() / math.sqrt(len(s))),
    }


def with_spectrum(rows: int, cols: int, s: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 matrix with about the singular values `s` and random singular vectors."""
    u, v = (torch.linalg.qr(torch.randn(n, len(s), dtype=torch.float64, generator=generator))[0] for n in (rows, cols))
    return ((u * s) @ v.mT).float()


def matrices(kind: str) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    made: list[Tensor] = []
    for rows, cols in SHAPES:
        index = torch.arange(min(rows, cols), dtype=torch.float64)
        match kind:
            case "random":
                made.append(torch.randn(rows, cols, generator=g))
            case "trained":  # power law, as of weights after training
                made.append(with_spectrum(rows, cols, (index + 1) ** -0.8, g))
            case "decaying":  # over six decades
                made.append(with_spectrum(rows, cols, 10 ** (-6 * index / len(index)), g))
            case "low rank":  # up to float32 rounding
                made.append(torch.randn(rows, 4, generator=g) @ torch.randn(4, cols, generator=g))
    return made


@pytest.mark.parametrize("kind", ["random", "trained", "decaying", "low rank"])
def test_spectral_metrics_equal_the_definitions_on_an_fp64_svd(kind: str) -> None:
    weights = matrices(kind)
    metrics = spectral_metrics(weights)
    for i, weight in enumerate(weights):
        got = {name: float(column[i]) for name, column in metrics.items()}
        assert got == pytest.approx(reference(weight), rel=1e-5)


def test_spectral_metrics_by_hand() -> None:
    metrics = spectral_metrics([torch.diag(torch.tensor([-1.0, 3.0]))])
    assert {name: column.tolist() for name, column in metrics.items()} == {
        "spectral_norm": [pytest.approx(3)],
        "spectral_gap": [pytest.approx(3)],
        "entropy": [pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))],
        "effective_rank": [pytest.approx(4**0.25 * (4 / 3) ** 0.75)],
        "stable_rank": [pytest.approx(10 / 9)],
        "orthogonality_error": [pytest.approx((8 / 9) / math.sqrt(2))],
    }


def test_spectral_metrics_keep_the_order_of_mixed_shapes() -> None:
    shapes = [(2, 3), (4, 4), (3, 2), (1, 5), (4, 4), (2, 3)]
    weights = [torch.eye(*shape) * (i + 1) for i, shape in enumerate(shapes)]
    metrics = spectral_metrics(weights)
    assert metrics["spectral_norm"].tolist() == [1, 2, 3, 4, 5, 6]
    assert metrics["stable_rank"].tolist() == [2, 4, 2, 1, 4, 2]


def expect(weight: Tensor, **expected: float) -> None:
    got = {name: column.item() for name, column in spectral_metrics([weight]).items()}
    assert got == pytest.approx(expected, rel=1e-12)


def test_zero_matrix_has_rank_zero() -> None:
    expect(
        torch.zeros(3, 5),
        spectral_norm=0, spectral_gap=1, entropy=0, effective_rank=0, stable_rank=0, orthogonality_error=1,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_single_row_or_column_has_rank_one(shape: tuple[int, int]) -> None:
    expect(
        torch.full(shape, 1.5),
        spectral_norm=3, spectral_gap=math.inf, entropy=0, effective_rank=1, stable_rank=1, orthogonality_error=0,
    )  # fmt: skip


def test_rank_one_of_a_larger_matrix_is_exact() -> None:
    # outer product of integers: no rounding in the matrix, and that of the Gram matrix is cut off
    weight = torch.outer(torch.tensor([3.0, 4.0, 12.0]), torch.tensor([1.0, 2.0, 2.0, 4.0]))
    expect(
        weight,
        spectral_norm=65, spectral_gap=math.inf, entropy=0, effective_rank=1, stable_rank=1,
        orthogonality_error=math.sqrt(2 / 3),
    )  # fmt: skip
    assert math.copysign(1, spectral_metrics([weight])["entropy"].item()) == 1  # no -0.0 in a table


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_shape_metrics_do_not_depend_on_scale(scale: float) -> None:
    weight = matrices("trained")[1]
    one, scaled = spectral_metrics([weight]), spectral_metrics([weight.double() * scale])
    for name in METRICS:
        if name != "spectral_norm":
            assert scaled[name].item() == pytest.approx(one[name].item(), rel=1e-9)


def test_matrix_that_is_not_finite_gives_nan_and_spoils_no_other() -> None:
    bad = torch.eye(3)
    bad[1, 2] = torch.inf
    metrics = spectral_metrics([torch.eye(3), bad, torch.eye(3) * torch.nan, torch.eye(3)])
    for column in metrics.values():
        assert column.isnan().tolist() == [False, True, True, False]


def test_spectral_metrics_read_bfloat16_and_leave_weights_alone() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).bfloat16())
    before = weight.detach().clone()
    metrics = spectral_metrics([weight])
    assert metrics["spectral_norm"].item() == pytest.approx(torch.linalg.matrix_norm(before.double(), 2).item())
    assert torch.equal(weight.detach(), before)
    assert not metrics["spectral_norm"].requires_grad


def test_spectral_metrics_of_nothing() -> None:
    assert {name: column.tolist() for name, column in spectral_metrics([]).items()} == {name: [] for name in METRICS}


def test_layer_metrics_refuse_vectors() -> None:
    with pytest.raises(ValueError, match=r"needs matrices, got shape \(7,\) at index 1"):
        spectral_metrics([torch.eye(2), torch.ones(7)])


def test_metrics_are_columns_of_the_layers_table() -> None:
    assert set(METRICS) <= set(LAYERS.columns)


def test_singular_values_are_sorted_and_batched() -> None:
    stack = torch.stack([torch.diag(torch.tensor([1.0, 3.0, 2.0])), torch.eye(3)])
    torch.testing.assert_close(singular_values(stack), torch.tensor([[3.0, 2, 1], [1, 1, 1]]).double())


def test_momentum_effective_rank_keeps_batch_dimensions() -> None:
    stack = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    ranks = momentum_effective_rank(stack)
    assert ranks.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert ranks[i, j].item() == pytest.approx(reference(stack[i, j])["effective_rank"], rel=1e-9)
    assert momentum_effective_rank(torch.eye(5)).item() == pytest.approx(5)
