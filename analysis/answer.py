"""The answer to a sweep's question in one sentence: what a reader remembers who reads nothing else."""

from __future__ import annotations

from analysis.arms import ArmSummary
from analysis.summary import Summary
from analysis.verdicts import sentence, signed

_NAMED = 3  # arms that are named; the others are counted


def answer(summary: Summary) -> str:
    """One sentence on the whole sweep, or why there is no answer yet."""
    if not summary.arms:
        return "The sweep lists no runs, so there is nothing to answer with."
    candidates = [arm for arm in summary.arms if arm.arm != summary.baseline and arm.copy_of is None]
    if summary.errors and all(arm.verdict == "invalid" for arm in candidates):
        return "No answer: runs that should be independent are not, so none of the arms can be compared."
    if not any(arm.all_values for arm in summary.arms):
        return f"No answer{_so_far(summary)}: no run is done with a finite {summary.metric}."
    if summary.baseline is None or not candidates:
        return _alone(summary)
    if len(candidates) == 1:
        return _single(candidates[0], summary)
    return f"{_counted(candidates, summary)}{_best(candidates, summary)}{_gated(summary)}."


def _so_far(summary: Summary) -> str:
    return " yet" if summary.counts["running"] or summary.counts["planned"] else ""


def _alone(summary: Summary) -> str:
    """What is known of arms that nothing compares."""
    sign = 1 if summary.goal == "min" else -1
    known = [(arm.mean, arm) for arm in summary.arms if arm.mean is not None]
    mean, best = min(known, key=lambda pair: sign * pair[0])
    value = f"{summary.metric} {mean:.4f} ({summary.unit})"
    if len(summary.arms) == 1:
        over = "a single run" if len(best.all_values) == 1 else f"{len(best.all_values)} runs"
        return f"{best.arm} reaches {value} in {over}, and there is no other arm to compare it with."
    return f"Nothing is compared, as no arm is the baseline; the best mean is that of {best.arm}, {value}."


def _single(arm: ArmSummary, summary: Summary) -> str:
    told = sentence(arm, summary)
    if arm.verdict in ("lower", "higher", "not resolved", "not compared"):
        told = told.replace(f"{arm.arm}: ", f"{arm.arm} is ", 1)
    return f"{told.removesuffix('.')}{_gated(summary)}."


def _counted(candidates: list[ArmSummary], summary: Summary) -> str:
    """`Against muon, 1 of 3 arms is higher in val_loss (adamw), 2 are not resolved`."""
    parts = []
    for verdict in dict.fromkeys(arm.verdict for arm in candidates):
        names = [arm.arm for arm in candidates if arm.verdict == verdict]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        verb = "is" if len(names) == 1 else "are"
        told = "without data" if verdict == "no data" else verdict
        named = f" ({', '.join(names[:_NAMED])}{more})" if verdict in ("lower", "higher", "invalid") else ""
        parts.append(f"{len(names)} {verb} {told}{named}")
    return f"{summary.metric} against {summary.baseline}: of {len(candidates)} arms {', '.join(parts)}"


def _best(candidates: list[ArmSummary], summary: Summary) -> str:
    """The arm with the best estimate, and that it was picked for it."""
    sign = 1 if summary.goal == "min" else -1
    known = [(sign * arm.found.difference, arm) for arm in candidates if arm.found and not arm.errors]
    if not known:
        return ""
    difference, best = min(known, key=lambda pair: pair[0])
    if difference >= 0 or best.found is None:
        return f"; none has a better estimate than {summary.baseline}"
    return f"; the best estimate is {best.arm}'s, {signed(best.found.percent, 2)} %, not confirmed on fresh seeds"


def _gated(summary: Summary) -> str:
    results = [found.result for found in summary.gates]
    if not results:
        return ""
    counts = [f"{results.count(result)} {result}" for result in dict.fromkeys(results)]
    return f"; gates: {', '.join(counts)}"
