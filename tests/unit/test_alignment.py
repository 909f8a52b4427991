"""Subspace metrics against fp64 singular value decompositions, and where there is nothing to compare."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from muon_core import train as train_module
from muon_core.config.run import RunConfig
from muon_core.metrics import layers as layer_metrics_module
from muon_core.metrics import subspaces
from muon_core.metrics.alignment import ILL_POSED, alignment, energy_share
from muon_core.metrics.chance import chance_alignment
from muon_core.metrics.layers import FLAGS, SUBSPACES, layer_metrics
from muon_core.metrics.spectrum import METRICS
from muon_core.metrics.subspaces import decompose, gram_matrices, leading, top_eigenvectors
from muon_core.optim.newton_schulz import newton_schulz, polar_factor
from muon_core.recorder import Recorder
from muon_core.state import prepare
from muon_core.stopwatch import Stopwatch
from muon_core.tables import LAYERS
from muon_core.unread import Unread

SHAPES = [(48, 96), (160, 96), (96, 160), (96, 96), (96, 200)]
"""Up to 64 rows are decomposed at once; more are iterated first."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_spectrum(rows: int, cols: int, s: Tensor, seed: int) -> Tensor:
    """Float32 matrix with about the singular values `s` and random singular vectors."""
    u, v = (torch.linalg.qr(randn(n, len(s), seed=seed + n).double())[0] for n in (rows, cols))
    return ((u * s) @ v.mT).float()


def decaying(rows: int, cols: int, seed: int) -> Tensor:
    return with_spectrum(rows, cols, (1 + torch.arange(min(rows, cols)).double()) ** -0.8, seed)


KINDS: dict[str, Callable[[int, int, int], Tensor]] = {
    "random": lambda rows, cols, seed: randn(rows, cols, seed=seed),
    "trained": decaying,
    "outliers": lambda rows, cols, seed: randn(rows, cols, seed=seed) + 300 * decaying(rows, cols, seed),
    "rank 8": lambda rows, cols, seed: randn(rows, 8, seed=seed) @ randn(8, cols, seed=seed + 1),
    "rank 1 and rounding": lambda rows, cols, seed: randn(rows, 1, seed=seed) @ randn(1, cols, seed=seed + 1),
    "rank 2 and rounding": lambda rows, cols, seed: randn(rows, 2, seed=seed) @ randn(2, cols, seed=seed + 1),
    "steep": lambda rows, cols, seed: with_spectrum(rows, cols, 10 ** (-torch.arange(min(rows, cols)).double()), seed),
    "orthogonalized": lambda rows, cols, seed: newton_schulz(decaying(rows, cols, seed), dtype=torch.float32),
}


def reference(weight: Tensor, update: Tensor, momentum: Tensor) -> dict[str, float]:
    """The definitions, on the SVD in fp64."""
    (u_w, s_w, v_w), (u_u, s_u, v_u), (u_m, s_m, v_m) = (
        (u[:, :5], s, vt[:5].mT)
        for u, s, vt in (torch.linalg.svd(x.double(), full_matrices=False) for x in (weight, update, momentum))
    )
    p = s_w[s_w > 0] / s_w.sum()
    left, right = (float(torch.linalg.svdvals(a.mT @ b).mean()) for a, b in ((u_w, u_u), (v_w, v_u)))
    return {
        "entropy": float(-(p * p.log()).sum()),
        "effective_rank": math.exp(-(p * p.log()).sum()),
        "update_alignment": left,
        "left_alignment": left,
        "right_alignment": right,
        "momentum_left_alignment": float(torch.linalg.svdvals(u_w.mT @ u_m).mean()),
        "momentum_right_alignment": float(torch.linalg.svdvals(v_w.mT @ v_m).mean()),
        "energy_alignment": float(((u_w.mT @ update.double()).norm() / update.double().norm()) ** 2),
        "alignment_gap": float((s_u[4] - s_u[5]) / s_u[0]),
        "momentum_alignment_gap": float((s_m[4] - s_m[5]) / s_m[0]),
    }


