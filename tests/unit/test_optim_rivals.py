"""Published rivals against plain renderings in float64, each written from its paper and the authors' code alone."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muon_core.config.optimizers import AdaMuonConfig, NorMuonConfig
from muon_core.optim.decoupled import DecoupledOptimizer
from muon_core.optim.lion import Lion
from muon_core.optim.muon import Muon, match_rms_adamw
from muon_core.optim.newton_schulz import newton_schulz
from muon_core.optim.second_moment import of_signs, per_entry, per_neuron
from muon_core.optim.sgd import SGD
from muon_core.optim.soap import SOAP

SHAPES = [(6, 4), (4, 9), (5, 5)]
LR, DECAY, STEPS = 0.03, 0.1, 25


def start(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    """Of no function: nothing settles, and no entry is zero."""
    return start(100 + step)


def trained(optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[Tensor]:
    """Weights of an optimizer's parameters after steps with these gradients."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in range(steps):
        for param, gradient in zip(params, gradients(step), strict=True):
            param.grad = gradient.to(param.dtype)
        optimizer.step()
    return [param.detach() for param in params]


def rendered(rule: Callable[[Tensor, list[Tensor]], list[Tensor]], steps: int = STEPS) -> list[Tensor]:
    """The same of a rule: from a matrix's start and all its gradients to what each step adds, before its decay."""
    weights = []
    for index, weight in enumerate(start(0)):
        for update in rule(weight, [gradients(step)[index] for step in range(steps)]):
            weight = weight * (1 - LR * DECAY) - LR * update
        weights.append(weight)
    return weights


def furthest(mine: list[Tensor], other: list[Tensor]) -> float:
    """Largest relative distance of two weights."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(mine, other, strict=True))


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(weight) for weight in start(0, dtype)]


def named(dtype: torch.dtype) -> list[tuple[str, nn.Parameter]]:
    return [(f"w{index}", param) for index, param in enumerate(parameters(dtype))]


def lion(weight: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Algorithm 2 of arXiv 2302.06675: c = beta1 m + (1 - beta1) g moves, m = beta2 m + (1 - beta2) g stays."""
    m, updates = torch.zeros_like(weight), []
    for g in gradients:
        updates.append((0.9 * m + 0.1 * g).sign())
        m = 0.99 * m + 0.01 * g
    return updates


def soap(weight: Tensor, gradients: list[Tensor], longest: int = 100) -> list[Tensor]:
    """Algorithm 3 of arXiv 2409.11321, with the bias correction and the idle first step of the authors' code.

    Bases come from whole eigendecompositions here and there from an iteration; so it is given the same one.
    """
    rows, cols = weight.shape
    beta, m, v = 0.95, torch.zeros_like(weight), torch.zeros_like(weight)
    grams = [torch.zeros(rows, rows).double(), torch.zeros(cols, cols).double()]
    bases = [torch.eye(rows).double(), torch.eye(cols).double()]
    updates: list[Tensor] = []
    for t, g in enumerate(gradients):
        if t > 0:
            m = beta * m + (1 - beta) * g
            rotated = bases[0].T @ g @ bases[1]
            v = beta * v + (1 - beta) * rotated**2
            corrected = (bases[0].T @ m @ bases[1]) / (1 - beta**t)
            updates.append(bases[0] @ (corrected / (v.sqrt() + 1e-8)) @ bases[1].T * math.sqrt(1 - beta**t))
        else:
            updates.append(torch.zeros_like(weight))
        for i, product in enumerate((g @ g.T, g.T @ g)):
            grams[i] = beta * grams[i] + (1 - beta) * product
            if len(product) > longest:
                continue
            if t == 0:
                bases[i] = torch.linalg.eigh(grams[i])[1].flip(1)
            elif t % 10 == 0:
                estimates = torch.diag(bases[i].T @ grams[i] @ bases[i])
                order = estimates.argsort(descending=True)
                v = v[order] if i == 0 else v[:, order]
                bases[i] = torch.linalg.qr(grams[i] @ bases[i][:, order])[0]
    return updates


def orthogonalized(matrix: Tensor) -> Tensor:
    """Newton-Schulz of both repositories: five steps of one quintic on the wide side, after a division by the norm."""
    tall = len(matrix) > matrix.size(1)
    x: Tensor = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def momenta(gradients: list[Tensor]) -> list[Tensor]:
    """Nesterov momenta of an average."""
    m, seen = torch.zeros_like(gradients[0]), []
    for g in gradients:
        m = 0.95 * m + 0.05 * g
        seen.append(0.95 * m + 0.05 * g)
    return seen


