"""Says what the parameters of a sweep do: a line an effect, and a row of a table."""

from __future__ import annotations

import dataclasses

import polars as pl

from analysis.effects import Effect
from analysis.summary import Summary
from analysis.verdicts import SHORT_UNITS, decimals_of, interval_text, p_text, signed

SHOWN = 6  # lines of effects in an answer


def effect_line(effect: Effect, summary: Summary) -> str:
    """`noise: alpha 0.1 against 0.01: +0.0021 nats (+0.06 %), 95 % interval ...; 3 seeds, 2 cells; p = 0.4`."""
    row = effect_texts(effect, summary)
    unit = SHORT_UNITS.get(summary.unit, "")
    interval = interval_text(effect.difference_interval, decimals_of(effect.difference_interval))
    return (
        f"{effect.block}: {effect.axis} {effect.level} against {effect.against}: {row['difference']} {unit}".rstrip()
        + f" ({row['%']} %), 95 % interval {interval} {unit}".rstrip()
        + f"; "
        f"{effect.seeds} seeds, {effect.cells} cell{'' if effect.cells == 1 else 's'}; "
        f"{p_text(effect.adjusted_p, effect.tests, 'level')}"
    )


def effect_texts(effect: Effect, summary: Summary) -> dict[str, str]:
    """An effect's row in a table, as text by column name."""
    decimals = decimals_of(effect.difference_interval)
    return {
        "block": effect.block,
        "parameter": effect.axis,
        "level": effect.level,
        "against": effect.against,
        "seeds": f"{effect.seeds}",
        "cells": f"{effect.cells}",
        "difference": signed(effect.difference, decimals),
        "%": signed(effect.percent, 2),
        "95 % interval": interval_text(effect.difference_interval, decimals),
        "p (Holm)": f"{effect.adjusted_p:.2g}",
    }


def brief_effects(summary: Summary) -> list[str]:
    """Lines of the effects that are the most certain, and how many there are beside them."""
    order = sorted(summary.effects, key=lambda effect: effect.adjusted_p)[:SHOWN]
    lines = [effect_line(effect, summary) for effect in summary.effects if effect in order]
    rest = len(summary.effects) - len(lines)
    return [*lines, f"and {rest} effect{'' if rest == 1 else 's'} more"] if rest else lines


def effects_frame(summary: Summary) -> pl.DataFrame:
    """One row an effect, numbers unrounded."""
    rows = []
    for effect in summary.effects:
        fields = dataclasses.asdict(effect)
        low, high = fields.pop("difference_interval")
        rows.append(fields | {"difference_low": low, "difference_high": high, "percent": effect.percent})
    return pl.DataFrame(rows, infer_schema_length=None)
