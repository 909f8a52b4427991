"""What a swept parameter does: main effects along the axes of a block's grid, from its additive model of cell and seed.

A comparison with the baseline is of one cell. Along an axis a level is every cell that has it, set beside the cells of
the first level that are alike in all other parameters, at the same seeds; the error is pooled over the block's cells,
which scatter alike where they are of one optimizer. So alpha 0.1 against 0.01 is the mean over all annealings.
Parameters that vary together, as under `zip`, are one axis. Where each cell has values of its own in several
parameters, as drawn ones have, nothing tells them apart, and there are no effects. Cells that lost a seed are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import polars as pl

from analysis.additive import AdditiveModel, fit
from analysis.arms import ArmSummary
from analysis.statistics import InPercent, Interval, holm

Values = Mapping[str, Any]
"""Parameter -> value, of one cell."""


@dataclass(frozen=True, slots=True)
class Effect(InPercent):
    """A level of an axis minus its first level, over the cells that are alike otherwise."""

    block: str
    axis: str
    """`alpha`, or `lr, momentum` of parameters that vary together."""
    level: str
    against: str
    """The first level: the smallest number, or what the file lists first."""
    seeds: int
    cells: int
    """Pairs of cells."""
    baseline_mean: float
    """Of the first level's cells."""
    difference: float
    """Mean over cells and seeds, in the metric's unit."""
    difference_interval: Interval
    """95 %, Student t with `df` degrees of freedom."""
    p_value: float
    df: int
    tests: int
    """Levels of the axis that are compared with the first: the family Holm adjusts for."""
    adjusted_p: float


@dataclass(frozen=True, slots=True)
class Axis:
    """A parameter that a block varies."""

    name: str
    levels: tuple[str, ...]
    of: dict[str, str]
    """Arm -> its level."""


def main_effects(members: pl.DataFrame, arms: Sequence[ArmSummary]) -> tuple[Effect, ...]:
    """The effects of every block's axes, in the sweep's order; none of a block without a degree of freedom.

    Args:
        members: rows of `sweep_members`.
    """
    blocks = dict.fromkeys(arm.block for arm in arms)
    return tuple(effect for block in blocks for effect in _of_block(block, members, arms))


def block_axes(members: pl.DataFrame, names: Sequence[str]) -> list[Axis]:
    """The axes along which the arms `names` of one block differ."""
    cells = {name: values for name in names if (values := _values(members, name)) is not None}
    grouped: dict[tuple[int, ...], list[str]] = {}
    for name in dict.fromkeys(name for values in cells.values() for name in values):
        column = [json.dumps(values.get(name)) for values in cells.values()]
        if len({*column}) > 1:
            grouped.setdefault(tuple(column.index(value) for value in column), []).append(name)
    axes = [_axis(names, cells) for names in grouped.values()]
    return [axis for axis in axes if "," not in axis.name or len(axis.levels) < len(cells)]


def _axis(names: Sequence[str], cells: Mapping[str, Values]) -> Axis:
    of = {arm: ", ".join(_text(values.get(name)) for name in names) for arm, values in cells.items()}
    order = {level: float(index) for index, level in enumerate(dict.fromkeys(of.values()))}
    first = {of[arm]: values.get(names[0]) for arm, values in cells.items()}
    numbers = {
        level: float(value)
        for level, value in first.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    order = numbers if len(numbers) == len(order) else order
    return Axis(", ".join(names), tuple(sorted(order, key=order.__getitem__)), of)


def _values(members: pl.DataFrame, arm: str) -> Values | None:
    """What an arm's runs were set to, seeds left out; None where none was started."""
    known = members.filter((pl.col("arm") == arm) & pl.col("config_json").is_not_null())
    if known.is_empty():
        return None
    config = json.loads(known["config_json"][0])
    return {name: value for name, value in _leaves(config) if name != "seed"}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by the names a sweep file has for them."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, "" if name == "optimizer" else f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _of_block(block: str, members: pl.DataFrame, arms: Sequence[ArmSummary]) -> list[Effect]:
    whole = [arm for arm in arms if arm.block == block and arm.values and not arm.casualties and not arm.errors]
    values = {arm.arm: arm.values for arm in whole}
    model = fit(values) if len(whole) > 1 else None
    if model is None:
        return []
    axes = block_axes(members.filter(pl.col("block") == block), list(values))
    return [effect for axis in axes for effect in _along(block, axis, axes, model, values)]


def _along(
    block: str, axis: Axis, axes: Sequence[Axis], model: AdditiveModel, values: Mapping[str, Mapping[int, float]]
) -> list[Effect]:
    first, *others = axis.levels
    found = []
    for level in others:
        pairs = _alike(axis, axes, level, first)
        if not pairs:
            continue
        weights = {arm: 1 / len(pairs) for arm, _ in pairs} | {base: -1 / len(pairs) for _, base in pairs}
        contrast = model.contrast(weights)
        seeds = {seed for arm, base in pairs for seed in values[arm].keys() & values[base].keys()}
        base = fmean(fmean(values[base].values()) for _, base in pairs)
        found.append((level, len(seeds), len(pairs), base, contrast))
    adjusted = holm([contrast.p_value for *_, contrast in found])
    return [
        Effect(
            block=block,
            axis=axis.name,
            level=level,
            against=first,
            seeds=seeds,
            cells=cells,
            baseline_mean=base,
            difference=contrast.difference,
            difference_interval=contrast.interval,
            p_value=contrast.p_value,
            df=contrast.df,
            tests=len(found),
            adjusted_p=p,
        )
        for (level, seeds, cells, base, contrast), p in zip(found, adjusted, strict=True)
        if p is not None
    ]


def _alike(axis: Axis, axes: Sequence[Axis], level: str, first: str) -> list[tuple[str, str]]:
    """Pairs of arms, at `level` and at `first`, that have the same levels of all other axes."""
    rest = {arm: tuple(other.of[arm] for other in axes if other is not axis) for arm in axis.of}
    base = {rest[arm]: arm for arm, own in axis.of.items() if own == first}
    return [(arm, base[rest[arm]]) for arm, own in axis.of.items() if own == level and rest[arm] in base]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
