"""Says what a gate asks, and what its arms showed."""

from __future__ import annotations

from analysis.gates import GateArm, GateResult
from analysis.verdicts import SHORT_UNITS, decimals_of, interval_text, p_text, signed

SHOWN = 3  # arms of a gate in an answer; `muon gates` tells of all


def headline(found: GateResult) -> str:
    """`sane: FAIL: every arm must be less than 5 % worse than muon; 2 of 3 pass, 1 fail`."""
    start = f"{found.gate.name}: {found.result}:"
    if not found.arms:
        return f"{start} some arm must be {_asked(found)}, and the sweep lists none to ask"
    results, to_come = [arm.result for arm in found.arms], found.tests - len(found.arms)
    if found.tests == 1:
        return f"{start} {found.arms[0].arm} must be {_asked(found)}"
    counts = f"{results.count('PASS')} of {len(results)} pass, {results.count('FAIL')} fail"
    counts += f", {to_come} to be chosen yet" if to_come else ""
    confirm = not found.gate.needs_all and found.result == "PASS"
    luck = "; the best of several is partly the luckiest, so confirm it on fresh seeds" if confirm else ""
    who = "every arm" if found.gate.needs_all else "one arm at least"
    return f"{start} {who} must be {_asked(found)}; {counts}{luck}"


def arm_line(arm: GateArm, found: GateResult) -> str:
    """`adamw: FAIL: +5.57 %, 90 % interval +5.11 to +6.02 %, n = 3; against it p = 0.021, Holm over 3 arms`."""
    parts = [arm.reason, _numbers(arm, found), _test(arm, found), _settled(arm)]
    return f"{arm.arm}: {arm.result}: {'; '.join(part for part in parts if part)}"


def brief(found: GateResult) -> list[str]:
    """Lines of the arms that decide the gate, and how many there are beside them."""
    order = ("FAIL", "INCONCLUSIVE", "PASS") if found.gate.needs_all else ("PASS", "INCONCLUSIVE", "FAIL")
    arms = sorted(found.arms, key=lambda arm: order.index(arm.result))
    lines = [arm_line(arm, found) for arm in arms[:SHOWN]]
    rest = len(arms) - len(lines)
    return [*lines, f"and {rest} arm{'' if rest == 1 else 's'} more"] if rest else lines


def _asked(found: GateResult) -> str:
    gate, vs = found.gate, found.vs or "an arm that the sweep does not list"
    size = f"{gate.size:g} {_unit(found)}".rstrip() if isinstance(gate.size, int | float) else gate.size
    size = size.replace("%", " %") if size else None
    if gate.kind == "superior":
        return f"better than {vs}" + (f", by {size} or more" if size else "")
    return f"less than {size} worse than {vs}" if gate.kind == "non_inferior" else f"within {size} of {vs}"


def _numbers(arm: GateArm, found: GateResult) -> str:
    if arm.effect is None:
        return ""
    unit, decimals = _unit(found), 2 if found.unit == "%" else decimals_of(arm.interval)
    parts = [f"{signed(arm.effect, decimals)} {unit}".rstrip()]
    if arm.interval:
        parts.append(f"{100 * found.level:.0f} % interval {interval_text(arm.interval, decimals)} {unit}".rstrip())
    return f"{', '.join(parts)}, n = {arm.n}"


def _test(arm: GateArm, found: GateResult) -> str:
    p = arm.adjusted_p_against if arm.result == "FAIL" else arm.adjusted_p
    if p is None:
        return ""
    return f"against it {p_text(p, found.tests)}" if arm.result == "FAIL" else p_text(p, found.tests)


def _settled(arm: GateArm) -> str:
    """What would settle it, where more seeds would."""
    if arm.result != "INCONCLUSIVE" or arm.reason:
        return ""
    if arm.seeds is None:
        return "more than 1000 seeds would be needed to settle it"
    prices = [f"{arm.gpu_hours:.3g} GPU hours"] if arm.gpu_hours else []
    prices += [f"{arm.usd:.3g} USD"] if arm.usd is not None else []
    cost = f" ({' and '.join(prices)})" if prices else ""
    return f"{arm.seeds} fresh seeds of both arms{cost} have about even odds to settle it"


def _unit(found: GateResult) -> str:
    return found.unit if found.unit == "%" else SHORT_UNITS.get(found.unit, "")
