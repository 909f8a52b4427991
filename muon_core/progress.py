"""Where a run stands, as plain numbers; apart from the recorder so that a display needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for whoever watches it."""

    run_id: str
    step: int
    steps: int
    train_loss: float | None
    """Nats per token; None before the first step."""
    val_loss: float | None
    """Nats per token at the newest evaluation."""
    tokens: int
    """Training tokens seen."""
    tokens_per_s: float | None
    elapsed_s: float
    attempt: str | None = None
    """Id of the attempt in the results store."""
    val_accuracy: float | None = None
    """Share of next tokens predicted exactly, at the newest evaluation."""
