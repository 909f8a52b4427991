"""What runs take before they are run: weights, FLOPs, and seconds from how fast runs like them were.

A run's speed is read from those in the results store that are most like it; where there are none, a stated guess.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, Protocol

from muon_core.config.run import RunConfig
from muon_core.config.sizes import flops_per_token
from muon_core.statuses import FINISHED

ASSUMED_CPU, ASSUMED_GPU = 1e10, 1e14  # FLOP/s of a CPU core and of a GPU, where no run was measured
ASSUMED_START_S = 1.0  # of a run, whatever it does
_ASSUMED = "assumed:"


class Speed(NamedTuple):
    """A finished run: what it did, and how long that took."""

    like: tuple[Any, ...]
    optimizer: str
    flops: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run of each arm takes, by arm_id."""

    seconds: Mapping[str, float]
    """From its start to its end, however many run at once."""
    flops: Mapping[str, float]
    source: str
    """Where the seconds are from."""
    is_measured: bool
    """Whether all are from runs that were trained, and none is a guess."""


def flops(config: RunConfig) -> float:
    """FLOPs of the forward and backward passes of a run."""
    return config.steps * config.tokens_per_step * flops_per_token(config)


class Past(Protocol):
    """How a run ended, and what it was."""

    @property
    def status(self) -> str: ...
    @property
    def wall_s(self) -> float | None: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def config_json(self) -> str | None: ...


def speeds(ends: Iterable[Past]) -> list[Speed]:
    """What `ends` tell of speed, but for those whose config is none of this release."""
    found = []
    for end in ends:
        if end.status not in FINISHED or not (end.wall_s and end.config_json and end.steps):
            continue
        try:
            config = RunConfig.model_validate_json(end.config_json)
        except ValueError:
            continue
        done = end.steps / config.steps
        found.append(Speed(_like(config), config.optimizer.name, flops(config) * done, end.wall_s))
    return found


def estimate(arms: Mapping[str, RunConfig], past: Sequence[Speed], guess: float) -> Estimate:
    """What a run of each of `arms`, arm_id to config, takes, judged by `past`.

    Args:
        guess: FLOP/s of what one run occupies, for when no run was measured.
    """
    known = _Known(past)
    work = {arm: flops(config) for arm, config in arms.items()}
    seconds, sources = dict[str, float](), dict[str, None]()
    for arm, config in arms.items():
        if speed := known.speed(_like(config), config.optimizer.name) if past else None:
            seconds[arm], source = work[arm] / speed[0], speed[1]
        else:
            seconds[arm], source = (
                work[arm] / guess + ASSUMED_START_S,
                f"{_ASSUMED} {guess:.0e} FLOP/s, and a second to start",
            )
        sources[source] = None
    return Estimate(seconds, work, "; ".join(sources), not any(source.startswith(_ASSUMED) for source in sources))


class _Known:
    """Speeds of past runs, by how like they are to another."""

    def __init__(self, past: Sequence[Speed]) -> None:
        self._past = past
        self._by_kind = _grouped(past, lambda speed: (speed.like, speed.optimizer))
        self._by_model = _grouped(past, lambda speed: speed.like)

    def speed(self, like: tuple[Any, ...], optimizer: str) -> tuple[float, str] | None:
        """FLOP/s of the runs most like one, and which these are."""
        for runs, kind in (
            (self._by_kind.get((like, optimizer)), "of this model and optimizer"),
            (self._by_model.get(like), "of this model"),
            (self._past, "of other models"),
        ):
            if runs:
                count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
                return median(run.flops / run.seconds for run in runs), f"measured: {count} {kind} in the store"
        return None


def _grouped(past: Sequence[Speed], key: Callable[[Speed], Any]) -> dict[Any, list[Speed]]:
    groups: dict[Any, list[Speed]] = defaultdict(list)
    for speed in past:
        groups[key(speed)].append(speed)
    return groups


def _like(config: RunConfig) -> tuple[Any, ...]:
    """What a run's speed mostly depends on."""
    return config.model, config.data.seq_len, config.batch_size, config.precision
