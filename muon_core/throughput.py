"""How fast a run trains and what its time goes to, row by row: columns of `train`, and two of `runs`.

Model FLOPs utilisation (MFU) is what the forward and backward passes need, over what the GPUs could do in the time:
`flops_per_token * tokens per second / (peak FLOP/s * workers)`. What checkpointed activations compute again counts for
nothing in it, nor does the optimizer, so it only grows by training faster. Null where no peak is known, as of CPUs.
Source: Chowdhery et al. 2022 (PaLM), appendix B, https://arxiv.org/abs/2204.02311
"""

from __future__ import annotations

import time
from typing import Any

import torch

from muon_core import distributed, environment, gpus
from muon_core.config.run import RunConfig
from muon_core.config.sizes import flops_per_token
from muon_core.stopwatch import TRAINING, Part, Stopwatch

SHARES: tuple[Part, ...] = ("data", "optimizer", "tracking", "evaluation")
"""Columns `<part>_share`."""
COLUMNS = ("mfu", *(f"{part}_share" for part in SHARES), "peak_memory_bytes")
"""Of `train`, beside the tokens a second."""


class Throughput:
    """Where time went since the last row; begins when it is made."""

    def __init__(self, config: RunConfig, stopwatch: Stopwatch, device: torch.device) -> None:
        self._config, self._stopwatch, self._device = config, stopwatch, device
        gpu = gpus.find(environment.device_name(device))
        # Of a Hugging Face model that no plan has counted, no share is better than a wrong one; and products that are
        # rounded to TF32 are faster than the table's peak.
        counted = config.model.hf is None or config.model.hf_sizes is not None
        rounded = config.precision == "fp32" and environment.uses_tf32()
        peak = gpu.peak(config.precision) if gpu and counted and not rounded else None
        self._peak = peak * distributed.world_size() if peak else None
        self._seen, self._since = dict(stopwatch.seconds), time.perf_counter()

    def row(self, step_time: float) -> dict[str, Any]:
        """COLUMNS at the end of an optimizer step of `step_time` seconds; shares are of the time since the last row."""
        now, seconds = time.perf_counter(), self._stopwatch.seconds
        passed = now - self._since
        shares = {f"{part}_share": (seconds[part] - self._seen[part]) / passed for part in SHARES}
        self._seen, self._since = dict(seconds), now
        memory = environment.peak_memory_bytes(self._device)
        return {"mfu": self.mfu(self._config.tokens_per_step / step_time), "peak_memory_bytes": memory} | shares

    def total(self, tokens: int) -> dict[str, Any]:
        """Columns of `runs`, for a run of so many tokens: over all seconds in optimizer steps."""
        seconds = sum(self._stopwatch.seconds[part] for part in TRAINING)
        speed = tokens / seconds if seconds else None
        return {"tokens_per_s": speed, "mfu": None if speed is None else self.mfu(speed)}

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation at this speed."""
        return flops_per_token(self._config) * tokens_per_s / self._peak if self._peak else None
