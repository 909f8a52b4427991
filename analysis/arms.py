"""The rows of a sweep's answer: the runs of each arm, compared with the baseline's seed by seed.

A run that diverged, failed or was stopped early does not miss at random: its loss would have been bad. Means over the
rest are of survivors, and an arm that loses every second seed would look better for it. So where the arm or the
baseline has such casualties the numbers are shown, but no verdict is drawn from them. Arms that list the same runs
again are tested once, and a copy of the baseline is not tested at all: else Holm would pay for tests that are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Literal

import polars as pl

from analysis.additive import Contrast, contrasts_to
from analysis.members import ALL_STATUSES
from analysis.statistics import Goal, PairedComparison, compare_paired, holm, seeds_to_resolve
from analysis.unpaired import UnpairedComparison, compare_unpaired
from muon_core.statuses import EARLY

ALPHA = 0.05  # of the Holm-adjusted p, to match the 95 % intervals
Verdict = Literal["baseline", "lower", "higher", "not resolved", "no data", "not compared", "invalid"]


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm of one block. Means are over runs that are done; the others are counted in `counts`."""

    arm: str
    block: str
    role: str
    optimizer: str | None
    copy_of: str | None
    """The arm that stands for this one in every test: the baseline if it shares runs with it, or one of equal runs."""
    counts: dict[str, int]
    """Runs by status, `planned` for those nobody has started."""
    values: dict[int, float]
    """Seed -> primary metric of its done run, positive and finite."""
    unseeded: tuple[float, ...]
    """The same of its done runs that do not tell their seed, as imported ones may."""
    unusable: tuple[int | None, ...]
    """Seeds that are done without such a value; None for each such run without a seed."""
    mean: float | None
    sd: float | None
    wall_s: float | None
    """Mean seconds a done run took."""
    errors: tuple[str, ...]
    """Why its runs, or the baseline's, are no independent draws."""
    apart: str = ""
    """Why it is not compared with the baseline; empty for one that may be."""
    of_survivors: bool = False
    """Whether runs of it or of the baseline are casualties, so that no test of the rest supports a verdict."""
    verdict: Verdict = "no data"
    comparison: PairedComparison | None = None
    """With the baseline; None for the baseline and where no seed pairs."""
    unpaired: UnpairedComparison | None = None
    """In its place where runs of either have no seed."""
    adjusted_p: float | None = None
    """Holm over the arms that were tested."""
    seeds_to_resolve: int | None = None
    """Seeds with even odds for a difference this size; None where resolved, invalid, of survivors, or above 1000."""
    pooled: Contrast | None = None
    """The same contrast under the additive model, which pools the error of all arms."""

    @property
    def found(self) -> PairedComparison | UnpairedComparison | None:
        """The comparison with the baseline, of whichever kind."""
        return self.comparison or self.unpaired

    @property
    def all_values(self) -> list[float]:
        """Of its seeds, and of its runs without one."""
        return [*self.values.values(), *self.unseeded]

    @property
    def planned(self) -> int:
        """Runs the sweep asks for."""
        return sum(self.counts.values())

    @property
    def casualties(self) -> dict[str, int]:
        """Runs that ended without a usable value, by how. They do not miss at random: those left are survivors."""
        ended = {status: self.counts[status] for status in ("diverged", "failed", EARLY)}
        ended["done without a positive, finite value"] = len(self.unusable)
        return {how: count for how, count in ended.items() if count}


def summarize_arms(
    runs: pl.DataFrame, goal: Goal, errors: Mapping[str, Sequence[str]], apart: Mapping[str, str] = MappingProxyType({})
) -> tuple[tuple[ArmSummary, ...], str | None]:
    """A row for each arm in the sweep's order, and the name of the baseline, the first arm of that role.

    Args:
        runs: rows of `sweep_members` with `value`, the primary metric.
        errors: arm -> what makes its runs unfit to be compared.
        apart: arm -> why it is not compared with the baseline.
    """
    frames = [frame for _, frame in runs.group_by("arm", maintain_order=True)]
    baseline = next((str(frame["arm"][0]) for frame in frames if frame["role"][0] == "baseline"), None)
    copies = _copies(frames, baseline)
    concerning_all = errors.get(baseline, ()) if baseline else ()
    arms = {}
    for frame in frames:
        name = str(frame["arm"][0])
        found = tuple(dict.fromkeys([*errors.get(name, ()), *concerning_all]))
        arms[name] = replace(_arm(frame, copies.get(name), found), apart=apart.get(name, ""))
    base = arms[baseline] if baseline else None
    tested = _tested([arm for arm in arms.values() if arm.copy_of is None], base, goal)
    num_tests = sum(arm.adjusted_p is not None for arm in tested.values())
    return tuple(_with_verdict(_with_test(arm, tested), base, num_tests) for arm in arms.values()), baseline


