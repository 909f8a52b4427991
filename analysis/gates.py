"""Judges the gates of a sweep: PASS, FAIL or INCONCLUSIVE, from differences between arms at the same seeds.

A gate says in which region the true difference must lie. An arm passes where the test that it lies outside is rejected,
and fails where the test that it lies inside is; where neither is, its runs do not tell, and the gate says how many
would. Holm adjusts both over the arms of the gate. `superior` asks for what a verdict asks, a difference that the
two-sided test resolves, and an estimate of the size that counts: to resolve it from that size takes far more seeds.

A seed that diverged or failed is worse than any margin, so an arm that lost one fails what it must not be worse in, and
shows nothing else: those left are survivors. While seeds are to come nothing is decided, for whoever looks after each
one sees a pass too often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import expm1, log, sqrt
from typing import Any, Literal, get_args

from analysis.arms import ALPHA, ArmSummary
from analysis.costs import SeedCost
from analysis.margins import Region, better_and_not, beyond, inside_and_outside, region
from analysis.statistics import LEVEL, Goal, Interval, holm, mean_and_sd, mean_interval, seeds_to_resolve
from muon_core.statuses import EARLY, OPEN, counts_text

Result = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Kind = Literal["non_inferior", "superior", "equivalent"]


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate as the sweep file has it."""

    name: str
    kind: Kind
    of: str
    vs: str = "baseline"
    margin: float | str | None = None
    min_effect: float | str | None = None

    @property
    def size(self) -> float | str | None:
        """`5%`, a number in the metric's unit, or None for any difference."""
        return self.min_effect if self.kind == "superior" else self.margin

    @property
    def is_relative(self) -> bool:
        """Whether arms are compared by ratios, and the gate's unit is %."""
        return isinstance(self.size, str)

    @property
    def needs_all(self) -> bool:
        """Whether every arm must show it; of several that might be superior one is enough."""
        return self.kind != "superior"

    @property
    def level(self) -> float:
        """Of the two-sided interval that decides: an end of a 90 % interval is a one-sided 95 % bound."""
        return LEVEL if self.kind == "superior" else round(2 * LEVEL - 1, 9)


@dataclass(frozen=True, slots=True)
class GateArm:
    """What one arm shows."""

    arm: str
    result: Result
    reason: str
    """Why the numbers were not asked; empty where they decide."""
    n: int = 0
    """Seeds that it shares with the arm it is compared with."""
    effect: float | None = None
    """Its difference to that arm in the gate's unit: the mean, or 100 (exp(mean log ratio) - 1)."""
    interval: Interval | None = None
    """Of the effect, at the gate's level, for this arm alone; None for one seed."""
    adjusted_p: float | None = None
    """Of the test that it is not as it must be, after Holm; a PASS is below 0.05."""
    adjusted_p_against: float | None = None
    """Of the test that it is, after Holm; a FAIL is below 0.05."""
    seeds: int | None = None
    """Fresh seeds with about even odds to settle it; None where settled or withheld, and above 1000."""
    gpu_hours: float | None = None
    """What they would take, those of the arm compared with too; None where the ledger does not tell."""
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate, and what its arms show."""

    gate: Gate
    result: Result
    vs: str | None
    """The arm compared with; None if the sweep lists none."""
    unit: str
    """Of effects and intervals: `%`, or the metric's."""
    level: float
    """Of the intervals."""
    tests: int
    """The family Holm adjusts for: the arms, those of equal runs once, and cells that a search has still to choose."""
    arms: tuple[GateArm, ...]


@dataclass(frozen=True, slots=True)
class _Test:
    """An arm against another over the seeds both have, in differences or log ratios."""

    arm: str
    ruling: tuple[Result, str] | None
    """What is decided without its numbers, and why."""
    n: int
    mean: float | None = None
    sd: float | None = None
    interval: Interval | None = None
    p: float = 1.0
    p_against: float = 1.0


