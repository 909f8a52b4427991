"""Muon's step against torch.optim.Muon, against SGD, and at its edges."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.cpu_kinds import both_kinds, kind_of_this_machine, set_kind
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from muon_core.config.optimizers import MuonConfig
from muon_core.config.presets import PRESETS
from muon_core.config.run import ModelConfig
from muon_core.model import Transformer, hidden_matrices
from muon_core.optim import sharding
from muon_core.optim.blocks import Partition, per_head, whole
from muon_core.optim.build import Setting
from muon_core.optim.build import muon as build_muon
from muon_core.optim.momentum import EMA, SUM, Momentum
from muon_core.optim.muon import Muon, match_rms_adamw, original
from muon_core.optim.newton_schulz import QUINTIC, newton_schulz
from muon_core.optim.perturb import unperturbed

SHAPES = [(16, 16), (16, 16), (48, 16), (48, 16), (16, 48), (1, 24), (24, 1)]
TINY_MODEL = [(64, 64), (32, 64), (32, 64), (64, 64), (256, 64), (64, 256)]
SCALES = {"original": original, "match_rms_adamw": match_rms_adamw}


def draw(shapes: list[tuple[int, int]], seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(shape) for shape in shapes]


def named(weights: list[Tensor]) -> list[tuple[str, nn.Parameter]]:
    return [(f"w{index}", nn.Parameter(weight.clone())) for index, weight in enumerate(weights)]


def set_gradients(params: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.to(param.dtype)


def assert_torch_bits(
    shapes: list[tuple[int, int]],
    adjust: str,
    num_steps: int = 10,
    *,
    ours: Callable[..., torch.optim.Optimizer] = Muon,
    theirs: Callable[..., torch.optim.Optimizer] = torch.optim.Muon,
    **options: Any,
) -> None:
    """Steps of ours and of torch.optim.Muon end on the same weights and momenta."""
    weights = draw(shapes, seed=0)
    pairs, others = named(weights), [nn.Parameter(weight.clone()) for weight in weights]
    params = [param for _, param in pairs]
    muon = ours(pairs, lr=0.03, scale=SCALES[adjust], **options)
    reference = theirs(others, lr=0.03, adjust_lr_fn=adjust, **options)
    for step in range(num_steps):
        gradients = draw(shapes, seed=1 + step)
        set_gradients(params, gradients)
        set_gradients(others, gradients)
        muon.step()
        reference.step()
    for mine, other in zip(params, others, strict=True):
        assert torch.equal(mine, other)
        assert torch.equal(muon.state[mine]["momentum_buffer"], reference.state[other]["momentum_buffer"])


@both_kinds
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_has_the_bits_of_torch(
    monkeypatch: pytest.MonkeyPatch, slow_bf16: bool, nesterov: bool, adjust: str, weight_decay: float
) -> None:
    set_kind(monkeypatch, slow_bf16, strip=4)
    assert_torch_bits(SHAPES, adjust, nesterov=nesterov, weight_decay=weight_decay, momentum=0.95)


@both_kinds
def test_muon_has_the_bits_of_torch_on_the_tiny_model(monkeypatch: pytest.MonkeyPatch, slow_bf16: bool) -> None:
    set_kind(monkeypatch, slow_bf16)
    assert_torch_bits(TINY_MODEL, "original", weight_decay=0.0)


ATTENTION_88M, MLP_88M = [(512, 512), (256, 512)], [(2048, 512), (512, 2048)]
QUARTER_88M = [(rows // 4, cols // 4) for rows, cols in ATTENTION_88M + MLP_88M]


def test_shapes_are_those_of_the_88m_preset() -> None:
    with torch.device("meta"):
        matrices = hidden_matrices(Transformer(ModelConfig(**PRESETS["88m"]["model"])))
    assert {tuple(matrix.parameter.shape) for matrix in matrices} == {*ATTENTION_88M, *MLP_88M}
    assert {matrix.name.split(".")[-2] for matrix in matrices} == {"q", "k", "v", "o", "up", "down"}


@pytest.mark.slow
@both_kinds
def test_muon_has_the_bits_of_torch_on_the_88m_model_at_a_quarter(
    monkeypatch: pytest.MonkeyPatch, slow_bf16: bool
) -> None:
    """Three steps on matrices in the proportions of the 88M model, two of each."""
    set_kind(monkeypatch, slow_bf16)
    assert_torch_bits(QUARTER_88M * 2, "original", num_steps=3, weight_decay=0.1)


@both_kinds
@pytest.mark.parametrize("config", [MuonConfig(), MuonConfig(profile="torch", adjust="match_rms_adamw")])
def test_profile_torch_as_runs_build_it_has_the_bits_of_torch(
    monkeypatch: pytest.MonkeyPatch, slow_bf16: bool, config: MuonConfig
) -> None:
    set_kind(monkeypatch, slow_bf16, strip=4)
    weights = draw(SHAPES, seed=0)
    pairs, theirs = named(weights), [nn.Parameter(weight.clone()) for weight in weights]
    ours = build_muon(pairs, config, Setting(noise_seed=0))
    reference = torch.optim.Muon(
        theirs, lr=config.lr, momentum=config.momentum, weight_decay=0.0, adjust_lr_fn=config.adjust
    )
    for step in range(10):
        gradients = draw(SHAPES, seed=1 + step)
        set_gradients([param for _, param in pairs], gradients)
        set_gradients(theirs, gradients)
        ours.step()
        reference.step()
    for (_, mine), other in zip(pairs, theirs, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.slow
@kind_of_this_machine
@pytest.mark.parametrize("shapes", [ATTENTION_88M, MLP_88M], ids=["attention", "mlp"])
def test_muon_has_the_bits_of_torch_on_the_88m_model(
    monkeypatch: pytest.MonkeyPatch, slow_bf16: bool, shapes: list[tuple[int, int]]
) -> None:
    """At full size. Number by number torch takes 23 s for a step of an up and a down projection, so this is one step of
    two iterations, the first of a matrix as it lies in memory; the others are like the second.
    `tests/bench/optimizer_step.py --layers 22 --steps 10` compares ten whole steps of all 132 matrices."""
    set_kind(monkeypatch, slow_bf16)
    ours = partial(Muon, orthogonalize=partial(newton_schulz, coefficients=QUINTIC[:2]))
    theirs = partial(torch.optim.Muon, ns_steps=2)
    assert_torch_bits(shapes, "original", num_steps=1, ours=ours, theirs=theirs, weight_decay=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "threads"), [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 2)])
def test_stack_has_the_bits_of_its_matrices_at_88m(dtype: torch.dtype, threads: int) -> None:
    """In bf16, which takes a stack apart and seconds for large matrices, one of the five iterations."""
    coefficients = QUINTIC if dtype == torch.float32 else QUINTIC[:1]
    torch.set_num_threads(threads)
    try:
        for shape in [*ATTENTION_88M, (512, 256), *MLP_88M]:
            stack = torch.stack(draw([shape] * 2, seed=0))
            loop = [newton_schulz(matrix, coefficients, dtype=dtype) for matrix in stack]
            assert torch.equal(newton_schulz(stack, coefficients, dtype=dtype), torch.stack(loop))
    finally:
        torch.set_num_threads(1)


class Calls(TorchDispatchMode):
    """Notes the products that PyTorch is asked for, and how many bytes everything else reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Any] = []
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read, written = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in (args, result))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.products.append((str(func), kwargs, *((tuple(t.shape), t.stride(), t.dtype) for t in read)))
        elif not func.is_view and written:
            self.num_bytes += sum(t.numel() * t.element_size() for t in (*read, *written))
        return result