def _copies(frames: list[pl.DataFrame], baseline: str | None) -> dict[str, str]:
    """Arm -> the arm whose runs it lists again in another block. A test of one set of runs is one test."""
    runs = {str(frame["arm"][0]): frozenset(frame["run_id"]) for frame in frames}
    first: dict[frozenset[str], str] = {}
    for name, own in runs.items():
        first.setdefault(own, name)
    copies = {name: first[own] for name, own in runs.items() if first[own] != name}
    if baseline:  # one run in common makes it the same arm, listed with other seeds
        copies |= {name: baseline for name, own in runs.items() if own & runs[baseline]}
        del copies[baseline]
    return copies


def _arm(frame: pl.DataFrame, copy_of: str | None, errors: tuple[str, ...]) -> ArmSummary:
    done = frame.filter(pl.col("status") == "done")
    wall = done["wall_s"].drop_nulls().to_list()
    is_usable = pl.col("value").is_finite() & (pl.col("value") > 0)  # else percent of it mean nothing
    usable, seedless = done.filter(is_usable), pl.col("seed").is_null()
    values, unseeded = _by_seed(usable.filter(~seedless)), tuple(usable.filter(seedless)["value"])
    own = [*values.values(), *unseeded]
    lost = sorted(set(done["seed"].drop_nulls()) - values.keys())
    lost_seedless = done["seed"].null_count() - len(unseeded)
    return ArmSummary(
        arm=frame["arm"][0],
        block=frame["block"][0],
        role=frame["role"][0],
        optimizer=next(iter(frame["optimizer"].drop_nulls()), None),
        copy_of=copy_of,
        counts={status: frame.filter(pl.col("status") == status).height for status in ALL_STATUSES},
        values=values,
        unseeded=unseeded,
        unusable=(*lost, *[None] * lost_seedless),
        mean=fmean(own) if own else None,
        sd=stdev(own) if len(own) > 1 else None,
        wall_s=fmean(wall) if wall else None,
        errors=errors,
    )


def _by_seed(usable: pl.DataFrame) -> dict[int, float]:
    """Seed -> value; the mean where two runs share a seed."""
    means = usable.group_by("seed").agg(pl.col("value").mean()).sort("seed")
    return dict(zip(means["seed"], means["value"], strict=True))


def _tested(arms: list[ArmSummary], base: ArmSummary | None, goal: Goal) -> dict[str, ArmSummary]:
    """`arms`, each with other runs, by name, and compared with the baseline among them."""
    if base is None:
        return {arm.arm: arm for arm in arms}
    compared = [arm if arm.arm == base.arm or arm.apart else _compared(arm, base, goal) for arm in arms]
    adjusted = holm([arm.found.p_value if arm.found else None for arm in compared])
    pooled = contrasts_to(base.arm, {arm.arm: arm.values for arm in arms if not arm.apart})
    return {
        arm.arm: replace(arm, adjusted_p=p, pooled=pooled.get(arm.arm))
        for arm, p in zip(compared, adjusted, strict=True)
    }


def _compared(arm: ArmSummary, base: ArmSummary, goal: Goal) -> ArmSummary:
    """`arm` against the baseline, by pairs where all runs tell their seed."""
    if arm.unseeded or base.unseeded:
        return replace(arm, unpaired=compare_unpaired(arm.all_values, base.all_values))
    return replace(arm, comparison=compare_paired(arm.values, base.values, goal))


def _with_test(arm: ArmSummary, tested: Mapping[str, ArmSummary]) -> ArmSummary:
    """`arm` with the test of the arm that stands for it."""
    test = tested[arm.copy_of or arm.arm]
    return replace(
        arm, comparison=test.comparison, unpaired=test.unpaired, adjusted_p=test.adjusted_p, pooled=test.pooled
    )


def _with_verdict(arm: ArmSummary, base: ArmSummary | None, num_tests: int) -> ArmSummary:
    arm = replace(arm, of_survivors=any(one.casualties for one in (arm, base) if one))
    verdict, found = _verdict(arm, base), arm.comparison
    seeds = None
    if verdict == "not resolved" and not arm.of_survivors and found and found.sd is not None:
        seeds = seeds_to_resolve(found.sd, found.difference, num_tests)
    return replace(arm, verdict=verdict, seeds_to_resolve=seeds)


def _verdict(arm: ArmSummary, base: ArmSummary | None) -> Verdict:
    if arm.errors:
        return "invalid"
    if base and base.arm in (arm.arm, arm.copy_of):
        return "baseline"
    if not arm.all_values:
        return "no data"
    if arm.apart:
        return "not compared"
    if arm.of_survivors or arm.found is None or arm.adjusted_p is None or arm.adjusted_p >= ALPHA:
        return "not resolved"
    return "lower" if arm.found.difference < 0 else "higher"
