"""A rank's sequences of each step, on its device before they are asked for.

Rows of a data set are read from files that are mapped into memory, which takes milliseconds where pages are missing,
and a GPU that waits for them does nothing meanwhile. So the next step's rows are read once all passes of this step are
enqueued, while the GPU works through them, and a stream of their own copies them; the step waits for that copy and for
no other. What the rows of a step are depends on the step alone: who asks for another one than was foreseen, as after a
run is taken up again, gets what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from muon_core.unread import to_device


@dataclass(frozen=True, slots=True)
class _Copied:
    """Rows that are on their way to the device, and the event of their arrival."""

    step: int
    rows: Tensor
    arrival: torch.cuda.Event


class Batches:
    """The sequences `(n, seq_len + 1)` of every step on `device`, int64.

    Args:
        read: from a step, counted from 0, to its sequences on the CPU.
        steps: how many there are.
    """

    def __init__(self, read: Callable[[int], Tensor], steps: int, device: torch.device) -> None:
        self._read, self._steps, self._device = read, steps, device
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._next: _Copied | None = None

    def of(self, step: int) -> Tensor:
        """The sequences of `step`; nobody waits for their copy but what is enqueued from now on."""
        copied, self._next = self._next, None
        if copied is None or copied.step != step:
            return to_device(self._read(step), self._device)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied.arrival)
        copied.rows.record_stream(current)  # their memory is the other stream's, which would use it again
        return copied.rows

    def foresee(self, step: int) -> None:
        """Begin with those of `step`, if there is such a step and a device that is busy meanwhile."""
        if self._stream is None or step >= self._steps:
            return
        tokens = self._read(step)
        with torch.cuda.stream(self._stream):
            rows = to_device(tokens, self._device)
            self._next = _Copied(step, rows, self._stream.record_event())
