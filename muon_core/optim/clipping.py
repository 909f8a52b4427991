"""Gradients scaled down for the length of an optimizer step.

For that length only: recorded norms are of raw gradients, and whoever looks at `p.grad` after the step finds what the
backward pass left there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from muon_core import distributed


@contextmanager
def clipped(params: Sequence[nn.Parameter], max_norm: float, *, shared: bool = False) -> Iterator[None]:
    """Within, the gradients' norm, together, is at most `max_norm`; afterwards each parameter has its own back.

    Like `torch.nn.utils.clip_grad_norm_`, to the bit, but for leaving the gradients alone. Needs a copy of them, and no
    synchronization with the device. `shared`: ranks hold different gradients, which together have the norm.
    """
    raw = [(param, param.grad) for param in params if param.grad is not None]
    if not raw:
        yield
        return
    gradients = [grad for _, grad in raw]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if shared:
        norm = distributed.norm_over_ranks(norm)
    coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    try:
        for param, grad in raw:
            param.grad = grad * coefficient.to(grad.dtype)
        yield
    finally:
        for param, grad in raw:
            param.grad = grad
