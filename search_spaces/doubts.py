"""What is odd about a sweep that is valid: what its author probably did not mean, said before it is paid for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from muon_core.config.optimizers import MuonConfig, odd_clipping
from muon_core.config.run import RunConfig
from search_spaces.spec import SweepSpec

HIGH_LR, LOW_LR = 10.0, 1e-7  # beyond both lies no optimizer's optimum, only a slip in the exponent
PERIODS = {
    "log_every": "a single `train` row, of the last step",
    "eval_every": "`val` rows of step 0 and of the last step alone",
    "track_every": "`layers` rows of step 0 and of the last step alone",
    "spectra_every": "`spectra` rows of step 0 and of the last step alone",
}
"""Field of `tracking` -> what a period longer than the run leaves."""


def doubts(configs: Sequence[RunConfig]) -> list[str]:
    """A sentence each, without repetitions, in the order of the runs; then what they are like together."""
    each = dict.fromkeys(doubt for config in configs for doubt in _doubts(config))
    return [*each, *_unequal_tuning(configs)]


def _unequal_tuning(configs: Iterable[RunConfig]) -> Iterator[str]:
    """About optimizers of which some try several learning rates and others one."""
    rates: dict[str, set[str]] = defaultdict(set)
    for config in configs:
        rates[config.optimizer.name].add(str(getattr(config.optimizer, "lr", None)))
    untuned = " and ".join(f"{name}'s" for name, tried in rates.items() if len(tried) == 1)
    for name, tried in rates.items():
        if untuned and len(tried) > 1:
            yield f"{name}: lr has {len(tried)} values, {untuned} 1: unequal tuning favours the first"


def gate_doubts(spec: SweepSpec) -> list[str]:
    """About gates that cannot show what they seem to: a sentence each."""
    if any(block.role == "control" or block.optimizer == "isotropic" for block in spec.blocks):
        return []
    noisy = {f"block:{block.name}" for block in spec.blocks if block.optimizer == "orthonoise"}
    return [
        f"gate {gate.name}: no control (isotropic) separates noise from its structure; add a block of it"
        for gate in spec.gates
        if gate.kind == "superior" and noisy and gate.of in {"*", *noisy}
    ]


def _doubts(config: RunConfig) -> Iterator[str]:
    steps, tracking, checkpoint = config.steps, config.tracking, config.checkpoint
    for name, left in PERIODS.items():
        every = getattr(tracking, name)
        if name in tracking.model_fields_set and every is not None and every > steps:
            yield f"tracking.{name} is {every} and a run has {steps} steps: there will be {left}"
    if checkpoint.every_steps and checkpoint.every_steps > steps and checkpoint.every_s is None:
        yield f"checkpoint.every_steps is {checkpoint.every_steps} and a run has {steps} steps: none can be continued"
    warmup = config.schedule.warmup_steps
    if "warmup_steps" in config.schedule.model_fields_set and warmup > steps:
        yield f"schedule.warmup_steps is {warmup} and a run has {steps} steps: the full learning rate is never reached"
    if isinstance(config.optimizer, MuonConfig) and config.optimizer.clipping == "all":
        yield odd_clipping(config.optimizer)
    for name in ("lr", "embedding_lr"):
        rate = getattr(config.optimizer, name, None)
        if isinstance(rate, float) and not LOW_LR <= rate <= HIGH_LR:
            moves = "weights will not stay finite" if rate > HIGH_LR else "weights will hardly move"
            yield f"{config.optimizer.name}: {name} is {rate:g}: {moves}; is it the exponent that was meant?"
