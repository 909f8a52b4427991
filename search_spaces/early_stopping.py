"""Early stopping: candidates that do badly end before their last step, by a rule of Ray Tune's schedulers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from muon_core.config.base import Config
from muon_core.config.run import RunConfig
from search_spaces.errors import Problems
from search_spaces.explain import misplaced

if TYPE_CHECKING:
    from search_spaces.expand import PlannedRun
    from search_spaces.spec import SweepSpec

FACTOR = 3.0


class EarlyStopping(Config):
    """Ends candidates that do badly at an evaluation, to narrow a grid within one optimizer. Every run is judged by
    itself, also where an arm has several seeds; baseline and controls neither end early nor are compared."""

    scheduler: Literal["asha", "median"] = Field(examples=["asha"])
    """`asha`: after `grace_steps` and each `reduction_factor` times as many, a run goes on if it is among the best 1 /
    `reduction_factor` of those that came as far; `median`: at every evaluation since `grace_steps` it does unless its
    best value is worse than the median of the others' means, of three others at least."""
    grace_steps: int = Field(gt=0, examples=[100])
    """Steps that every run makes; at least `tracking.eval_every`, less than `steps`."""
    reduction_factor: float = Field(FACTOR, gt=1)
    """Of `asha`: a greater one ends more runs."""
    across_optimizers: bool = False
    """Compare runs of different optimizers, too, although who leads early says next to nothing about the end."""

    @model_validator(mode="after")
    def _fits_its_scheduler(self) -> Self:
        if self.scheduler == "median" and self.reduction_factor != FACTOR:
            misplaced(("reduction_factor",), "is for asha, the median has none; remove it")
        return self


def compared(runs: Iterable[PlannedRun]) -> frozenset[str]:
    """Ids of the runs that early stopping compares with each other, and may end."""
    return frozenset(run.run_id for run in runs if {role for _, role in run.members} == {"candidate"})


def check_early_stopping(spec: SweepSpec, configs: Sequence[Sequence[RunConfig]], problems: Problems) -> None:
    """Note why the runs cannot, or should not, be compared early.

    Args:
        configs: the cells of each block, in the order of the file.
    """
    rule, at = spec.early_stopping, ("early_stopping",)
    if rule is None:
        return
    optimizers = dict.fromkeys(block.optimizer for block in spec.blocks)
    if len(optimizers) > 1 and not rule.across_optimizers:
        problems.add(
            at,
            f"would compare {len(optimizers)} optimizers ({', '.join(optimizers)}) before the end, which misleads: "
            "between their order at step 1000 and at the end the rank correlation was 0.02 in measurements; give each "
            "optimizer its own sweep, or write across_optimizers: true",
        )
    candidates = [
        config for block, own in zip(spec.blocks, configs, strict=True) if block.role == "candidate" for config in own
    ]
    lengths = sorted({config.steps for config in candidates})
    if not lengths:
        problems.add(at, "compares candidates, and no block is one; add a block, or remove early_stopping")
    elif len(lengths) > 1:
        problems.add(
            at,
            f"compares runs at the same step, and the candidates have {', '.join(map(str, lengths))} steps, each "
            "with a schedule of its own; give all of them the same, or remove early_stopping",
        )
    elif rule.grace_steps >= lengths[0]:
        problems.add(
            (*at, "grace_steps"),
            f"grace_steps {rule.grace_steps} is not below steps, {lengths[0]}: no run could end early; write "
            f"{max(1, lengths[0] // 9)}, or another number below",
        )
    every = max((config.tracking.eval_every for config in candidates), default=0)
    if rule.grace_steps < every:
        problems.add(
            (*at, "grace_steps"),
            f"grace_steps {rule.grace_steps} is below tracking.eval_every, {every}: there is nothing to compare by; "
            f"write at least {every}, or a smaller tracking.eval_every",
        )
