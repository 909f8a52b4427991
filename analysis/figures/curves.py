"""Curves over training: every seed thin, the mean over seeds thick; absolute, or as the difference to the baseline.

Losses fall by nats early on and differ by hundredths at the end, so a second panel shows the last half on a scale of
its own. A mean is drawn only over the steps that all of its runs reached, for a line that loses a seed half way would
jump. Differences are taken at the same seed and step, and get a band; the absolute curves get none, for most of their
spread is what the seeds do to all arms alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import altair as alt
import polars as pl

from analysis import queries
from analysis.figures.style import ArmStyle, arm_styles
from analysis.figures.svg import Rows, Spec
from analysis.statistics import t_quantile

MAX_TOGETHER = 4  # candidate arms in one row of panels, beside the baseline: more lines are not told apart
_WIDTH, _HEIGHT = 330, 230


@dataclass(frozen=True, slots=True)
class Curves:
    """The data of a curves figure.

    `seeds` has a row per arm, run and step (`arm`, `optimizer`, `seed`, `status`, `step`, `tokens`, `value`); `means`
    has a row per arm and step (`arm`, `optimizer`, `step`, `tokens`, `mean`, `n`, and `low`, `high`: the pointwise 95 %
    t interval where three seeds or more count, else null). Non-finite values are left out and counted in `dropped`.
    """

    metric: str
    unit: str
    arms: tuple[tuple[str, str | None], ...]
    """(arm, optimizer) in the sweep's order, those with rows."""
    styles: dict[str, ArmStyle]
    """Of every arm of the sweep, so that all of its figures agree."""
    seeds: pl.DataFrame
    means: pl.DataFrame
    dropped: int
    baseline: str | None
    is_difference: bool


def curves_info(series: pl.LazyFrame, members: pl.DataFrame, metric: str, baseline: str | None) -> Curves:
    """Data of the `metric` curves of all arms; the frames are empty if there are no rows yet."""
    return _info(queries.curves(series, members.lazy(), metric), members, metric, baseline, is_difference=False)


def difference_info(series: pl.LazyFrame, members: pl.DataFrame, metric: str, baseline: str) -> Curves:
    """Data of the curves of `metric` minus the baseline's at the same seed and step."""
    rows = queries.difference_to_baseline(queries.curves(series, members.lazy(), metric), baseline)
    return _info(rows, members, metric, baseline, is_difference=True)


def _info(
    rows: pl.LazyFrame, members: pl.DataFrame, metric: str, baseline: str | None, *, is_difference: bool
) -> Curves:
    seeds = rows.collect()
    finite = seeds.filter(pl.col("value").is_finite())
    means = queries.mean_over_seeds(finite.lazy()).collect()
    factors = {n: t_quantile(n - 1) / n**0.5 for n in means["n"].unique() if n >= 3}
    half = pl.col("n").replace_strict(factors, default=None, return_dtype=pl.Float64) * pl.col("sd")
    present = set(finite["arm"])
    started = (
        members.select("arm", "optimizer").drop_nulls("optimizer").unique("arm", keep="first", maintain_order=True)
    )
    pairs = list(started.iter_rows())
    return Curves(
        metric=metric,
        unit=queries.metric_unit(metric),
        arms=tuple(pair for pair in pairs if pair[0] in present),
        styles=arm_styles(sorted(pairs, key=lambda pair: pair[0] != baseline)),  # the baseline's comes first
        seeds=finite,
        means=means.with_columns(low=pl.col("mean") - half, high=pl.col("mean") + half),
        dropped=seeds.height - finite.height,
        baseline=baseline,
        is_difference=is_difference,
    )


def axis_range(info: Curves, from_tokens: float) -> tuple[float, float]:
    """Range of the values from `from_tokens` on: of the runs that count in means, or of all if none does."""
    late = info.seeds.filter(pl.col("tokens") >= from_tokens)
    counted = late.filter(pl.col("status").is_in(queries.COUNTED))
    values = (counted if counted.height else late)["value"]
    bounds = [
        *values,
        *info.means.filter(pl.col("tokens") >= from_tokens).select("low", "high").drop_nulls().to_numpy().flat,
    ]
    if info.is_difference:
        bounds.append(0.0)
    low, high = min(bounds), max(bounds)
    margin = 0.04 * (high - low) or 0.01 * abs(high) or 0.01
    return low - margin, high + margin


def lone_rows(info: Curves) -> pl.DataFrame:
    """Rows of the runs that have one only: no line goes through it, so it is a dot."""
    return info.seeds.filter(pl.len().over("run_id") == 1)


