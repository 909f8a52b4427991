"""Captions and descriptions of heatmaps, every number computed from the cells that are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.figures.cells import ALIGNMENTS, IN_PLACE_OF_ILL_POSED, Chance
from analysis.figures.panels import Heatmap, Panel


def describe_heatmap(info: Heatmap, file: str) -> str:
    """Kind and axes, shared scale, chance level, each panel's values and missing cells, and where the values are."""
    parts = [
        f"Heatmaps of {_what(info)}, {info.projection} projection, {count(len(info.layers), 'layer')} by "
        f"{count(len(info.steps), 'step')} ({info.steps[0]:,} to {info.steps[-1]:,}), {info.counted}.",
        f"Shared scale {number(info.low)} to {number(info.high)} over {count(_panels_with_rows(info), 'panel')}; "
        f"{100 * info.clipped:.1f} % clipped.",
        *([chance_text(info.chances, minus=info.minus)] if info.metric in ALIGNMENTS else []),
        *(_panel_text(info, panel) for panel in info.panels),
    ]
    return " ".join([*parts, f"Values: {file}."])


def heatmap_caption(info: Heatmap) -> str:
    """What a cell is, and the scale."""
    peak = "maximum" if info.metric.endswith("_peak") else "mean"
    cell = "" if info.bin_size == 1 else f" A column is the {peak} of {info.bin_size} measured steps."
    ends = "the 1st to 99th percentile" if info.minus is None else "the 98th percentile of the distances from 0"
    chance = (
        f"{chance_text(info.chances, minus=info.minus)} {_ill_posed_text(info)}" if info.metric in ALIGNMENTS else ""
    )
    return (
        f"{_what(info)} of the {info.projection} matrices by layer (0 is the first) and step, {info.shown}.{cell} "
        f"One scale for the {count(_panels_with_rows(info), 'panel')} of this figure, {number(info.low)} to "
        f"{number(info.high)}, {ends}; {100 * info.clipped:.1f} % of the cells lie beyond it and "
        f"take its end colours. Other projections have other scales. {chance}Grey is missing."
    )


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def count(amount: int, word: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{amount} {word}" if amount == 1 else f"{amount} {word}s"


def chance_text(chances: Sequence[Chance], *, minus: str | None = None) -> str:
    """What alignments are to be compared with: the level, or levels, at which unrelated subspaces lie."""
    if not chances:
        return "No chance level was recorded with these runs."
    levels, deviations = ([number(value) for value in sorted(values)] for values in zip(*chances, strict=True))
    level, sd = (one[0] if one[0] == one[-1] else f"{one[0]} to {one[-1]}" for one in (levels, deviations))
    if minus is not None:
        return f"Chance levels cancel: of unrelated subspaces the difference is 0, with a standard deviation of {sd}."
    return (
        f"Chance level {level}: so much do unrelated subspaces of this size align, with a standard deviation of {sd}, "
        "in which z counts."
    )


def _what(info: Heatmap) -> str:
    return info.metric if info.minus is None else f"{info.metric} minus that of {info.minus}"


def _ill_posed_text(info: Heatmap) -> str:
    """What hatched cells are, and how many values are in them."""
    if all(panel.ill_posed is None for panel in info.panels):
        return "Which values are ill-posed was not recorded with these runs. "
    ill_posed = sum(panel.num_ill_posed for panel in info.panels)
    if not ill_posed:
        return "No value is ill-posed. "
    better = IN_PLACE_OF_ILL_POSED.get(info.metric)
    whose, instead = ("an update", f"; {better} is the one to read there") if better else ("a momentum", "")
    are = "is" if ill_posed == 1 else "are"
    return (
        f"{count(ill_posed, 'value')} {are} hatched as ill-posed, and in no number: {whose} with nearly equal singular "
        f"values has no five leading directions, and their alignment no meaning{instead}. "
    )


def _panel_text(info: Heatmap, panel: Panel) -> str:
    if panel.run_id is None:
        return f"{panel.label}: no rows {_at(info)}."
    gone = f"; {count(panel.num_ill_posed, 'value')} ill-posed" if panel.num_ill_posed else ""
    gone += f"; {count(panel.missing, 'cell')} missing" if panel.missing else ""
    finite = np.isfinite(panel.cells)
    if not finite.any():
        well_posed = "well-posed" if panel.num_ill_posed else "finite"
        return f"{panel.label}: no {well_posed} value{gone}."
    columns = np.flatnonzero(finite.any(axis=0))
    first, last = (
        f"{number(_median(panel.cells[:, at]))} at step {info.columns[at]:,}" for at in (columns[0], columns[-1])
    )
    return f"{panel.label}: median {first} and {last}; {_extremes(info, panel)}{_z_text(panel)}{gone}."


def _extremes(info: Heatmap, panel: Panel) -> str:
    """The lowest cell, of a peak the highest, of differences both; of equal ones the earliest."""
    by_step = panel.cells.T
    lowest = f"lowest {_cell(info, by_step, int(np.nanargmin(by_step)))}"
    highest = f"highest {_cell(info, by_step, int(np.nanargmax(by_step)))}"
    if info.minus is not None:
        return f"{lowest}; {highest}"
    return highest if info.metric.endswith("_peak") else lowest


def _cell(info: Heatmap, by_step: np.typing.NDArray[np.float32], place: int) -> str:
    column, layer = divmod(place, by_step.shape[1])
    return f"{number(by_step[column, layer])} at layer {info.layers[layer]}, step {info.columns[column]:,}"


def _z_text(panel: Panel) -> str:
    if panel.chance is None or not np.isfinite(panel.chance.sd):
        return ""
    z = (panel.cells - panel.chance.level) / panel.chance.sd
    above = 100 * float((z[np.isfinite(z)] > 2).mean())
    return f"; z above chance {_median(z):.1f} in the median cell, above 2 in {above:.0f} % of them"


def _median(values: np.typing.NDArray[np.floating]) -> float:
    return float(np.nanmedian(values))


def _at(info: Heatmap) -> str:
    return "without a seed" if info.shown == "no seed" else f"at {info.shown}"


def _panels_with_rows(info: Heatmap) -> int:
    return sum(panel.run_id is not None for panel in info.panels)
