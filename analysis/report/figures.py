"""The figures of a report: drawn, described, and with the data they show."""

from __future__ import annotations

import polars as pl

from analysis import queries
from analysis.figures.curves import Curves, curves_info, difference_info, draw_curves
from analysis.figures.describe import curves_caption, describe_curves
from analysis.figures.figure import Figure
from analysis.figures.svg import to_svg
from analysis.store import Store
from analysis.summary import Summary


def curve_figures(view: Store, members: pl.DataFrame, summary: Summary) -> list[Figure]:
    """The primary metric during training, and its difference to the baseline; those that have a finite value.

    Of arms with the same runs one is drawn.
    """
    metric = summary.metric
    members = members.filter(~pl.col("arm").is_in([arm.arm for arm in summary.arms if arm.copy_of]))
    series = view.table(queries.metric_table(metric))
    infos = {metric: curves_info(series, members, metric, summary.baseline)}
    if summary.baseline is not None:
        infos[f"{metric}_difference"] = difference_info(series, members, metric, summary.baseline)
    return [_curve_figure(name, info) for name, info in infos.items() if info.seeds.height]


def why_no_curves(view: Store, metric: str) -> str:
    """What the page says in place of curves."""
    values = view.table(queries.metric_table(metric)).select(value=pl.col(metric))
    return _not_finite(values, metric) or "No run has been evaluated yet."


def _not_finite(values: pl.LazyFrame, metric: str) -> str:
    measured = int(values.select(pl.col("value").count()).collect().item())
    return f"{metric} was measured {measured:,} times, with no finite value." if measured else ""


def _curve_figure(name: str, info: Curves) -> Figure:
    title = f"{info.metric} minus {info.baseline}, paired by seed" if info.is_difference else info.metric
    tables = {f"data/{name}.csv": info.seeds, f"data/{name}_means.csv": info.means}
    description = describe_curves(info, next(iter(tables)))
    svg = to_svg(*draw_curves(info), name=name, title=title, description=description)
    return Figure(name, title, curves_caption(info), description, svg, tables)