def calls_of_second_step(make: Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer], shape: Any) -> Calls:
    """By three matrices of a shape; the first step makes the buffers."""
    pairs = named(draw([shape] * 3, seed=0))
    optimizer = make(pairs)
    for step in range(2):
        set_gradients([param for _, param in pairs], draw([shape] * 3, seed=1 + step))
        with Calls() as seen:
            optimizer.step()
    return seen


def torch_muon(pairs: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    return torch.optim.Muon([param for _, param in pairs])


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16), (7, 5), (1, 24), (24, 1)])
def test_a_cpu_with_bf16_units_is_asked_for_the_products_of_torch(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """Same shapes, strides and factors in the same order: the same bits in the same time."""
    set_kind(monkeypatch, slow_bf16=False)
    ours, reference = calls_of_second_step(Muon, shape), calls_of_second_step(torch_muon, shape)
    assert ours.products == reference.products
    assert len(ours.products) == 3 * 3 * len(QUINTIC)


@pytest.mark.parametrize(("shape", "copies"), [((64, 64), 0), ((64, 96), 0), ((96, 64), 1)])
def test_a_step_moves_the_bytes_of_torch_and_copies_a_tall_update_once(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], copies: int
) -> None:
    """Where a matrix fills a stack, as a large one does. The copy, in bf16, costs less than to add in strides."""
    set_kind(monkeypatch, slow_bf16=False)
    monkeypatch.setattr(sharding, "CACHED_ENTRIES", shape[0] * shape[1])
    ours = calls_of_second_step(partial(Muon, weight_decay=0.1), shape)
    reference = calls_of_second_step(torch_muon, shape)
    assert ours.num_bytes <= reference.num_bytes + copies * 3 * (2 + 2) * shape[0] * shape[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_muon_is_within_4_percent_of_torch_on_the_88m_model_on_cuda() -> None:
    """Ten steps at full size in bf16; on CUDA a batched product may sum in another order than a single one."""
    shapes = ATTENTION_88M + MLP_88M
    weights = [weight.cuda() for weight in draw(shapes, seed=0)]
    pairs, theirs = named(weights), [nn.Parameter(weight.clone()) for weight in weights]
    muon, reference = Muon(pairs, lr=0.03), torch.optim.Muon(theirs, lr=0.03)
    for step in range(10):
        gradients = [gradient.cuda() for gradient in draw(shapes, seed=1 + step)]
        set_gradients([param for _, param in pairs], gradients)
        set_gradients(theirs, gradients)
        muon.step()
        reference.step()
    for (_, mine), other, weight in zip(pairs, theirs, weights, strict=True):
        assert (mine - other).norm() <= 4e-2 * (other - weight).norm()


def test_fp32_arithmetic_is_near_bf16() -> None:
    """One step's update differs by bfloat16's rounding alone."""
    matrix = draw([(64, 256)], seed=0)[0]
    fp32 = newton_schulz(matrix, dtype=torch.float32)
    error = (newton_schulz(matrix).float() - fp32).norm() / fp32.norm()
    assert 1e-4 < error < 4e-2


def test_muon_without_orthogonalization_is_sgd() -> None:
    """B = B/2 + g/2 at lr 2 is M = M/2 + g at lr 1; integer gradients keep every sum exact, so equal bit for bit."""
    torch.manual_seed(0)
    (_, mine), *_ = pairs = named([torch.randint(-8, 8, (3, 4)).float()])
    theirs = nn.Parameter(mine.detach().clone())
    muon = Muon(
        pairs, 2.0, 0.0, momentum=0.5, nesterov=False, orthogonalize=lambda stack: stack, scale=lambda rows, cols: 1.0
    )
    sgd = torch.optim.SGD([theirs], lr=1.0, momentum=0.5)
    for _ in range(8):
        mine.grad = torch.randint(-8, 8, (3, 4)).float()
        theirs.grad = mine.grad.clone()
        muon.step()
        sgd.step()
        assert torch.equal(mine, theirs)


def test_muon_of_a_sum_without_orthogonalization_is_sgd_on_any_gradient() -> None:
    (_, mine), *_ = pairs = named(draw([(3, 4)], seed=0))
    theirs = nn.Parameter(mine.detach().clone())
    muon = Muon(pairs, 0.3, 0.0, 0.9, rule=SUM, orthogonalize=lambda stack: stack, scale=lambda rows, cols: 1.0)
    sgd = torch.optim.SGD([theirs], lr=0.3, momentum=0.9, nesterov=True)
    for step in range(8):
        for param in (mine, theirs):
            set_gradients([param], draw([(3, 4)], seed=1 + step))
        muon.step()
        sgd.step()
        assert torch.equal(mine, theirs)


@both_kinds
def test_stacked_step_has_the_bits_of_one_matrix_at_a_time(monkeypatch: pytest.MonkeyPatch, slow_bf16: bool) -> None:
    set_kind(monkeypatch, slow_bf16)
    weights = draw(TINY_MODEL, seed=0)
    together, alone = named(weights), named(weights)
    optimizers = [Muon(together, lr=0.03), *(Muon([pair], lr=0.03) for pair in alone)]
    for step in range(3):
        for pairs in (together, alone):
            set_gradients([param for _, param in pairs], draw(TINY_MODEL, seed=1 + step))
        for optimizer in optimizers:
            optimizer.step()
    for (_, stacked), (_, single) in zip(together, alone, strict=True):
        assert torch.equal(stacked, single)


def test_perturb_sees_nesterov_momentum_names_and_step() -> None:
    """First step: B = (1 - mu) g, and the blend mu B + (1 - mu) g = (1 - mu)(1 + mu) g."""
    seen: list[tuple[Tensor, tuple[str, ...], int]] = []

    def spy(momentum: Tensor, names: Any, step: int, gradients: Any) -> Tensor:
        seen.append((momentum.clone(), tuple(names), step))
        return unperturbed(momentum, names, step)

    pairs = named(draw([(16, 32), (16, 32), (32, 16)], seed=0))
    muon = Muon(pairs, momentum=0.5, perturb=spy)
    set_gradients([param for _, param in pairs], [torch.full(param.shape, 4.0) for _, param in pairs])
    muon.step()
    muon.step()
    assert [(names, step) for _, names, step in seen] == [
        (("w0", "w1"), 0), (("w2",), 0), (("w0", "w1"), 1), (("w2",), 1)
    ]  # fmt: skip
    assert torch.equal(seen[0][0], torch.full((2, 16, 32), 3.0))


def test_momentum_of_bf16_parameters_is_fp32() -> None:
    """A gradient of 2^-9 against a momentum of 1 would vanish in bfloat16."""
    param = nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    muon = Muon([("w", param)], momentum=0.5)
    for value in (2.0, 1 + 2**-7):
        param.grad = torch.full((2, 2), value, dtype=torch.bfloat16)
        muon.step()
    buffer = muon.state[param]["momentum_buffer"]
    assert torch.equal(buffer, torch.full((2, 2), 1 + 2**-8))
    assert buffer.dtype == torch.float32
    assert param.dtype == torch.bfloat16


def test_closure_is_evaluated_with_gradients() -> None:
    param = nn.Parameter(torch.eye(2))
    muon = Muon([("w", param)], lr=0.1)

    def closure() -> float:
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert muon.step(closure) == 2.0
    assert param.grad is not None


@pytest.mark.parametrize(("rows", "cols", "plain", "rms"), [(64, 16, 2.0, 1.6), (16, 64, 1.0, 1.6), (25, 25, 1.0, 1.0)])
def test_scales_by_hand(rows: int, cols: int, plain: float, rms: float) -> None:
    assert original(rows, cols) == plain
    assert match_rms_adamw(rows, cols) == pytest.approx(rms, rel=1e-15)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), ()])