def parse_gates(spec: Mapping[str, Any]) -> tuple[Gate, ...]:
    """The gates of a sweep file, which was checked when it was read. Raises ValueError for what this release lacks."""
    gates = []
    for fields in spec.get("gates") or ():
        unknown = sorted(fields.keys() - Gate.__dataclass_fields__.keys())
        if unknown or fields["kind"] not in get_args(Kind):
            raise ValueError(
                f"gate {fields['name']!r} has {unknown[0] if unknown else fields['kind']!r}, which a newer release "
                "wrote; update this one"
            )
        gates.append(Gate(**fields))
    return tuple(gates)


def overall(results: Sequence[GateResult]) -> Result:
    """PASS if all gates do, FAIL if any does."""
    return all_of([gate.result for gate in results])


def judge(
    gate: Gate,
    arms: Sequence[ArmSummary],
    baseline: str | None,
    *,
    goal: Goal,
    unit: str,
    costs: Mapping[str, SeedCost],
    to_choose: int = 0,
) -> GateResult:
    """The result of one gate.

    Args:
        arms: all of the sweep.
        baseline: the name of one of them.
        unit: of the metric.
        costs: arm -> what a seed of it took.
        to_choose: cells that a search has still to choose: each is a test to come, and may show anything.
    """
    vs = next((arm for arm in arms if _is_meant(arm, gate.vs, baseline)), None)
    rivals = _rivals(gate, arms, vs) if vs else []
    where = region(gate.kind, gate.size, goal)
    tests = [_test(gate, arm, vs, where) for arm in rivals if vs]
    to_come = [1.0] * to_choose
    shown = holm([test.p for test in tests] + to_come)
    against = holm([test.p_against for test in tests] + to_come)
    found = [
        _judged(gate, test, where, p, q, num_tests=len(shown))
        for test, p, q in zip(tests, shown, against, strict=False)
    ]
    priced = tuple(_with_costs(arm, costs.get(arm.arm), costs.get(vs.arm)) for arm in found if vs)
    unknown: list[Result] = ["INCONCLUSIVE"] * to_choose
    results = [arm.result for arm in priced] + unknown
    return GateResult(
        gate=gate,
        result=all_of(results) if gate.needs_all else _any_of(results),
        vs=vs.arm if vs else None,
        unit="%" if gate.is_relative else unit,
        level=gate.level,
        tests=len(shown),
        arms=priced,
    )


def _is_meant(arm: ArmSummary, vs: str, baseline: str | None) -> bool:
    return arm.arm == baseline if vs == "baseline" else vs == f"block:{arm.block}"


def _rivals(gate: Gate, arms: Sequence[ArmSummary], vs: ArmSummary) -> list[ArmSummary]:
    """The arms that `gate` is about, those of equal runs once, and none of the runs compared with."""
    wanted = [arm for arm in arms if arm.block != vs.block and gate.of in ("*", f"block:{arm.block}")]
    once: dict[str, ArmSummary] = {}
    for arm in wanted:
        once.setdefault(arm.copy_of or arm.arm, arm)
    once.pop(vs.copy_of or vs.arm, None)
    return list(once.values())


def _test(gate: Gate, arm: ArmSummary, vs: ArmSummary, where: Region) -> _Test:
    seeds = sorted(arm.values.keys() & vs.values.keys())
    pairs = [(arm.values[seed], vs.values[seed]) for seed in seeds]
    values = [log(a / b) if gate.is_relative else a - b for a, b in pairs]
    ruling = _ruling(gate, arm, vs, len(seeds))
    if len(seeds) < 2:
        return _Test(arm.arm, ruling, len(seeds), mean=next(iter(values), None))
    mean, sd = mean_and_sd(values)
    test = _Test(arm.arm, ruling, len(seeds), mean, sd, mean_interval(values, gate.level))
    if ruling:
        return test  # a test to come: it counts, with the greatest p
    tested = inside_and_outside if gate.needs_all else better_and_not
    p, p_against = tested(where, mean, sd / sqrt(len(seeds)), len(seeds) - 1)
    return replace(test, p=float(p), p_against=float(p_against))


