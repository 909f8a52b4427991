"""Captions and text descriptions of figures, every number computed from the data that is drawn.

A caption says what the marks are, for those who see them. A description says what a reader would take from the figure,
for those who do not: the numbers, and the file where the rest of them lie.
"""

from __future__ import annotations

import polars as pl

from analysis.figures.curves import Curves, axis_range, last_x, lone_rows, rows_of_arms, runs_text
from analysis.figures.heatmap_text import count
from analysis.verdicts import signed


def describe_curves(info: Curves, file: str) -> str:
    """Kind and axes, range, the end of every arm's mean, what is a dot or not drawn, and where the values are."""
    what = f"{info.metric} minus {info.baseline} at the same seed" if info.is_difference else f"{info.metric}"
    last = f"{last_x(info):,.0f}"
    over = f"training tokens, 0 to {last}" if info.over == "tokens" else f"wall time, 0 to {last} s"
    parts = [
        f"Line chart of {what} ({info.unit}) against {over}; "
        f"the left panel shows all of it, the right panel the last half on its own scale.",
        *(_arm_text(info, arm) for arm, _ in info.arms),
    ]
    if lone := lone_rows(info).height:
        parts.append(f"{count(lone, 'run')} evaluated once, a dot.")
    if info.dropped:
        parts.append(f"{count(info.dropped, 'value')} not finite and not drawn.")
    return " ".join([*parts, f"Values: {file}."])


def curves_caption(info: Curves) -> str:
    """What the lines are."""
    over = "the arm's runs that are done or running, at steps all of them reached"
    dots = "; dots are runs evaluated once" if lone_rows(info).height else ""
    lines = f"Thin lines are single seeds; thick lines are the mean over {over}{dots}."
    if 1 in info.means["n"]:
        lines += " A dashed line of middle width is an arm's single run."
    if len(rows_of_arms(info)) > 1:
        lines += " Each row of panels has a scale of its own."
    if info.stride > 1:
        lines += f" One step in {info.stride} is drawn."
    if info.is_difference:
        band = "Bands are pointwise 95 % Student t intervals of the mean, drawn for three seeds or more."
        what = f"{info.metric} minus that of {info.baseline}, paired by seed; the line at 0 is no difference."
        return f"{what} {lines} {band}{_margins_text(info)}"
    if info.over == "elapsed_s":
        time = "Time is the run's own: set-up and evaluations count, pauses between attempts do not."
        return f"{info.metric} over wall time. {lines} {time}"
    return f"{info.metric} during training. {lines}"


def _margins_text(info: Curves) -> str:
    """The margins that are on an axis."""
    near: dict[str, str] = {}
    for arms in rows_of_arms(info):
        low, high = axis_range(info, 0.0, arms)
        of_arms = info.margins.filter(pl.col("arm").is_in(arms), pl.col("margin").is_between(low, high))
        near |= {f"{gate} at {signed(margin, 4)}": "" for gate, _, margin in of_arms.iter_rows()}
    return f" Dashed straight lines are margins of gates: {', '.join(near)}." if near else ""


def _arm_text(info: Curves, arm: str) -> str:
    means = info.means.filter(pl.col("arm") == arm)
    runs = info.seeds.filter(pl.col("arm") == arm)["run_id"].n_unique()
    if means.is_empty():
        return f"{arm}: {count(runs, 'run')}, none done or running, so there is no mean."
    end = means.row(-1, named=True)
    value = signed(end["mean"], 4) if info.is_difference else f"{end['mean']:.4f}"
    text = f"{arm}: {value} at step {end['step']:,} ({runs_text(end['n'])}"
    if info.is_difference and end["low"] is not None:
        text += f", 95 % t interval {signed(end['low'], 4)} to {signed(end['high'], 4)}"
    lost = f"; {count(runs - end['n'], 'run')} not in the mean" if runs > end["n"] else ""
    return f"{text}){lost}."
