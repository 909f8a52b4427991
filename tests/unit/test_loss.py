"""The loss over chunks of tokens: PyTorch's own loss and gradients, of which never more than a chunk is held."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from muon_core import loss
from muon_core.config.run import ModelConfig
from muon_core.gradients import tree_gradients
from muon_core.loss import mean_loss, score
from muon_core.model import Transformer, init_weights, next_token_loss

TOKENS, WIDTH, VOCABULARY = 50, 16, 300


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens at a time; the last chunk has one."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 7 * VOCABULARY + 5)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float().flatten(0, -2), targets.flatten())


def drawn(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states `(2, 25, 16)`, weights and targets; logits of about 4 * scale."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, TOKENS // 2, WIDTH, generator=draw, requires_grad=True)
    weight = (scale * torch.randn(VOCABULARY, WIDTH, generator=draw)).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (2, TOKENS // 2), generator=draw)


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> None:
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
def test_chunks_have_the_loss_and_gradients_of_the_whole(chunks: None, scale: float) -> None:
    hidden, weight, targets = drawn(scale)
    ours, theirs = mean_loss(hidden, weight, targets), plain(hidden, weight, targets)
    assert_near(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(3 * one, (hidden, weight)) for one in (ours, theirs)), strict=True):
        assert_near(mine, other)


def test_what_fits_into_a_chunk_has_the_bits_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = drawn()
    monkeypatch.setattr(loss, "CHUNK_LOGITS", TOKENS * VOCABULARY)
    both = [one(hidden, weight, targets) for one in (mean_loss, plain)]
    assert torch.equal(*both)
    for mine, other in zip(*(torch.autograd.grad(one, (hidden, weight)) for one in both), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_are_computed_of_what_wants_them(chunks: None, frozen: int) -> None:
    given = drawn()
    given[frozen].requires_grad_(False)
    (wanted,) = (tensor for tensor in given if tensor.requires_grad)
    ours, theirs = (torch.autograd.grad(one(*given), wanted)[0] for one in (mean_loss, plain))
    assert_near(ours, theirs)


def test_a_graph_that_is_kept_gives_its_gradients_again(chunks: None) -> None:
    hidden, weight, targets = drawn()
    value = mean_loss(hidden, weight, targets)
    first, second = (torch.autograd.grad(value, (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_chunks_are_as_exact_as_the_whole_under_bfloat16_autocast(chunks: None) -> None:
    hidden, weight, targets = drawn()
    exact = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = mean_loss(hidden, weight, targets), plain(hidden, weight, targets)
    assert ours.dtype == torch.float32
    assert_near(ours, theirs, 1e-6)  # of the same bfloat16 products
    for true, mine, other in zip(
        exact, *(torch.autograd.grad(one, (hidden, weight)) for one in (ours, theirs)), strict=True
    ):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() <= 1.1 * (other - true).norm()
        assert_near(mine, other, 2**-7)


@pytest.mark.parametrize("bf16", [False, True])
def test_no_more_than_a_chunk_is_held(chunks: None, bf16: bool) -> None:
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor) and tensor.shape != (VOCABULARY, WIDTH):
                    self.seen = max(self.seen, tensor.numel())
            return out

    hidden, weight, targets = drawn()
    with Largest() as largest, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        mean_loss(hidden, weight, targets).backward()
        score(hidden, weight, targets)
    assert 0 < largest.seen <= max(loss.CHUNK_LOGITS, VOCABULARY * WIDTH)


class Untied(nn.Module):
    """A model with an output layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return mean_loss(self.embedding(tokens), self.head.weight, targets)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_has_the_gradients_of_the_whole(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=WIDTH, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=24, vocab_size=VOCABULARY, dropout=0.1
    )
    model = Transformer(config) if tied else Untied()
    if isinstance(model, Transformer):
        init_weights(model, 0)
    window = torch.randint(0, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))

    def gradients(chunk: int) -> list[Tensor]:
        monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk)
        torch.manual_seed(2)  # of dropout
        parameters = [parameter.requires_grad_() for parameter in model.parameters()]
        tree_gradients(parameters, lambda index: next_token_loss(model, window), 1)
        found = [parameter.grad for parameter in parameters]
        return [grad for grad in found if grad is not None]

    parts, whole = gradients(7 * VOCABULARY), gradients(2**25)
    assert len(parts) == len(whole) == len(list(model.parameters()))
    for mine, other in zip(parts, whole, strict=True):
        assert_near(mine, other, 2e-6)


def test_scores_of_chunks_are_those_of_the_whole(chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = drawn()
    parts = score(hidden, weight, targets)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 2**25)
    whole = score(hidden, weight, targets)
    assert parts[1] == whole[1]
    assert parts[0].item() == pytest.approx(whole[0].item(), rel=1e-7)


def test_a_loss_that_is_not_finite_stays_one(chunks: None) -> None:
    hidden, weight, targets = drawn()
    with torch.no_grad():
        hidden[1, 3] = torch.inf
    assert not mean_loss(hidden, weight, targets).isfinite()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch's own tracer
def test_chunks_compile_into_one_graph(chunks: None) -> None:
    hidden, weight, targets = drawn()
    compiled = torch.compile(mean_loss, backend="aot_eager", fullgraph=True)
    ours = compiled(hidden, weight, targets)
    for mine, other in zip(
        *(torch.autograd.grad(one, (hidden, weight)) for one in (ours, plain(hidden, weight, targets))), strict=True
    ):
        assert_near(mine, other)
