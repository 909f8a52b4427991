"""What runs take before they are run: FLOPs, and seconds from how fast runs like them were.

A run's speed is read from those in the results store that are most like it; where there are none, a stated guess.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, Protocol

from muon_core.config.run import RunConfig
from muon_core.config.sizes import flops_per_token, orthogonalizer_flops
from muon_core.gpus import GPUS
from muon_core.statuses import FINISHED
from search_spaces.spec import Resources

ASSUMED_GPU, ASSUMED_MFU = "h100", 0.35
ASSUMED_CPU = 1e10  # FLOP/s of a core
ASSUMED_START_S = 1.0  # of a run on CPUs, whatever it does
_ASSUMED = "assumed:"


class Speed(NamedTuple):
    """A finished run: what it did, and how long that took."""

    like: tuple[Any, ...]
    optimizer: str
    flops: float
    seconds: float
    on_gpu: bool | None = None
    """None where its record does not tell."""


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


def gpu_hours(config: RunConfig, gpu: str, mfu: float, tokens: float | None = None) -> float:
    """Hours of one GPU that training takes: FLOPs, Newton-Schulz among them, at `mfu` of the peak.

    Starts, evaluation, tracking and noise are not in them. Precisions that a GPU lacks are computed in fp32.

    Args:
        tokens: so many training tokens in place of the run's.
    """
    device, step = GPUS[gpu], config.tokens_per_step
    work = flops_per_token(config) * step + orthogonalizer_flops(config)
    steps = config.steps if tokens is None else tokens / step
    return steps * work / ((device.peak(config.precision) or device.fp32) * mfu) / 3600


@dataclass(frozen=True, slots=True)
class Guess:
    """What a run is assumed to take where none was measured."""

    resources: Resources
    gpu: str = ASSUMED_GPU
    """One of GPUS, for runs on GPUs."""

    @property
    def on_gpu(self) -> bool:
        """Whether it trains on GPUs."""
        return self.resources.gpus_per_worker > 0

    def seconds(self, config: RunConfig) -> float:
        """From its start to its end."""
        asked = self.resources
        if gpus := asked.workers * asked.gpus_per_worker:
            return gpu_hours(config, self.gpu, ASSUMED_MFU) * 3600 / gpus
        return flops(config) / (ASSUMED_CPU * asked.workers * asked.cpus_per_worker) + ASSUMED_START_S

    def __str__(self) -> str:
        asked = self.resources
        if gpus := asked.workers * asked.gpus_per_worker:
            return f"{_ASSUMED} {ASSUMED_MFU:.0%} of the peak of {gpus:g} {self.gpu}"
        return f"{_ASSUMED} {ASSUMED_CPU * asked.workers * asked.cpus_per_worker:.0e} FLOP/s, and a second to start"


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
    @property
    def device(self) -> str | None: ...


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
        on_gpu = None if end.device is None else not end.device.startswith("cpu")
        found.append(Speed(_like(config), config.optimizer.name, flops(config) * done, end.wall_s, on_gpu))
    return found


def estimate(arms: Mapping[str, RunConfig], past: Sequence[Speed], guess: Guess) -> Estimate:
    """What a run of each of `arms`, arm_id to config, takes, judged by `past`, or by `guess` if none was measured.

    Runs on CPUs say nothing of runs on GPUs, nor these of them.
    """
    past = [speed for speed in past if speed.on_gpu in (None, guess.on_gpu)]
    known = _Known(past)
    work = {arm: flops(config) for arm, config in arms.items()}
    seconds, sources = dict[str, float](), dict[str, None]()
    for arm, config in arms.items():
        if speed := known.speed(_like(config), config.optimizer.name) if past else None:
            seconds[arm], source = work[arm] / speed[0], speed[1]
        else:
            seconds[arm], source = guess.seconds(config), str(guess)
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
