"""Where the weights of a model are, their gradients and what optimizers keep: here, all of them on every rank.

The loop, the recorder and checkpoints ask this for what they need whole, so none of them knows whether a rank holds all
of a model or, under `fsdp.Shares`, its share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from muon_core import seeds
from muon_core.hf_model import HFModel
from muon_core.model import HiddenMatrix, Transformer, hidden_matrices
from muon_core.optim.optimizers import Optimizers


class Layout:
    """Everything on every rank."""

    shared = False
    """Whether ranks hold different things, and each optimizes and measures its own hidden matrices: forward passes and
    what is whole are then collectives."""

    def __init__(self, model: Transformer | HFModel) -> None:
        self.model = model
        self.init_hash = seeds.hash_parameters(model)
        """Of the weights the layout was made with, those of step 0."""
        self.all_matrices = model.matrices if isinstance(model, HFModel) else hidden_matrices(model)
        self.matrices: list[HiddenMatrix] = self.all_matrices
        """Those this rank optimizes and measures."""
        self.parts: list[nn.Module] = [model]
        """What is computed in one go, for a compiler."""

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What this rank's optimizers step."""
        return list(self.model.named_parameters())

    def whole(self, *, step: bool = False) -> AbstractContextManager[None]:
        """Within, `matrices` are whole. With `step` optimizers have their gradients too, and new weights are kept."""
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        """Of all gradients together, raw."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm: Tensor = torch.stack(torch._foreach_norm(gradients)).norm()
        return norm

    def saved(self, optimizers: Optimizers) -> dict[str, Any]:
        """What a checkpoint holds of weights and optimizers, whole and by name, on rank 0; live tensors where not
        `shared`."""
        return {"model": self.weights(), "optimizers": optimizers.state_dict(), "kept": optimizers.kept()}

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, on rank 0."""
        return self.model.state_dict()

    def load(
        self,
        optimizers: Optimizers,
        weights: Mapping[str, Tensor],
        state: dict[str, dict[str, Any]],
        kept: Mapping[str, Collection[str]] | None,
    ) -> None:
        """Continue from what `saved` gave in any layout. Raises: as `load_state_dict` of model and optimizers do."""
        self.model.load_state_dict(weights)
        optimizers.load_state_dict(state, kept)