@pytest.mark.parametrize("weight_kind", [kind for kind in KINDS if kind != "orthogonalized"])
@pytest.mark.parametrize("update_kind", KINDS)
def test_layer_metrics_equal_the_definitions_on_an_fp64_svd(weight_kind: str, update_kind: str) -> None:
    weights = [KINDS[weight_kind](*shape, 10 * i) for i, shape in enumerate(SHAPES)]
    updates = [
        KINDS[update_kind](*shape, 10 * i + 5) + 0.01 * w
        for i, (shape, w) in enumerate(zip(SHAPES, weights, strict=True))
    ]
    momenta = [decaying(*shape, 10 * i + 7) for i, shape in enumerate(SHAPES)]
    columns = layer_metrics(weights, updates, momenta).columns
    for i, matrices in enumerate(zip(weights, updates, momenta, strict=True)):
        expected = reference(*matrices)
        assert {name: float(columns[name][i]) for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_layer_metrics_of_a_trained_model_are_those_of_an_fp64_svd(run_config: RunConfig, optimizer: str) -> None:
    """Of matrices large enough to be iterated."""
    model = {"d_model": 96, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "d_ff": 160, "vocab_size": 512}
    config = run_config.replace(model=model, optimizer={"name": optimizer}, steps=30)
    state = prepare(config, torch.device("cpu"), Stopwatch())
    for step in range(config.steps):
        recorder = Recorder(config, None, state.stopwatch)
        train_module._optimizer_step(config, state, recorder, Unread(), track=step + 1 == config.steps, look=True)
    momenta = state.optimizers.momenta()
    matrices = [(m.parameter.detach(), state.updates[m.name], momenta[m.name]) for m in state.layout.matrices]
    columns = layer_metrics(*zip(*matrices, strict=True)).columns
    for i, of_one in enumerate(matrices):
        expected = reference(*of_one)
        assert {name: float(columns[name][i]) for name in expected} == pytest.approx(expected, rel=1e-5)


def test_layer_metrics_of_the_largest_matrices_of_the_88m_model() -> None:
    matrices = [decaying(2048, 512, 1), randn(2048, 512, seed=2), decaying(2048, 512, 3)]
    columns = layer_metrics(*([matrix] for matrix in matrices)).columns
    expected = reference(*matrices)
    assert {name: float(columns[name]) for name in expected} == pytest.approx(expected, rel=1e-5)


def test_spectra_are_all_singular_values_filled_up_with_zeros() -> None:
    weights = [randn(4, 6), randn(9, 7), randn(6, 4)]
    spectra = layer_metrics(weights, weights, weights).spectra
    assert spectra.shape == (3, 7)
    for weight, row in zip(weights, spectra, strict=True):
        s = torch.linalg.svdvals(weight.double())
        torch.testing.assert_close(row, torch.nn.functional.pad(s, (0, 7 - len(s))), rtol=1e-9, atol=0)


def test_effective_rank_is_exp_entropy_of_the_full_spectrum() -> None:
    weights = [decaying(160, 96, 0), torch.eye(7)]
    measured = layer_metrics(weights, weights, weights)
    p = measured.spectra / measured.spectra.sum(-1, keepdim=True)
    torch.testing.assert_close(measured.columns["effective_rank"], torch.special.entr(p).sum(-1).exp())
    assert float(measured.columns["effective_rank"][1]) == pytest.approx(7)


def basis(size: int, *axes: int) -> Tensor:
    return torch.eye(size).double()[:, list(axes)][None]


def test_alignment_by_hand() -> None:
    assert alignment(basis(6, 0, 1), basis(6, 1, 0)).tolist() == [1]
    assert alignment(basis(6, 0, 1), basis(6, 1, 2)).tolist() == [0.5]
    assert alignment(basis(6, 0, 1), basis(6, 2, 3)).tolist() == [0]
    tilted = torch.tensor([[[0.6], [0.8]]]).double()
    assert alignment(basis(2, 0), tilted).tolist() == [pytest.approx(0.6)]


def test_alignment_counts_the_directions_that_exist() -> None:
    nothing, one = torch.zeros(1, 6, 2).double(), basis(6, 0, 1) * torch.tensor([1.0, 0.0])
    assert alignment(nothing, basis(6, 0, 1)).tolist() == [0]
    assert alignment(one, basis(6, 0, 1)).tolist() == [1]
    assert alignment(nothing, nothing).tolist() == [0]


def test_energy_share_by_hand() -> None:
    matrix = torch.diag(torch.tensor([3.0, 0.0, 4.0])).double()[None]
    assert energy_share(basis(3, 0, 1), matrix).tolist() == [pytest.approx(9 / 25)]
    assert energy_share(basis(3, 0), torch.zeros(1, 3, 2).double()).tolist() == [0]


@pytest.mark.parametrize("shape", [(7, 9), (9, 7)])
def test_left_and_right_follow_the_matrix_not_its_shape(shape: tuple[int, int]) -> None:
    """Same left directions, others on the right."""
    weight, update = torch.zeros(2, *shape)
    for i in range(5):
        weight[i, i] = update[i, (i + 2) % 7] = 10.0 - i
    columns = layer_metrics([weight], [update], [update.flip(0)]).columns
    assert columns["left_alignment"].item() == pytest.approx(1)
    assert columns["right_alignment"].item() == pytest.approx(3 / 5)
    assert columns["momentum_right_alignment"].item() == pytest.approx(3 / 5)
    assert columns["energy_alignment"].item() == pytest.approx(1)
    assert columns["momentum_left_alignment"].item() == pytest.approx((5 - (shape[0] - 5)) / 5)


def test_zero_matrices_have_values() -> None:
    weight, zero = randn(6, 8), torch.zeros(6, 8)
    columns = layer_metrics([weight, zero, zero], [zero, weight, zero], [zero, weight, zero]).columns
    for name in SUBSPACES:
        if "gap" not in name and name not in FLAGS:
            assert columns[name].tolist() == [0, 0, 0], name
    for whose in ("", "momentum_"):
        assert columns[f"{whose}alignment_gap"][[0, 2]].tolist() == [0, 0]
        assert columns[f"{whose}ill_posed"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("shape", [(1, 4), (3, 8), (8, 3), (5, 9), (2, 2)])
def test_few_rows_compare_all_directions(shape: tuple[int, int]) -> None:
    """The whole space on the short side is aligned with itself, and nothing follows it that could mix in."""
    columns = layer_metrics([randn(*shape)], [randn(*shape, seed=1)], [randn(*shape, seed=2)]).columns
    side = "left" if shape[0] <= shape[1] else "right"
    assert columns[f"{side}_alignment"].item() == pytest.approx(1)
    s = torch.linalg.svdvals(randn(*shape, seed=1).double())
    assert columns["alignment_gap"].item() == pytest.approx(float(s[-1] / s[0]))


def test_rank_one_has_one_direction() -> None:
    weight = torch.outer(torch.tensor([3.0, 4.0, 12, 0, 0, 0]), torch.tensor([1.0, 2, 2, 4, 0, 0, 0]))
    columns = layer_metrics([weight], [weight.roll(3, 0)], [weight]).columns
    assert columns["momentum_left_alignment"].item() == pytest.approx(1)
    assert columns["left_alignment"].item() == pytest.approx(0, abs=1e-12)
    assert columns["right_alignment"].item() == pytest.approx(1)
    assert columns["ill_posed"].item() == 1


def test_what_is_not_finite_gives_nan_where_it_enters_and_spoils_no_other() -> None:
    good, bad = randn(6, 8), torch.full((6, 8), torch.inf)
    columns = layer_metrics([good, bad, good, good], [good, good, bad, good], [good, good, good, bad]).columns
    of_weight, of_update, of_momentum = (
        [False, True, False, False],
        [False, True, True, False],
        [False, True, False, True],
    )
    for name in ("update_alignment", "left_alignment", "right_alignment", "energy_alignment"):
        assert columns[name].isnan().tolist() == of_update, name
    for name in ("momentum_left_alignment", "momentum_right_alignment"):
        assert columns[name].isnan().tolist() == of_momentum, name
    assert all(columns[name].isnan().tolist() == of_weight for name in METRICS)
    assert columns["alignment_gap"].isnan().tolist() == [False, False, True, False]
    assert columns["ill_posed"].tolist() == [0, 0, 1, 0]
    assert columns["momentum_alignment_gap"].isnan().tolist() == [False, False, False, True]
    assert columns["momentum_ill_posed"].tolist() == [0, 0, 0, 1]


def test_an_orthogonalized_update_is_ill_posed_and_its_momentum_is_not() -> None:
    momentum = decaying(128, 160, 0)
    columns = layer_metrics([decaying(128, 160, 1)], [polar_factor(momentum)], [momentum]).columns
    assert columns["ill_posed"].item() == 1
    assert columns["momentum_ill_posed"].item() == 0
    assert columns["alignment_gap"] < ILL_POSED < columns["momentum_alignment_gap"]


def test_a_row_does_not_depend_on_the_size_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, updates, momenta = ([decaying(80, 96, seed + 9 * i) for i in range(3)] for seed in (0, 100, 200))
    together = layer_metrics(weights, updates, momenta).columns
    monkeypatch.setattr(layer_metrics_module, "CHUNK_BYTES", {"cpu": 1})
    apart = layer_metrics(weights, updates, momenta).columns
    for name, column in together.items():
        torch.testing.assert_close(column, apart[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_alignment_does_not_depend_on_scale(scale: float) -> None:
    weight, update = decaying(96, 128, 0).double(), decaying(96, 128, 1).double()
    one, scaled = (layer_metrics([weight], [update * by], [update * by]).columns for by in (1, scale))
    for name in SUBSPACES:
        assert scaled[name].item() == pytest.approx(one[name].item(), rel=1e-9), name


def test_what_stands_apart_is_iterated_and_the_rest_left_to_lapack(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    decompose = subspaces.decompose

    def counted(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
        asked.append(len(gram))
        return decompose(gram, count)

    monkeypatch.setattr(subspaces, "decompose", counted)
    steep, flat = with_spectrum(96, 128, 0.7 ** torch.arange(96).double(), 0), randn(96, 128)
    wide = torch.stack([steep, flat, steep]).double()
    top_eigenvectors(gram_matrices(wide), 6)
    assert asked == [1]


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (70, 90)])
def test_gram_matrices_are_the_product(shape: tuple[int, int]) -> None:
    wide = torch.randint(-9, 10, (2, *shape), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(gram_matrices(wide), wide @ wide.mT)  # integers: no rounding


@pytest.mark.parametrize("size", [9, 64, 65, 130])
def test_decompose_gives_all_eigenvalues_and_the_leading_vectors(size: int) -> None:
    gram = gram_matrices(randn(2, size, 2 * size).double())
    squares, vectors = decompose(gram, 6)
    torch.testing.assert_close(squares, torch.linalg.eigvalsh(gram).flip(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        gram @ vectors, vectors * squares[:, None, :6], rtol=0, atol=1e-10 * float(squares.max())
    )
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(6).double().expand(2, 6, 6), rtol=0, atol=1e-12)


def test_directions_are_orthonormal_and_singular() -> None:
    wide = torch.stack([decaying(96, 128, 0), randn(96, 128), randn(96, 5) @ randn(5, 128)]).double()
    found = leading(wide, *top_eigenvectors(gram_matrices(wide), 6))
    eye = torch.eye(5).double().expand(3, 5, 5)
    torch.testing.assert_close(found.short.mT @ found.short, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.long.mT @ found.long, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(wide @ found.long, found.short * found.values[:, None, :5], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("dim", "expected"), [(256, 0.115), (512, 0.082), (1536, 0.048), (2048, 0.041)])
def test_chance_of_the_widths_models_have(dim: int, expected: float) -> None:
    assert chance_alignment(dim, 5) == pytest.approx(expected, rel=0.02)  # they are given to two digits


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("excess", [0, 1, 4, 27])
def test_chance_is_the_mean_of_random_subspaces(k: int, excess: int) -> None:
    """One of the two may be taken as the first k axes."""
    drawn = torch.linalg.qr(randn(4000, k + excess, k, seed=k).double()).Q
    simulated = float(torch.linalg.svdvals(drawn[:, :k]).mean())
    assert chance_alignment(k + excess, k) == pytest.approx(simulated, rel=0.03 if k == 1 else 0.015)


def test_subspace_metrics_are_columns_of_the_layers_table() -> None:
    assert set(SUBSPACES) <= set(LAYERS.columns)
