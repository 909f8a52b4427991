"""Notes where a verdict hangs by a hair: another seed, or one fewer, could well have turned it.

p is near its level if it is within 20 % of it. One seed decides if the verdict holds without any other seed but not
without that one; where it holds without none of them, that tells of their number and not of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.arms import ALPHA, ArmSummary
from analysis.gates import GateArm, GateResult
from analysis.statistics import Goal, compare_paired

NEAR = 0.2  # of the level


def hair_notes(arms: Sequence[ArmSummary], baseline: str | None, goal: Goal, gates: Sequence[GateResult]) -> list[str]:
    """A sentence for each verdict of an arm, then for each of a gate, that hangs by a hair."""
    base = next((arm for arm in arms if arm.arm == baseline), None)
    once = [arm for arm in arms if arm.copy_of is None and arm.verdict in ("lower", "higher", "not resolved")]
    notes = [note for arm in once if base and (note := _of_arm(arm, base, goal))]
    return notes + [note for gate in gates for arm in gate.arms if (note := _of_gate(gate, arm))]


def is_near(p: float | None) -> bool:
    """Whether `p` is within 20 % of the level."""
    return p is not None and abs(p - ALPHA) <= NEAR * ALPHA


def deciding_seed(arm: ArmSummary, base: ArmSummary, goal: Goal) -> int | None:
    """The one seed without which the arm would not be lower or higher; None where there is none, or several are."""
    found = arm.comparison
    if found is None or found.n < 3 or arm.adjusted_p is None or arm.verdict not in ("lower", "higher"):
        return None
    factor = arm.adjusted_p / found.p_value if found.p_value else 1.0  # Holm's
    decide = []
    for seed in found.seeds:
        rest = compare_paired({s: arm.values[s] for s in found.seeds if s != seed}, base.values, goal)
        assert rest is not None
        assert rest.p_value is not None
        if rest.p_value * factor >= ALPHA or rest.difference * found.difference <= 0:
            decide.append(seed)
    return decide[0] if len(decide) == 1 else None


def _of_arm(arm: ArmSummary, base: ArmSummary, goal: Goal) -> str | None:
    if is_near(arm.adjusted_p) and not arm.of_survivors:
        return f"{arm.arm}: {arm.verdict} by a hair, p = {arm.adjusted_p:.2g} at a level of {ALPHA:g}"
    seed = deciding_seed(arm, base, goal)
    return None if seed is None else f"{arm.arm}: {arm.verdict} by one seed, without seed {seed} it is not resolved"


def _of_gate(gate: GateResult, arm: GateArm) -> str | None:
    near = [p for p in (arm.adjusted_p, arm.adjusted_p_against) if is_near(p)]
    if not near:
        return None
    return f"gate {gate.gate.name}: {arm.arm} is {arm.result} by a hair, p = {near[0]:.2g} at a level of {ALPHA:g}"