def draw_curves(info: Curves) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: left all of training, right its last half on an own scale. `info` must have rows."""
    others = [arm for arm, _ in info.arms if arm != info.baseline]
    base = [arm for arm, _ in info.arms if arm == info.baseline]
    groups = [others[i : i + MAX_TOGETHER] for i in range(0, len(others), MAX_TOGETHER)] or [[]]
    rows = [_row(info, base + group) for group in groups]
    seeds = info.seeds.select("arm", "run_id", "tokens", "value")
    means = info.means.select("arm", "tokens", "mean", "low", "high")
    lone = lone_rows(info).select("arm", "run_id", "tokens", "value")
    data = {"seeds": seeds.to_dicts(), "means": means.to_dicts(), "lone": lone.to_dicts(), "zero": [{"zero": 0}]}
    chart = alt.vconcat(*rows).resolve_scale(color="independent", strokeDash="independent")
    return chart.to_dict(), data


def _row(info: Curves, arms: list[str]) -> alt.HConcatChart:
    last = float(info.seeds["tokens"].max())  # type: ignore[arg-type]
    whole = _panel(info, arms, 0.0, last, "all of training")
    late = _panel(info, arms, last / 2, last, "last half, own scale")
    return alt.hconcat(whole, late, spacing=75, bounds="flush")


def _panel(info: Curves, arms: list[str], start: float, end: float, title: str) -> alt.LayerChart | alt.FacetChart:
    shown = alt.FieldOneOfPredicate(field="arm", oneOf=arms)
    colour = alt.Color(
        "arm:N",
        scale=alt.Scale(domain=arms, range=[info.styles[arm].colour for arm in arms]),
        legend=_legend(info, arms),
    )
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=arms, range=[list(info.styles[arm].dash) for arm in arms]))
    axis = alt.Axis(format="~s", labelExpr="datum.value ? datum.label : '0'", tickCount=5, grid=False)
    lone = lone_rows(info)
    padding = 6 if lone.height else 0  # a dot on the edge stays whole
    domain = alt.Scale(domain=[start, end], nice=False, padding=padding)
    tokens = alt.X("tokens:Q", title="training tokens", scale=domain, axis=axis)
    scale = alt.Scale(domain=list(axis_range(info, start)), nice=False, zero=False)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=_y_title(info), scale=scale)

    seeds = alt.Chart(alt.NamedData("seeds")).mark_line(clip=True, strokeWidth=0.8, opacity=0.55)
    means = alt.Chart(alt.NamedData("means"))
    layers = [
        seeds.transform_filter(shown).encode(tokens, y("value"), colour, detail="run_id:N"),
        means.transform_filter(shown).mark_line(clip=True, strokeWidth=2.5).encode(tokens, y("mean"), colour, dash),
    ]
    if info.is_difference:
        band = means.transform_filter(shown).transform_filter("datum.low != null").mark_area(clip=True, opacity=0.15)
        zero = alt.Chart(alt.NamedData("zero")).mark_rule(color="currentColor", strokeWidth=1).encode(y("zero"))
        layers = [band.encode(tokens, y("low"), colour, y2="high:Q"), zero, *layers]
    if lone.height:
        dots = alt.Chart(alt.NamedData("lone")).mark_point(clip=True, filled=True, size=40, opacity=1)
        layers.append(dots.transform_filter(shown).encode(tokens, y("value"), colour))
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT, title=title)


def _legend(info: Curves, arms: list[str]) -> alt.Legend:
    """Below the panels, each arm with the number of seeds its mean is over."""
    last = info.means.group_by("arm").agg(pl.col("n").last())
    n = dict(zip(last["arm"], last["n"], strict=True))
    labels = {arm: f"{arm} ({runs_text(n[arm]) if arm in n else 'no mean'})" for arm in arms}
    return alt.Legend(
        title=None,
        orient="bottom",
        columns=4 if max(map(len, labels.values()), default=0) <= 22 else 2,
        labelExpr=f"{json.dumps(labels)}[datum.label]",
        symbolType="stroke",
        symbolSize=900,
        symbolStrokeWidth=2.5,
        symbolOpacity=1,
    )


def runs_text(n: int) -> str:
    """What a mean is over: `n = 3`, or `single run`."""
    return "single run" if n == 1 else f"n = {n}"


def _y_title(info: Curves) -> str:
    if info.is_difference:
        return f"{info.metric} minus {info.baseline}"
    return f"{info.metric} ({info.unit})" if len(info.unit) < 24 else info.metric
