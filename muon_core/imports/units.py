"""Units that a log may give values in, and how they become ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def _same(value: float) -> float:
    return value


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit and its conversion, as a function and in words; without words a value stays what it is, bit for bit."""

    name: str
    words: str = ""
    convert: Callable[[float], float] = _same

    def __str__(self) -> str:
        return f"{self.name}, {self.words}" if self.words else self.name


def _log(perplexity: float) -> float:
    """Raises ValueError for what is no perplexity."""
    return perplexity if math.isnan(perplexity) else math.log(perplexity)


_LOSS = (
    Unit("nats per token"),
    Unit("bits", "times ln 2", lambda value: value * math.log(2)),
    Unit("perplexity", "its logarithm", _log),
)
_SECONDS = (
    Unit("seconds"),
    Unit("milliseconds", "divided by 1000", lambda value: value / 1000),
    Unit("minutes", "times 60", lambda value: value * 60),
    Unit("hours", "times 3600", lambda value: value * 3600),
)
_UNITS = {
    "val_loss": _LOSS,
    "train_loss": _LOSS,
    "val_accuracy": (Unit("share"), Unit("percent", "divided by 100", lambda value: value / 100)),
    "elapsed_s": _SECONDS,
    "step_time_s": _SECONDS,
    "tokens": (
        Unit("tokens"),
        Unit("millions", "times 10^6", lambda value: value * 1_000_000),
        Unit("billions", "times 10^9", lambda value: value * 1_000_000_000),
    ),
}
UNITS: dict[str, dict[str, Unit]] = {
    meaning: {unit.name.partition(" ")[0]: unit for unit in units} for meaning, units in _UNITS.items()
}
"""Meaning -> name of a unit in `--map` -> the unit; its own first, in which a value stays what it is."""


def bits_per_byte(bytes_per_token: float) -> Unit:
    """Of a loss that is told by byte: nanochat's."""
    words = f"times ln 2 times {bytes_per_token:g} bytes a token"
    return Unit("bits per byte", words, lambda value: value * math.log(2) * bytes_per_token)
