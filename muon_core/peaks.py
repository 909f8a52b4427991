"""Norms of the hidden matrices at every step and their running maxima: a spike between two rows is caught.

They stay on the device until a row asks for them: a step costs two fused norms and no synchronization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muon_core import distributed
from muon_core.layout import Layout
from muon_core.model import HiddenMatrix

_PEAKS = ("weight_norm", "grad_norm", "weight_norm_peak", "grad_norm_peak")
_COLUMNS = ("weight_norm", "weight_norm_peak", "grad_norm", "grad_norm_peak")


class Peaks:
    """Norms of the hidden matrices at every step and their running maxima, kept on the device until a row asks."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        names = [matrix.name for matrix in layout.all_matrices]
        device = layout.matrices[0].parameter.device
        self._mine = torch.tensor([names.index(matrix.name) for matrix in layout.matrices], device=device)
        zeros = torch.zeros(len(names), device=device)
        self.weight_norm, self.grad_norm = zeros.clone(), zeros.clone()
        self.weight_norm_peak, self.grad_norm_peak = zeros.clone(), zeros.clone()

    def state_dict(self) -> dict[str, Tensor]:
        """The norms of the last step and the maxima so far."""
        return {name: getattr(self, name) for name in _PEAKS}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        for name in _PEAKS:
            if state[name].shape != self.weight_norm.shape:
                raise ValueError(f"{name} of {tuple(state[name].shape)} matrices, not {tuple(self.weight_norm.shape)}")
            setattr(self, name, state[name].to(self.weight_norm.device, copy=True))

    def before_step(self) -> None:
        """Gradient norms, raw; to be called while matrices and gradients are whole, as `after_step`."""
        self.grad_norm = self._norms([_gradient(matrix) for matrix in self._layout.matrices])
        torch.maximum(self.grad_norm_peak, self.grad_norm, out=self.grad_norm_peak)

    def after_step(self) -> None:
        """Weight norms."""
        self.weight_norm = self._norms([matrix.parameter.detach() for matrix in self._layout.matrices])
        torch.maximum(self.weight_norm_peak, self.weight_norm, out=self.weight_norm_peak)

    def of_mine(self) -> dict[str, Tensor]:
        """The norms of this rank's matrices, by column."""
        norms = {name: getattr(self, name) for name in _COLUMNS}
        return {name: norm[self._mine] for name, norm in norms.items()} if self._layout.shared else norms

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        """Of all matrices, on every rank, from those of this rank's."""
        norms = torch.stack(torch._foreach_norm(tensors)).float()
        if not self._layout.shared:
            return norms
        everyones = torch.zeros_like(self.weight_norm)
        everyones[self._mine] = norms
        return distributed.sum_over_ranks(everyones)  # of one number and zeros each: exact


def _gradient(matrix: HiddenMatrix) -> Tensor:
    assert matrix.parameter.grad is not None
    return matrix.parameter.grad
