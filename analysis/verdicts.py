"""Says in one sentence what the data supports about an arm, and no more.

"Not resolved" is no claim that arms are equal. So the sentence says why, and how many fresh seeds would have even odds
to resolve a difference of the size that was measured. Runs that are not in the numbers are always named.
"""

from __future__ import annotations

from math import ceil, log10

from analysis.arms import ArmSummary
from analysis.selection import Selection
from analysis.statistics import PairedComparison
from analysis.summary import Summary
from analysis.unpaired import UnpairedComparison
from muon_core.statuses import counts_text

SHORT_UNITS = {"nats per token": "nats"}
DASH = "–"
Found = PairedComparison | UnpairedComparison


def sentence(arm: ArmSummary, summary: Summary) -> str:
    """Direction, effect, interval, n and adjusted p of one arm, or why there is none; then the seeds that are lost."""
    same = f"; its runs are {arm.copy_of}'s" if arm.copy_of else ""
    return f"{arm.arm}: {_finding(arm, summary)}{same}{_selected(arm, summary)}{_lost(arm, summary)}."


def arm_texts(arm: ArmSummary, summary: Summary) -> dict[str, str]:
    """An arm's row in a table, as text by column name; a dash where there is nothing."""
    found, pairs, unit = arm.found, arm.comparison, SHORT_UNITS.get(summary.unit, "")
    return {
        "arm": arm.arm,
        "block": arm.block,
        "role": arm.role,
        "seeds": f"{arm.counts['done']}/{arm.planned}",
        summary.metric: DASH if arm.mean is None else f"{arm.mean:.4f}",
        f"difference {unit}".strip(): _with_interval(found) if found else DASH,
        "%": signed(found.percent, 2) if found else DASH,
        "better": f"{pairs.better} of {pairs.n}" if pairs else DASH,
        "p (Holm)": DASH if arm.adjusted_p is None else f"{arm.adjusted_p:.2g}",
        "pair corr.": DASH if not pairs or pairs.correlation is None else signed(pairs.correlation, 2),
        "wall": seconds_text(arm.wall_s),
        "verdict": verdict_text(arm, summary),
    }


def verdict_text(arm: ArmSummary, summary: Summary) -> str:
    """The verdict, and `not confirmed` where the arm was chosen by the results that it rests on."""
    chosen = _selection(arm, summary)
    is_open = chosen and chosen.confirmed_by is None and arm.verdict in ("lower", "higher")
    return f"{arm.verdict}, not confirmed" if is_open else arm.verdict


def how_compared(summary: Summary) -> str:
    """How differences are taken, and what their intervals are."""
    paired, unpaired = (any(getattr(arm, kind) for arm in summary.arms) for kind in ("comparison", "unpaired"))
    if not unpaired:
        return "paired by seed, with 95 % Student t intervals"
    where = " where not all runs tell their seed" if paired else ", for not all runs tell their seed"
    welch = f"unpaired, with Welch's 95 % intervals{where}"
    return f"paired by seed, with 95 % Student t intervals, or {welch}" if paired else welch


