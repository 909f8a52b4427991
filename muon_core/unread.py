"""What crosses between host and device in a step, without waiting for each other.

A GPU works through what it was told while the host tells it more; whoever reads a number of it waits until all is done,
and the GPU then waits for the host. So losses and norms stay on the device until something is recorded or saved, and
come in one copy; tokens go there from pinned memory, from which a copy needs no waiting.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Unread:
    """Loss and gradient norm of the steps that nobody has looked at yet."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    def add(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Keep those of a step where they are."""
        self._values += [loss.detach(), grad_norm]

    def read(self) -> list[tuple[float, float]]:
        """(loss, norm) of each step since the last call, oldest first: one copy from the device, or none."""
        if not self._values:
            return []
        values = torch.stack(self._values).tolist()
        self._values = []
        return list(zip(values[::2], values[1::2], strict=True))


def to_device(tokens: Tensor, device: torch.device) -> Tensor:
    """`tokens` on `device`; to a GPU by a copy that nobody waits for."""
    if device.type != "cuda":
        return tokens.to(device)
    return tokens.pin_memory().to(device, non_blocking=True)
