"""What a process that trains run after run does alike on Ray and without it, so that both give the same bits."""

from __future__ import annotations

import torch


def forget_previous_run() -> None:
    """A warm process starts a run as a fresh one does: nothing here may depend on the run before."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)  # the streams of a run have generators of their own
    # A run on CPUs has no CUDA, and to ask a GPU beside it for its peak would take half a gigabyte of that.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