def signed(value: float, decimals: int) -> str:
    """`value` with its sign, a true minus: `+0.0582`, `−1.73`."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def interval_text(interval: tuple[float, float], decimals: int) -> str:
    """`−2.69 to −0.76`."""
    return f"{signed(interval[0], decimals)} to {signed(interval[1], decimals)}"


def seconds_text(seconds: float | None) -> str:
    """`19.2 s`, `12.3 min` or `5.1 h`; a dash for None."""
    if seconds is None:
        return DASH
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / divisor:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"


def p_text(adjusted: float, tests: int, of: str = "arm") -> str:
    """`p = 0.014`, or with more than one test `p < 0.0001, Holm over 5 arms`."""
    value = "p < 0.0001" if adjusted < 1e-4 else f"p = {adjusted:.2g}"
    return f"{value}, Holm over {tests} {_plural(of, tests)}" if tests > 1 else value


def decimals_of(interval: tuple[float, float] | None) -> int:
    """Decimals for a difference with this interval: 4, or more where its width or the side of 0 needs them."""
    if interval is None:
        return 4
    scales = [abs(end) for end in interval if end] + (
        [(interval[1] - interval[0]) / 20] if interval[0] < interval[1] else []
    )
    return max(4, *(ceil(-log10(2 * scale)) for scale in scales)) if scales else 4


def _with_interval(found: Found) -> str:
    decimals, interval = decimals_of(found.difference_interval), found.difference_interval
    if interval is None:
        return signed(found.difference, decimals)
    return f"{signed(found.difference, decimals)} [{signed(interval[0], decimals)}, {signed(interval[1], decimals)}]"


def _finding(arm: ArmSummary, summary: Summary) -> str:
    found = arm.found
    if arm.verdict == "invalid":
        return f"invalid: {'; '.join(arm.errors)}"
    if arm.verdict == "baseline":
        return f"the baseline, {_mean(arm, summary)}"
    if arm.verdict == "no data":
        return f"no run is done with a positive, finite {summary.metric}, so nothing is known"
    if arm.apart:
        return f"not compared with {summary.baseline}: {arm.apart}; {_mean(arm, summary)}"
    if summary.baseline is None:
        return f"not resolved, there is no baseline; {_mean(arm, summary)}"
    if found is None:
        return f"not resolved against {summary.baseline}, which shares no finished seed with it; {_mean(arm, summary)}"
    if found.difference_interval is None or arm.adjusted_p is None:
        return f"not resolved against {summary.baseline}: {_effect(arm, found, summary)}, which gives no interval"
    return _tested(arm, found, arm.adjusted_p, summary)


def _tested(arm: ArmSummary, found: Found, adjusted_p: float, summary: Summary) -> str:
    relation = "against" if arm.verdict == "not resolved" else "than"
    parts = [f"{arm.verdict} {relation} {summary.baseline}: {_effect(arm, found, summary)}", _interval(found, summary)]
    if arm.verdict == "not resolved" and not arm.of_survivors:
        parts.append(_why(arm, found, summary))
    return f"{', '.join(parts)}; {_over(found)}; {p_text(adjusted_p, summary.tests)}"


def _over(found: Found) -> str:
    """What the interval is over."""
    if isinstance(found, PairedComparison):
        return f"better in {found.better} of {found.n} seeds"
    return "Welch's interval, unpaired, for not all runs tell their seed"


def _mean(arm: ArmSummary, summary: Summary) -> str:
    if arm.mean is None:
        return "without a finished run yet"
    if len(arm.all_values) == 1:
        return f"{summary.metric} {arm.mean:.4f} in a single run"
    over = f"{len(arm.all_values)} runs" if arm.unseeded else f"{len(arm.values)} seeds"
    return f"mean {summary.metric} {arm.mean:.4f} over {over}"


def _effect(arm: ArmSummary, found: Found, summary: Summary) -> str:
    """The difference, and the means it is between where those of the table are over other seeds."""
    unit, base = SHORT_UNITS.get(summary.unit, ""), _baseline(summary)
    effect = (
        f"{signed(found.difference, decimals_of(found.difference_interval))} {unit}".strip()
        + f" ({signed(found.percent, 2)} %)"
    )
    if not isinstance(found, PairedComparison):
        return f"{effect} between {found.n} and {found.baseline_n} runs"
    is_of_all = base is not None and set(found.seeds) == arm.values.keys() == base.values.keys()
    means = "" if is_of_all else f" ({found.mean:.4f} against {found.baseline_mean:.4f})"
    if found.n == 1:
        return f"{effect} at one seed{means}"
    return effect if is_of_all else f"{effect} over the {found.n} seeds both finished{means}"


def _baseline(summary: Summary) -> ArmSummary | None:
    return next((arm for arm in summary.arms if arm.arm == summary.baseline), None)


def _interval(found: Found, summary: Summary) -> str:
    interval = found.difference_interval
    assert interval is not None
    unit = SHORT_UNITS.get(summary.unit, "")
    return f"95 % interval {interval_text(interval, decimals_of(interval))} {unit}".rstrip()


def _why(arm: ArmSummary, found: Found, summary: Summary) -> str:
    assert found.difference_interval is not None
    if isinstance(found, PairedComparison) and found.is_identical:
        return "as the runs are equal to the last digit"
    (low, high), tests = found.difference_interval, summary.tests
    zero = "contains 0" if low <= 0 <= high else f"excludes 0 alone but not after the adjustment for {tests} arms"
    like = _equivalence(arm, summary)
    if not isinstance(found, PairedComparison) or like.startswith("; equivalent"):
        return f"which {zero}{like}"
    if arm.seeds_to_resolve is None:
        return f"which {zero}{like}; for a difference of this size more than 1000 seeds would be needed"
    return f"which {zero}{like}; a difference of this size has about even odds with {arm.seeds_to_resolve} fresh seeds"


def _equivalence(arm: ArmSummary, summary: Summary) -> str:
    """`; equivalent within 5 %, TOST p = 0.012`, or that it is not shown; empty where no gate has a margin."""
    test = next((test for test in summary.equivalences if test.arm == (arm.copy_of or arm.arm)), None)
    if test is None:
        return ""
    unit = SHORT_UNITS.get(summary.unit, "")
    size = test.margin.replace("%", " %") if isinstance(test.margin, str) else f"{test.margin:g} {unit}".rstrip()
    shown = "equivalent" if test.is_shown else "not shown to be equivalent"
    return f"; {shown} within {size}, TOST {p_text(test.adjusted_p, test.tests)}"


def _selection(arm: ArmSummary, summary: Summary) -> Selection | None:
    return next((one for one in summary.selections if one.arm == arm.arm), None)


def _selected(arm: ArmSummary, summary: Summary) -> str:
    """That an arm was chosen by these results, and where it was tried on others."""
    if not (chosen := _selection(arm, summary)):
        return ""
    tried = (
        f"tried on {len(chosen.fresh_seeds)} fresh {_plural('seed', len(chosen.fresh_seeds))} in {chosen.confirmed_by}"
        if chosen.confirmed_by
        else "not confirmed on fresh seeds"
    )
    return f"; the best of {chosen.of} arms, {tried}"


def _lost(arm: ArmSummary, summary: Summary) -> str:
    """The runs that are not in the numbers; where they did not go missing at random, what that does to the verdict."""
    base = _baseline(summary)
    is_compared = arm.verdict == "not resolved" and arm.found is not None
    lost = {status: count for status, count in arm.counts.items() if status != "done" and count}
    own = [counts_text(lost)] if lost else []
    own += [f"{count} {how}" for how, count in arm.casualties.items() if how not in lost]
    clauses = [f"of {_asked(arm)} {', '.join(own)}"] if own else []
    if is_compared and base and base.casualties:
        ended = ", ".join(f"{count} {how}" for how, count in base.casualties.items())
        clauses.append(f"of {_asked(base)} of {base.arm} {ended}")
    if not clauses:
        return ""
    survivors = "; these are numbers of survivors, which support no verdict"
    return f"; {', '.join(clauses)}{survivors if is_compared and arm.of_survivors else ', not in these numbers'}"


def _asked(arm: ArmSummary) -> str:
    """`5 seeds`, or `5 runs` where not all tell theirs."""
    is_seeded = not arm.unseeded and None not in arm.unusable
    return f"{arm.planned} {_plural('seed' if is_seeded else 'run', arm.planned)}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
