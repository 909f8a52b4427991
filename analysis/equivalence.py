"""Whether an arm is shown to be like the baseline, where a gate tells which difference does not matter.

`not resolved` is no claim of equality; two one-sided tests at a margin (TOST, Schuirmann 1987) can make one. An arm's
margin is that of the first of its gates against the baseline: `equivalent`, then the `min_effect` of `superior`, then
`non_inferior`. All arms that can be asked are tested and adjusted by Holm, not only those that are then told of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

from analysis.arms import ALPHA, ArmSummary
from analysis.gates import Gate
from analysis.margins import inside_and_outside, region
from analysis.statistics import Goal, holm, mean_and_sd

_KINDS = ("equivalent", "superior", "non_inferior")


@dataclass(frozen=True, slots=True)
class Equivalence:
    """The test that an arm differs from the baseline by `margin` or more, either way."""

    arm: str
    gate: str
    """Whose margin it is."""
    margin: float | str
    """`5%` of the baseline, tested by log ratios as gates do, or a difference in the metric's unit."""
    p_value: float
    tests: int
    """Arms tested: the family Holm adjusts for."""
    adjusted_p: float

    @property
    def is_shown(self) -> bool:
        """Whether they are equivalent within the margin."""
        return self.adjusted_p < ALPHA


def equivalences(
    arms: Sequence[ArmSummary], baseline: str | None, gates: Sequence[Gate], goal: Goal
) -> tuple[Equivalence, ...]:
    """A test for each arm that pairs with the baseline at two seeds, lost none, and has a margin."""
    base = next((arm for arm in arms if arm.arm == baseline), None)
    if base is None:
        return ()
    asked = [(arm, gate, _p(arm, base, gate, goal)) for arm in arms if (gate := _gate_of(arm, base, gates))]
    adjusted = holm([p for *_, p in asked])
    return tuple(
        Equivalence(arm.arm, gate.name, gate.size, p, len(asked), adjusted_p)
        for (arm, gate, p), adjusted_p in zip(asked, adjusted, strict=True)
        if gate.size is not None and adjusted_p is not None
    )


def _gate_of(arm: ArmSummary, base: ArmSummary, gates: Sequence[Gate]) -> Gate | None:
    """The gate whose margin is the arm's; None where it has none or cannot be asked."""
    if arm.copy_of or arm.of_survivors or arm.errors or arm.comparison is None or arm.comparison.n < 2:
        return None
    about = [
        gate
        for gate in gates
        if gate.of in ("*", f"block:{arm.block}") and gate.vs in ("baseline", f"block:{base.block}") and gate.size
    ]
    return min(about, key=lambda gate: _KINDS.index(gate.kind), default=None)


def _p(arm: ArmSummary, base: ArmSummary, gate: Gate, goal: Goal) -> float:
    assert arm.comparison is not None
    pairs = [(arm.values[seed], base.values[seed]) for seed in arm.comparison.seeds]
    mean, sd = mean_and_sd([log(a / b) if gate.is_relative else a - b for a, b in pairs])
    outside, _ = inside_and_outside(region("equivalent", gate.size, goal), mean, sd / sqrt(len(pairs)), len(pairs) - 1)
    return float(outside)
