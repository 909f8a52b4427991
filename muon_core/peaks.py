"""Norms of the hidden matrices at every step and their running maxima: a spike between two rows is caught.

They stay on the device until a row asks for them: a step costs two fused norms and no synchronization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muon_core.model import HiddenMatrix

_PEAKS = ("weight_norm", "grad_norm", "weight_norm_peak", "grad_norm_peak")


class Peaks:
    """Norms of the hidden matrices at every step and their running maxima, kept on the device until a row asks."""

    def __init__(self, matrices: list[HiddenMatrix]) -> None:
        self._parameters = [matrix.parameter for matrix in matrices]
        zeros = torch.zeros(len(matrices), device=self._parameters[0].device)
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

    def before_step(self, gradients: list[Tensor]) -> None:
        """Gradient norms, raw."""
        self.grad_norm = torch.stack(torch._foreach_norm(gradients)).float()
        torch.maximum(self.grad_norm_peak, self.grad_norm, out=self.grad_norm_peak)

    def after_step(self) -> None:
        """Weight norms."""
        self.weight_norm = torch.stack(torch._foreach_norm([p.detach() for p in self._parameters])).float()
        torch.maximum(self.weight_norm_peak, self.weight_norm, out=self.weight_norm_peak)
