"""Where a run's seconds go: one stopwatch with nested parts, handed to whoever does the work.

A part that is timed inside another pauses it, so each second counts once and under its innermost name: what tracking
does in the middle of an optimizer step is tracking's, and nobody subtracts it later. On CUDA, work in flight counts
where it is awaited; tracking, which is measured beside training there, with what training waits for it; and what is
read of the next step as data, whatever the device does meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["data", "gradients", "optimizer", "tracking", "evaluation", "checkpoint"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Columns `<part>_s` of the `runs` table."""
TRAINING: tuple[Part, ...] = ("data", "gradients", "optimizer")
"""Parts that a run without evaluation, tracking and checkpoints has too: together `train_s`."""


class Stopwatch:
    """Seconds of each part so far."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._running: list[Part] = []
        self._since = 0.0

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Count the block's seconds to `part`, but for those of parts timed within it."""
        self._settle()
        self._running.append(part)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def _settle(self) -> None:
        """Book the time since the last change to the innermost part that runs."""
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
