"""Patterns assign every parameter to a group, or say which one they miss."""

import pytest
import torch
from torch import nn

from muon_core.config.run import ModelConfig
from muon_core.model import Transformer, hidden_matrices
from muon_core.optim.param_groups import assign


def params(*names: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(torch.zeros(1, 1))) for name in names]


def test_default_patterns_fit_the_model() -> None:
    model = Transformer(ModelConfig(num_layers=2))
    groups = assign(model.named_parameters())
    hidden, vectors = ([name for name, _ in groups[group]] for group in ("hidden", "vectors"))
    assert sorted(hidden) == sorted(matrix.name for matrix in hidden_matrices(model))
    assert sorted(hidden + vectors) == sorted(name for name, _ in model.named_parameters())
    assert all(param.ndim == 1 for name, param in groups["vectors"] if name != "embedding.weight")


def test_first_matching_pattern_claims() -> None:
    groups = assign(params("a.bias", "a.weight"), [("*.bias", "vectors"), ("a.*", "hidden")])
    assert [name for name, _ in groups["vectors"]] == ["a.bias"]
    assert [name for name, _ in groups["hidden"]] == ["a.weight"]


def test_parameter_no_pattern_claims_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parameter head\.bias matches no pattern of \['\*\.weight'\]; add one"):
        assign(params("a.weight", "head.bias"), [("*.weight", "hidden")])


@pytest.mark.parametrize("patterns", [[("*.weight", "hidden"), ("gone.*", "vectors")]])
def test_pattern_that_matches_nothing_is_refused(patterns: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"pattern 'gone\.\*' claims no parameter"):
        assign(params("a.weight"), patterns)  # type: ignore[arg-type]


def test_pattern_behind_one_that_takes_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pattern 'a\.\*' claims no parameter"):
        assign(params("a.weight"), [("*.weight", "hidden"), ("a.*", "vectors")])