def test_parameter_that_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.odd has shape .*give it to AdamW"):
        Muon([("blocks.0.odd", nn.Parameter(torch.zeros(shape)))])


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan")])
def test_momentum_outside_its_range_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=rf"momentum {momentum} is outside \[0, 1\); 0 keeps none"):
        Muon([("w", nn.Parameter(torch.zeros(2, 2)))], momentum=momentum)


@pytest.mark.parametrize("partition", [whole, partial(per_head, head_size=16)])
def test_gradients_are_taken_up_once_each_and_stack_by_stack_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, partition: Partition
) -> None:
    """So that what a rule or a cast makes of them is never as large as the model."""
    taken_up: list[list[int]] = []

    def accumulate(buffers: list[Tensor], gradients: list[Tensor], mu: float) -> None:
        taken_up.append([int(gradient[0, 0]) for gradient in gradients])
        EMA.accumulate(buffers, gradients, mu)

    def stepped() -> list[Tensor]:
        pairs = [(f"blocks.{index}.attention.q.weight", nn.Parameter(torch.ones(32, 16))) for index in range(3)]
        optimizer = Muon(pairs, rule=Momentum(accumulate, EMA.look_ahead), partition=partition)
        gradients = draw([(32, 16)] * 3, seed=0)
        for index, gradient in enumerate(gradients):
            gradient[0, 0] = index
        set_gradients([param for _, param in pairs], gradients)
        optimizer.step()
        return [param for _, param in pairs]

    together = stepped()
    assert taken_up == [[0, 1, 2]]
    monkeypatch.setattr(sharding, "CACHED_ENTRIES", 1)
    for mine, other in zip(stepped(), together, strict=True):
        assert torch.equal(mine, other)
    assert taken_up[1:] == [[0], [1], [2]]
