"""Figures of curves: loss and accuracy over tokens and over wall time, and the difference to the baseline."""

from __future__ import annotations

import polars as pl

from analysis import queries
from analysis.figures.curves import NO_MARGINS, Curves, curves_info, difference_info
from analysis.figures.describe import curves_caption, describe_curves
from analysis.figures.draw_curves import draw_curves
from analysis.figures.effects import effects_of
from analysis.figures.figure import Figure, Figures
from analysis.figures.given import given
from analysis.figures.svg import to_svg
from analysis.store import Store
from analysis.summary import Summary

ALWAYS = ("val_loss", "val_accuracy")
"""Metrics with curves beside the primary one."""


def curve_figures(view: Store, members: pl.DataFrame | None = None, summary: Summary | None = None) -> Figures:
    """The primary metric's difference to the baseline, and it, validation loss and accuracy, over tokens and wall time.

    Those that have a finite value, and none if the primary metric has none; of arms with the same runs one is drawn.

    Args:
        view: `open_store(place).sweep(name)`.
        members, summary: of it, where they are at hand.
    """
    members, summary = given(view, members, summary)
    members = members.filter(~pl.col("arm").is_in([arm.arm for arm in summary.arms if arm.copy_of]))
    metrics, baseline = dict.fromkeys((summary.metric, *ALWAYS)), summary.baseline
    series = {metric: _series(view, metric) for metric in metrics}
    infos = {metric: curves_info(series[metric], members, metric, baseline) for metric in metrics}
    if baseline is not None:
        effects = effects_of(summary)
        margins = effects.margins if effects else NO_MARGINS
        rows = series[summary.metric]
        infos[f"{summary.metric}_difference"] = difference_info(rows, members, summary.metric, baseline, margins)
    infos |= {
        f"{metric}_wall": curves_info(series[metric], members, metric, baseline, "elapsed_s") for metric in metrics
    }
    drawn = infos if infos[summary.metric].seeds.height else {}
    return Figures(_figure(name, info) for name, info in drawn.items() if info.seeds.height)


def why_no_curves(view: Store, metric: str) -> str:
    """What a page says in place of curves."""
    values = view.table(queries.metric_table(metric)).select(value=pl.col(metric))
    measured = int(values.select(pl.col("value").count()).collect().item())
    if measured:
        return f"{metric} was measured {measured:,} times, with no finite value."
    return "No run has been evaluated yet."


def _series(view: Store, metric: str) -> pl.LazyFrame:
    """The columns of curves, read once."""
    table = view.table(queries.metric_table(metric))
    return table.select("run_id", "step", "tokens", "elapsed_s", metric).collect().lazy()


def _figure(name: str, info: Curves) -> Figure:
    tables = {f"data/{name}.csv": info.seeds, f"data/{name}_means.csv": info.means}
    description, title = describe_curves(info, next(iter(tables))), _title(info)
    svg = to_svg(*draw_curves(info), name=name, title=title, description=description)
    return Figure(name, title, curves_caption(info), description, svg, tables)


def _title(info: Curves) -> str:
    if info.is_difference:
        return f"{info.metric} minus {info.baseline}, paired by seed"
    return info.metric if info.over == "tokens" else f"{info.metric} over wall time"
