import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from muon_core.evaluate import evaluate
from muon_core.loss import Head


class Bigram(nn.Module):
    """Scores of next tokens that depend on the last token only; notes how it is called."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, tokens: Tensor, targets: Tensor, head: Head) -> Tensor:
        self.calls.append((len(tokens), self.training, torch.is_inference_mode_enabled()))
        return head(self.table[tokens], torch.eye(len(self.table)), targets)


WINDOWS = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 1]])


def test_evaluate_averages_over_tokens_by_hand() -> None:
    # After 0: probabilities 1/4 and 3/4. After 1: 1/2 each, ties go to token 0.
    model = Bigram(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
    # predicted: 0->1, 1->0 | 1->1, 1->1 | 0->0, 0->1
    nats = -(math.log(3 / 4) + 3 * math.log(1 / 2) + math.log(1 / 4) + math.log(3 / 4))
    result = evaluate(model, WINDOWS, batch_size=2)
    assert result.val_loss == pytest.approx(nats / 6, rel=1e-6)
    assert result.val_accuracy == 3 / 6  # 0->1, 1->0, 0->1


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_scores_in_eval_mode_without_gradients_and_restores_the_mode(training: bool) -> None:
    model = Bigram(torch.zeros(2, 2)).train(training)
    evaluate(model, WINDOWS, batch_size=2)
    assert model.calls == [(2, False, True), (1, False, True)]
    assert model.training is training


def test_evaluate_restores_the_mode_when_the_model_fails() -> None:
    model = Bigram(torch.zeros(2, 2))
    with pytest.raises(IndexError):
        evaluate(model, WINDOWS + 1, batch_size=2)
    assert model.training


def test_evaluate_does_not_depend_on_the_batch_size_beyond_rounding() -> None:
    model, windows = random_model(), torch.randint(0, 50, (10, 33), generator=torch.Generator().manual_seed(1))
    whole, parts = evaluate(model, windows, 10), evaluate(model, windows, 3)
    assert parts.val_loss == pytest.approx(whole.val_loss, rel=1e-6)
    assert parts.val_accuracy == whole.val_accuracy


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_evaluate_is_bitwise_the_same_at_any_world_size(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = random_model(), torch.randint(0, 50, (7, 33), generator=torch.Generator().manual_seed(1))
    parts: list[Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", lambda sums: parts.append(sums.clone()))
    for rank in range(world_size):
        evaluate(model, windows, 2, rank=rank, world_size=world_size)
    assert torch.stack(parts).count_nonzero(dim=0)[:, 0].tolist() == [1, 1, 1, 1]  # each batch scored by one rank
    reduced = torch.stack(parts).sum(0)
    monkeypatch.setattr(dist, "all_reduce", lambda sums: sums.copy_(reduced))
    everywhere = {evaluate(model, windows, 2, rank=rank, world_size=world_size) for rank in range(world_size)}
    assert everywhere == {evaluate(model, windows, 2)}


def test_evaluate_reports_a_loss_that_is_not_finite() -> None:
    result = evaluate(Bigram(torch.full((2, 2), torch.nan)), WINDOWS, 2)
    assert math.isnan(result.val_loss)


def random_model() -> Bigram:
    return Bigram(torch.randn(50, 50, generator=torch.Generator().manual_seed(0)))
