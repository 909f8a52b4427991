"""Says how the arms of a sweep came to the target: a line an arm, a row of a table, and every run's way as numbers."""

from __future__ import annotations

import dataclasses

import polars as pl

from analysis.summary import Summary
from analysis.targets import Amount, ArmTarget, Quantity
from analysis.verdicts import DASH, seconds_text
from muon_core.spelling import counted

SHOWN = 4  # arms of an answer


def target_caption(summary: Summary) -> str:
    """What is reached: `to val_loss 3.3641, the mean of adamw`; empty without a target."""
    return f"to {summary.metric} {summary.target.value:.4f}, the mean of {summary.baseline}" if summary.target else ""


def target_rows(summary: Summary) -> list[dict[str, str]]:
    """A row an arm, as text by column name; a dash where a quantity was not measured."""
    arms = summary.target.arms if summary.target else ()
    return [
        {
            "arm": arm.arm,
            "reached": f"{arm.reached} of {len(arm.ways)}",
            "tokens": _amount_text("tokens", arm),
            "speed-up, tokens": _speed_up(arm.amounts.get("tokens")),
            "time": _amount_text("seconds", arm),
            "speed-up, time": _speed_up(arm.amounts.get("seconds")),
            "USD": _amount_text("usd", arm),
            "speed-up, USD": _speed_up(arm.amounts.get("usd")),
        }
        for arm in arms
    ]


def brief_targets(summary: Summary) -> list[str]:
    """A heading, and lines of the arms that came to it the soonest."""
    if summary.target is None:
        return []
    arms = [arm for arm in summary.target.arms if arm.arm != summary.baseline and "tokens" in arm.amounts]
    arms.sort(key=lambda arm: arm.amounts["tokens"].median)
    lines = [f"  {_line(arm)}" for arm in arms[:SHOWN]]
    rest = len(arms) - len(lines)
    lines += [f"  and {rest} arm{'' if rest == 1 else 's'} more"] if rest else []
    return [f"{target_caption(summary)}, speed-ups over it with 95 % intervals:", *lines] if lines else []


def targets_frame(summary: Summary) -> pl.DataFrame:
    """One row a run: whether it reached the target, and what it took to it, or to its end where it did not."""
    arms = summary.target.arms if summary.target else ()
    rows = [{"arm": arm.arm} | dataclasses.asdict(way) for arm in arms for way in arm.ways]
    return pl.DataFrame(rows, infer_schema_length=None)


def _line(arm: ArmTarget) -> str:
    parts = [f"{_amount_text('tokens', arm)} tokens in {arm.reached} of {counted(len(arm.ways), 'run')}"]
    names: dict[Quantity, str] = {"tokens": "in tokens", "seconds": "in time", "usd": "in USD"}
    for quantity, name in names.items():
        if (amount := arm.amounts.get(quantity)) and amount.speed_up is not None:
            parts.append(f"{_speed_up(amount)} {name}")
    return f"{arm.arm}: {', '.join(parts)}"


def _amount_text(quantity: Quantity, arm: ArmTarget) -> str:
    """A median; `≥ 327,680` where half of the runs never reached the target."""
    if not (amount := arm.amounts.get(quantity)):
        return DASH
    value = amount.at_least
    text = {"tokens": f"{value:,.0f}", "seconds": seconds_text(value), "usd": f"{value:.3g}"}[quantity]
    return text if amount.median == value else f"≥ {text}"


def _speed_up(amount: Amount | None) -> str:
    if amount is None or amount.speed_up is None:
        return DASH
    least = "≥ " if amount.bounds else ""
    interval = f" [{amount.interval[0]:.2f}, {amount.interval[1]:.2f}]" if amount.interval else ""
    return f"{least}{amount.speed_up:.2f}x{interval}"