def _ruling(gate: Gate, arm: ArmSummary, vs: ArmSummary, pairs: int) -> tuple[Result, str] | None:
    """What is decided without asking the numbers, and why; None where they are to be asked."""
    if errors := dict.fromkeys([*arm.errors, *vs.errors]):
        return "INCONCLUSIVE", f"invalid: {'; '.join(errors)}"
    if lost := {how: count for how, count in arm.casualties.items() if how != EARLY}:
        text = f"of {arm.planned} seeds {_counted(lost)}"
        if gate.needs_all:
            return "FAIL", f"{text}, which is worse than any margin"
        return "INCONCLUSIVE", f"{text}; those left are survivors"
    for one in (arm, vs):
        if one.casualties:
            text = f"of {one.planned} seeds of {one.arm} {_counted(one.casualties)}"
            return "INCONCLUSIVE", f"{text}; those left are survivors"
        if to_come := {status: one.counts[status] for status in OPEN if one.counts.get(status)}:
            return "INCONCLUSIVE", f"of {one.planned} seeds of {one.arm} {counts_text(to_come)}"
    if pairs < 2:
        return "INCONCLUSIVE", "one seed gives no interval" if pairs else f"shares no finished seed with {vs.arm}"
    return None


def _counted(casualties: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {how}" for how, count in casualties.items())


def _judged(gate: Gate, test: _Test, where: Region, p: float | None, q: float | None, num_tests: int) -> GateArm:
    """What `test` shows, in the gate's unit; `p` and `q` are its `p` and `p_against`, adjusted."""

    def told(value: float) -> float:
        return 100 * expm1(value) if gate.is_relative else value

    result, reason = test.ruling or (_decided(p, q), "")
    is_open = result == "INCONCLUSIVE" and not reason
    return GateArm(
        arm=test.arm,
        result=result,
        reason=reason,
        n=test.n,
        effect=None if test.mean is None else told(test.mean),
        interval=(told(test.interval[0]), told(test.interval[1])) if test.interval else None,
        adjusted_p=None if test.ruling else p,
        adjusted_p_against=None if test.ruling else q,
        seeds=_seeds(gate, test, where, num_tests) if is_open else None,
    )


def _decided(p: float | None, q: float | None) -> Result:
    if p is not None and p < ALPHA:
        return "PASS"
    return "FAIL" if q is not None and q < ALPHA else "INCONCLUSIVE"


def _seeds(gate: Gate, test: _Test, where: Region, num_tests: int) -> int | None:
    """To tell the estimate from the edge of the region; one that is superior in size, from no difference."""
    assert test.mean is not None
    assert test.sd is not None
    away = float(beyond(where, test.mean))
    distance = away if gate.needs_all or away > 0 else test.mean
    return seeds_to_resolve(test.sd, distance, num_tests, level=gate.level)


def _with_costs(arm: GateArm, own: SeedCost | None, other: SeedCost | None) -> GateArm:
    if not (arm.seeds and own and other):
        return arm
    usd = None if own.usd is None or other.usd is None else arm.seeds * (own.usd + other.usd)
    return replace(arm, gpu_hours=arm.seeds * (own.gpu_hours + other.gpu_hours), usd=usd)


def all_of(results: Sequence[Result]) -> Result:
    """PASS if all are, FAIL if any is."""
    if "FAIL" in results:
        return "FAIL"
    return "PASS" if results and set(results) == {"PASS"} else "INCONCLUSIVE"


def _any_of(results: Sequence[Result]) -> Result:
    if "PASS" in results:
        return "PASS"
    return "FAIL" if results and set(results) == {"FAIL"} else "INCONCLUSIVE"
