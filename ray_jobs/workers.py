"""What a process that trains run after run does alike on Ray and without it, so that both give the same bits."""

from __future__ import annotations

import torch

from search_spaces.spec import Resources


def threads_per_worker(resources: Resources) -> int:
    """Threads a worker computes with; the bits of a run depend on it."""
    return max(1, int(resources.cpus_per_worker))


def forget_previous_run() -> None:
    """A warm process starts a run as a fresh one does: nothing here may depend on the run before."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)  # the streams of a run have generators of their own
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
