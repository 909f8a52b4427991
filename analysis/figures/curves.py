"""Curves over training: every seed thin, the mean over seeds thick; absolute, or as the difference to the baseline.

Losses fall by nats early on and differ by hundredths at the end, so a second panel shows the last half on a scale of
its own. Arms that differ from the baseline by much and by little are in rows of panels with scales of their own. A mean
is drawn only over the steps that all of its runs reached, for a line that loses a seed half way would jump. Differences
are taken at the same seed and step, and get a band; the absolute curves get none, for most of their spread is what the
seeds do to all arms alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from analysis import queries
from analysis.figures.effects import axis_around_zero, scale_groups
from analysis.figures.style import ArmStyle, arm_styles
from analysis.statistics import t_quantile

MAX_TOGETHER = 4  # candidate arms in one row of panels, beside the baseline: more lines are not told apart
MAX_POINTS = 330  # of a line, one a CSS pixel of its panel
NO_MARGINS = pl.DataFrame(schema={"gate": pl.String, "arm": pl.String, "margin": pl.Float64})


@dataclass(frozen=True, slots=True)
class Curves:
    """The data of a curves figure.

    `seeds` has a row per arm, run and step (`arm`, `optimizer`, `seed`, `status`, `step`, `over`, `value`); `means`
    has a row per arm and step (`arm`, `optimizer`, `step`, `over`, `mean`, `n`, and `low`, `high`: the pointwise 95 %
    t interval where three seeds or more count, else null). Non-finite values are left out and counted in `dropped`.
    """

    metric: str
    unit: str
    over: queries.Over
    """The column that the curves are over."""
    arms: tuple[tuple[str, str | None], ...]
    """(arm, optimizer) in the sweep's order, those with rows."""
    styles: dict[str, ArmStyle]
    """Of every arm of the sweep, so that all of its figures agree."""
    seeds: pl.DataFrame
    means: pl.DataFrame
    dropped: int
    baseline: str | None
    is_difference: bool
    margins: pl.DataFrame
    """Margins of gates, of differences: `gate`, `arm`, `margin`."""

    @property
    def stride(self) -> int:
        """One in so many steps is drawn, and the last of each run; 1 is all."""
        return -(-self.seeds["step"].n_unique() // MAX_POINTS)


def curves_info(
    series: pl.LazyFrame,
    members: pl.DataFrame,
    metric: str,
    baseline: str | None,
    over: queries.Over = "tokens",
) -> Curves:
    """Data of the `metric` curves of all arms; the frames are empty if there are no rows yet."""
    rows = queries.curves(series, members.lazy(), metric, over)
    return _info(rows, members, metric, baseline, over, is_difference=False, margins=NO_MARGINS)


def difference_info(
    series: pl.LazyFrame, members: pl.DataFrame, metric: str, baseline: str, margins: pl.DataFrame = NO_MARGINS
) -> Curves:
    """Data of the curves of `metric` minus the baseline's at the same seed and step, with `margins` to be drawn."""
    rows = queries.difference_to_baseline(queries.curves(series, members.lazy(), metric), baseline)
    return _info(rows, members, metric, baseline, "tokens", is_difference=True, margins=margins)


def _info(
    rows: pl.LazyFrame,
    members: pl.DataFrame,
    metric: str,
    baseline: str | None,
    over: queries.Over,
    *,
    is_difference: bool,
    margins: pl.DataFrame,
) -> Curves:
    seeds = rows.collect()
    finite = seeds.filter(pl.col("value").is_finite())
    means = queries.mean_over_seeds(finite.lazy(), over).collect()
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
        over=over,
        arms=tuple(pair for pair in pairs if pair[0] in present),
        styles=arm_styles(sorted(pairs, key=lambda pair: pair[0] != baseline)),  # the baseline's comes first
        seeds=finite,
        means=means.with_columns(low=pl.col("mean") - half, high=pl.col("mean") + half),
        dropped=seeds.height - finite.height,
        baseline=baseline,
        is_difference=is_difference,
        margins=margins,
    )


def last_x(info: Curves) -> float:
    """Where the longest run ends."""
    return float(info.seeds[info.over].max())  # type: ignore[arg-type]


def rows_of_arms(info: Curves) -> list[list[str]]:
    """The arms of each row of panels: candidates of one reach, MAX_TOGETHER at most, behind the baseline.

    Reach is how far an arm's mean ends from the baseline's; that of differences, how far it goes in the last half.
    """
    arms = [arm for arm, _ in info.arms]
    reach = dict.fromkeys([arm for arm in arms if arm != info.baseline], 0.0)
    late = info.means.filter(pl.col(info.over) >= last_x(info) / 2)
    if info.is_difference:
        far = late.group_by("arm").agg(pl.max_horizontal(pl.col("mean", "low", "high").abs()).max())
        reach |= dict(far.iter_rows())
    else:
        ends = dict(info.means.group_by("arm", maintain_order=True).agg(pl.col("mean").last()).iter_rows())
        base = ends.get(info.baseline)
        reach |= {arm: abs(ends[arm] - base) for arm in reach if arm in ends and base is not None}
    base_arm = [arm for arm in arms if arm == info.baseline]
    chunks = [group[i : i + MAX_TOGETHER] for group in scale_groups(reach) for i in range(0, len(group), MAX_TOGETHER)]
    return [base_arm + chunk for chunk in chunks or [[]]]


def axis_range(info: Curves, start: float, arms: list[str] | None = None) -> tuple[float, float]:
    """Range of the values from `start` on: of the runs that count in means, or of all if none does.

    Args:
        arms: those drawn; None for all. The range of differences has their margins too, where those are near.
    """
    of_arms = pl.lit(True) if arms is None else pl.col("arm").is_in(arms)
    late = info.seeds.filter(pl.col(info.over) >= start, of_arms)
    counted = late.filter(pl.col("status").is_in(queries.COUNTED))
    values = (counted if counted.height else late)["value"]
    means = info.means.filter(pl.col(info.over) >= start, of_arms)
    bounds = [*values, *means.select("low", "high").drop_nulls().to_numpy().flat]
    if info.is_difference:
        return axis_around_zero(bounds, info.margins.filter(of_arms)["margin"])
    if not bounds:  # of these arms, no run gets there
        return axis_range(info, 0.0, arms)
    low, high = min(bounds), max(bounds)
    space = 0.04 * (high - low) or 0.01 * abs(high) or 0.01
    return low - space, high + space


def lone_rows(info: Curves) -> pl.DataFrame:
    """Rows of the runs that have one only: no line goes through it, so it is a dot."""
    return info.seeds.filter(pl.len().over("run_id") == 1)


def runs_text(n: int) -> str:
    """What a mean is over: `n = 3`, or `single run`."""
    return "single run" if n == 1 else f"n = {n}"