def normuon(weight: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Algorithm 1 of arXiv 2510.05491 with the authors' code's Nesterov momentum and norms, and Newton-Schulz."""
    v, updates = torch.zeros(len(weight), 1).double(), []
    for momentum in momenta(gradients):
        o = orthogonalized(momentum)
        v = 0.9 * v + 0.1 * (o**2).mean(1, keepdim=True)
        divided = o / (v.sqrt() + 1e-10)
        scale = max(1, weight.size(0) / weight.size(1)) ** 0.5
        updates.append(scale * divided * o.norm() / (divided.norm() + 1e-10))
    return updates


def adamuon(weight: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Algorithm 1 of arXiv 2507.11005v3 with the authors' code's Nesterov momentum and Newton-Schulz."""
    v, updates = torch.zeros_like(weight), []
    for momentum in momenta(gradients):
        o = orthogonalized(momentum.sign())
        v = 0.9 * v + 0.1 * o**2
        divided = o / (v.sqrt() + 1e-8)
        updates.append(divided * 0.2 * math.sqrt(weight.numel()) / (divided.norm() + 1e-8))
    return updates


def test_lion_is_its_paper() -> None:
    weights = trained(Lion(parameters(), lr=LR, weight_decay=DECAY))
    assert furthest(weights, rendered(lion)) < 1e-14


@pytest.mark.parametrize("longest", [100, 5])
def test_soap_is_its_paper(longest: int) -> None:
    """Over two new bases; also where one side of a matrix is not rotated."""
    weights = trained(SOAP(parameters(), lr=LR, weight_decay=DECAY, max_precondition_dim=longest))
    assert furthest(weights, rendered(partial(soap, longest=longest))) < 1e-10


def test_soap_moves_nothing_at_its_first_step() -> None:
    before = start(0)
    assert furthest(trained(SOAP(parameters(), lr=LR), steps=1), before) == 0
    assert furthest(trained(SOAP(parameters(), lr=LR), steps=2), before) > 0.01


IN_FP32 = partial(newton_schulz, dtype=torch.float32)
RIVALS: dict[str, tuple[Any, dict[str, Any]]] = {
    "normuon": (normuon, {"orthogonalize": IN_FP32, "adapt": partial(per_neuron, beta2=0.9)}),
    "adamuon": (
        adamuon,
        {
            "orthogonalize": partial(of_signs, orthogonalize=IN_FP32),
            "adapt": partial(per_entry, beta2=0.9),
            "scale": match_rms_adamw,
        },
    ),
}


@pytest.mark.parametrize("name", RIVALS)
def test_muon_with_a_second_moment_is_its_paper(name: str) -> None:
    """Within what float32 leaves of five steps of Newton-Schulz."""
    rule, functions = RIVALS[name]
    optimizer = Muon(named(torch.float32), LR, DECAY, **functions)
    assert furthest(trained(optimizer), rendered(rule)) < 1e-5


SETTINGS: list[dict[str, Any]] = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sgd_has_the_bits_of_torch(settings: dict[str, Any]) -> None:
    ours = SGD(parameters(torch.float32), lr=LR, **settings)
    theirs = torch.optim.SGD(parameters(torch.float32), lr=LR, **settings)
    for mine, other in zip(trained(ours), trained(theirs), strict=True):
        assert torch.equal(mine, other)


def test_sgd_decays_apart_from_the_gradient() -> None:
    """After two steps w (1 - lr d)^2 - lr (1 - lr d) g1 - lr (mu g1 + g2), by hand."""
    param = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = SGD([param], lr=0.5, momentum=0.5, weight_decay=0.5)
    for gradient in (1.0, 4.0):
        param.grad = torch.tensor([[gradient]])
        optimizer.step()
    assert param.item() == 2 * 0.75**2 - 0.5 * 0.75 * 1 - 0.5 * (0.5 * 1 + 4)


OPTIMIZERS: dict[str, Callable[[Any], DecoupledOptimizer]] = {
    "lion": lambda params: Lion(params, lr=LR),
    "sgd": lambda params: SGD(params, lr=LR, momentum=0.9),
    "soap": lambda params: SOAP(params, lr=LR, precondition_frequency=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_state_is_fp32_or_finer_also_after_loading(name: str, dtype: torch.dtype) -> None:
    """And a run that goes on from it ends on the bits of one that was not interrupted."""
    first = OPTIMIZERS[name](parameters(dtype))
    resumed = OPTIMIZERS[name]([nn.Parameter(weight.clone()) for weight in trained(first, steps=4)])
    resumed.load_state_dict(first.state_dict())
    expected = torch.promote_types(dtype, torch.float32)
    for param in resumed.param_groups[0]["params"]:
        kept = [value for value in resumed.state[param].values() if value.ndim]
        assert kept
        assert {value.dtype for value in kept} == {expected}
    halfway = [param.detach().clone() for param in resumed.param_groups[0]["params"]]
    ends = trained(resumed, steps=3), trained(first, steps=3)
    for mine, other, before in zip(*ends, halfway, strict=True):
        assert torch.equal(mine, other)
        assert not torch.equal(mine, before)


def test_adamuon_has_the_scale_of_its_paper_unless_another_is_set() -> None:
    assert (AdaMuonConfig().profile, AdaMuonConfig().adjust, AdaMuonConfig().momentum_kind) == (
        "moonlight", "match_rms_adamw", "sum"
    )  # fmt: skip
    assert AdaMuonConfig(profile="keller").adjust == "original"
    assert AdaMuonConfig(adjust="none").momentum_kind == "sum"
    assert AdaMuonConfig().replace(profile="torch").adjust == "original"


def test_normuon_has_no_parts_of_matrices() -> None:
    with pytest.raises(ValueError, match="attention_blocks per_head under normuon, whose neurons are rows of whole"):
        NorMuonConfig(attention_blocks="per_head")


@pytest.mark.parametrize("optimizer", [Lion, SGD, SOAP])
@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("lr", math.nan), ("weight_decay", -0.1)])
def test_rates_that_are_none_are_refused(optimizer: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} {value} is not a number from 0 on; give one$"):
        optimizer(parameters(), **{name: value})
