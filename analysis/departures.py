"""The kinds of anomalies: cells whose value is far from what is normal there, frame in, frame of hits out.

What is normal is the same matrix at other steps, the other seeds of its arm, or the other layers of its run. The score
of a cell is its distance from that in robust standard deviations, `0.6745 (x - median) / MAD`, and a cell is a hit from
THRESHOLD on. A metric that hardly moves has a MAD near 0, by which everything would be far. So each kind has a
*smallest* departure worth telling, and the deviation counts as at least that over THRESHOLD: a score is finite, and a
hit is both THRESHOLD deviations out and at least the smallest departure. Metrics are compared by their logarithms, so
that no score depends on units or on the size of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import polars as pl

from muon_core.tables import FROZEN_AGREEMENT, FROZEN_COSINE

THRESHOLD = 8.0
"""Robust standard deviations. Of the 3e7 values of a large sweep chance takes Gaussian noise to 5.6; gradient norms
have heavier tails, and what passes 8 must moreover stay or double."""
WORST = 1000.0
"""The largest score, and that of values that are not finite, which have no distance."""
METRICS = (
    "effective_rank", "spectral_norm", "weight_norm", "update_norm", "left_alignment", "momentum_left_alignment"
)  # fmt: skip
"""What is looked at for shifts, seeds and layers; metrics that follow from these would tell everything twice."""
PEAKS = ("grad_norm", "weight_norm")
"""Norms whose running maxima catch a spike between two tracked steps."""
SHIFT, SPIKE, COLLAPSE, SEEDS, LAYER, RUNAWAY = (math.log(ratio) for ratio in (1.05, 2, 2, 1.5, 2, 10))
"""Smallest departures, as logarithms of ratios."""
SIDE = 5
"""Tracked steps on either side of a sudden shift, whose medians must differ too."""
AROUND = 21
"""Tracked steps that say what is normal around one."""
EARLY = 5
"""Tracked steps, or a fifth of them if that is more, that say how a matrix began."""
MIN_LAYERS = 5
"""Fewer layers do not say what a layer is like."""
PLACE = ("run", "projection", "layer", "t", "step")
"""Of a cell; `run` numbers the runs, `t` the tracked steps of each."""
MATRIX, MATES, SIBLINGS = GROUPS = ("matrix", "mates", "siblings")
"""Numbers that cells share which are of one matrix of a run, of one place and step in the seeds of an arm, and of one
projection and step in the layers of a run. Rows are sorted by the one that a kind goes by, and steps within."""
HIT = {
    "kind": pl.String, "metric": pl.String, "run": pl.UInt32, "projection": pl.String, "layer": pl.Int32,
    "t": pl.UInt32, "step": pl.Int64, "value": pl.Float64, "normal": pl.Float64, "score": pl.Float64,
}  # fmt: skip
_SQRT5 = math.sqrt(5)
_APART = ("off", "normal", "farthest")


def series(cells: pl.DataFrame, metric: str, *others: str) -> pl.DataFrame:
    """The positive, finite values of `metric` in the order of `cells`, and `x`, their logarithm.

    Args:
        others: columns to keep beside.
    """
    value = pl.col(metric).cast(pl.Float64)
    is_usable = value.is_finite() & (value > 0)
    if metric == "left_alignment":  # without meaning where the update has no top 5
        is_usable &= ~pl.col("ill_posed").fill_null(False)
    rows = cells.filter(is_usable).select(*PLACE, *GROUPS, "arm", *others, value=value)
    return rows.with_columns(x=pl.col("value").log(), metric=pl.lit(metric).cast(pl.Categorical))


def shifts(rows: pl.DataFrame) -> pl.DataFrame:
    """Jumps from one tracked step to the next, far beyond those around it, after which the level stays.

    That a curve is steep, or a warm-up ends, is no shift: the jumps beside it are nearly as large.
    """
    x, jump, off = pl.col("x"), pl.col("jump"), pl.col("off")
    rows = rows.with_columns(jump=pl.when(pl.col(MATRIX) == pl.col(MATRIX).shift()).then(x.diff()))
    rows = rows.with_columns(mad=_mad(jump).over(MATRIX))
    kink = (jump - (jump.shift(1) + jump.shift(-1)) / 2).abs()
    is_sudden = kink > 2 * pl.max_horizontal(jump.shift(1).abs(), jump.shift(-1).abs())
    is_sudden &= _score(kink, "mad", SHIFT) >= THRESHOLD * 3 / 4  # three jumps are in it, and so is their noise
    rows = _of_suspects(rows, is_sudden)
    rows = rows.with_columns(
        is_sudden=is_sudden,
        usual=_around(jump),
        before=x.rolling_median(SIDE).shift(1).over(MATRIX),
        after=x.rolling_median(SIDE).shift(1 - SIDE).over(MATRIX),
    ).with_columns(off=jump - pl.col("usual"), normal=x.shift() + pl.col("usual"))
    rows = rows.with_columns(local=_around(off.abs()))
    stays = (pl.col("after") - pl.col("before")) * off.sign() >= off.abs() / 2
    score = _score(off.abs(), pl.max_horizontal("mad", "local"), SHIFT)
    return _hits(rows.filter("is_sudden", stays), "sudden shift", normal=pl.col("normal").exp(), score=score)


def spikes(cells: pl.DataFrame, norm: str) -> pl.DataFrame:
    """Norms far above those before and after: at a tracked step, or since the last one, if the running peak rose."""
    x, peak = pl.col("x"), pl.col("peak").cast(pl.Float64)
    rows = series(cells.with_columns(peak=f"{norm}_peak"), norm, "peak")
    rose = (pl.col(MATRIX) == pl.col(MATRIX).shift()) & (peak > peak.shift()) & peak.is_finite()
    rows = rows.with_columns(highest=pl.when(rose).then(peak.log()).otherwise(x))
    lowest = x.rolling_min(SIDE, min_samples=1).shift(1)  # the median before is not below it
    rows = _of_suspects(rows, pl.col("highest") - lowest >= SPIKE).with_columns(
        before=x.rolling_median(SIDE, min_samples=1).shift(1).over(MATRIX),
        after=x.reverse().rolling_median(SIDE, min_samples=1).shift(1).reverse().over(MATRIX),
        mad=_mad(x.diff()).over(MATRIX),
    )
    rows = rows.drop_nulls("before").with_columns(normal=pl.max_horizontal("before", "after"))
    score = _score(pl.col("highest") - pl.col("normal"), "mad", SPIKE)
    return _hits(rows, "spike", normal=pl.col("normal").exp(), score=score, value=pl.col("highest").exp())


def _of_suspects(rows: pl.DataFrame, may_be: pl.Expr) -> pl.DataFrame:
    """All rows of the matrices with a row that may be a hit: few, so that what is dear is computed for them alone."""
    suspects = rows.filter(may_be)[MATRIX].unique()
    return rows.filter(pl.col(MATRIX).is_in(suspects.implode()))


def collapses(rows: pl.DataFrame) -> pl.DataFrame:
    """Effective ranks at half of what the matrix began with, or less."""
    return _since_early(rows, "rank collapse", -1, COLLAPSE)


def runaways(cells: pl.DataFrame) -> pl.DataFrame:
    """Momenta that grow tenfold, whose cubic steps diverge (above sqrt 5), or that are not finite."""
    grown = _since_early(series(cells, "sigma_max"), "runaway momentum", 1, RUNAWAY)
    # At the bound the score is THRESHOLD, and grows with the logarithm of the distance, as all scores do.
    beyond = THRESHOLD * (1 + (pl.col("sigma_max").cast(pl.Float64) / _SQRT5).log().clip(lower_bound=0))
    is_lost = (pl.col("num_nonfinite") > 0).fill_null(False)
    lost = cells.filter(is_lost | (pl.col("num_divergent") > 0)).with_columns(
        metric=pl.lit("sigma_max"), value=pl.col("sigma_max").cast(pl.Float64)
    )
    score = pl.when(is_lost).then(WORST).otherwise(beyond)
    return pl.concat([grown, _hits(lost, "runaway momentum", normal=pl.lit(_SQRT5), score=score)])


def frozen(cells: pl.DataFrame) -> pl.DataFrame:
    """Matrices that repeat their update though the gradient points elsewhere, by the bounds that training judges by."""
    cos = pl.col("cos_previous_update").cast(pl.Float64)
    rows = cells.filter(cos > FROZEN_COSINE, pl.col("gradient_agreement") < FROZEN_AGREEMENT)
    left = (1 - cos).clip(lower_bound=1e-6)
    score = THRESHOLD * (1 + (pl.lit(1 - FROZEN_COSINE) / left).log())
    rows = rows.with_columns(metric=pl.lit("cos_previous_update"), value=cos)
    return _hits(rows, "frozen momentum", normal=pl.lit(FROZEN_COSINE), score=score)


def apart(rows: pl.DataFrame) -> pl.DataFrame:
    """Cells of arms with several seeds: `off` from what is `normal` there, and the `farthest` off of the cell's seeds.

    Normal is the median over the seeds. Of two nobody can say which one is off: the second is named, and the first's
    value is what it is compared with.
    """
    rows = rows.with_columns(
        middle=pl.col("x").median().over(MATES), seeds=pl.len().over(MATES), first=pl.col("run").min().over(MATES)
    ).filter(pl.col("seeds") > 1)
    is_pair = pl.col("seeds") == 2
    rows = rows.with_columns(normal=pl.when(is_pair).then(2 * pl.col("middle") - pl.col("x")).otherwise("middle"))
    rows = rows.with_columns(off=(pl.col("x") - pl.col("normal")).abs())
    rows = rows.with_columns(farthest=pl.col("off").max().over(MATES))  # for the middle one is at 0
    return rows.filter(~(is_pair & (pl.col("run") == pl.col("first")))).select(*PLACE, "metric", "value", *_APART)


def disagreements(rows: pl.DataFrame, usual: float | None) -> pl.DataFrame:
    """Cells where a run is far from the other seeds of its arm.

    Args:
        rows: of `apart`; those that are off by less than SEEDS may be missing.
        usual: median of `farthest` over all of the sweep, what seeds of an arm differ by.
    """
    score = _score(pl.col("off"), pl.lit(usual, pl.Float64), SEEDS)
    return _hits(rows, "seeds disagree", normal=pl.col("normal").exp(), score=score)


def outlying_layers(rows: pl.DataFrame) -> pl.DataFrame:
    """Cells far from the median over the layers of their run and projection at that step.

    By chance a few layers may lie close together at a step. So they count as at least as far apart as they usually are.
    """
    rows = rows.with_columns(normal=pl.col("x").median().over(SIBLINGS), layers=pl.len().over(SIBLINGS))
    off = (pl.col("x") - pl.col("normal")).abs()
    rows = rows.with_columns(mad=off.median().over(SIBLINGS)).filter(pl.col("layers") >= MIN_LAYERS)
    far = rows.filter(_score(off, "mad", LAYER) >= THRESHOLD)
    group = ["run", "projection"]
    usual = rows.join(far, on=group, how="semi").group_by(group).agg(usual=pl.col("mad").median())
    score = _score(off, pl.max_horizontal("mad", "usual"), LAYER)
    return _hits(far.join(usual, on=group), "outlying layer", normal=pl.col("normal").exp(), score=score)


def not_finite(cells: pl.DataFrame, metrics: Iterable[str]) -> pl.DataFrame:
    """NaN and infinities, under the first metric that has one."""
    bad = [pl.when(~pl.col(name).is_finite()).then(pl.lit(name)) for name in metrics]
    rows = cells.with_columns(metric=pl.coalesce(bad)).drop_nulls("metric").with_columns(value=pl.lit(math.nan))
    return _hits(rows, "not finite", normal=pl.lit(None), score=pl.lit(WORST))


def _since_early(rows: pl.DataFrame, kind: str, direction: int, smallest: float) -> pl.DataFrame:
    """Cells that have left the median of their matrix's first tracked steps in `direction`."""
    first = pl.col("x").slice(0, pl.max_horizontal(pl.lit(EARLY), pl.len() // 5))
    began = rows.group_by(MATRIX).agg(
        normal=first.median(), mad=_mad(first.diff()), farthest=(direction * pl.col("x")).max(), rows=pl.len()
    )
    began = began.filter(pl.col("rows") > EARLY, pl.col("farthest") - direction * pl.col("normal") >= smallest)
    rows = rows.join(began, on=MATRIX, maintain_order="left")
    score = _score(direction * (pl.col("x") - pl.col("normal")), "mad", smallest)
    return _hits(rows, kind, normal=pl.col("normal").exp(), score=score)


def _score(off: pl.Expr, mad: str | pl.Expr, smallest: float) -> pl.Expr:
    deviation = (pl.col(mad) if isinstance(mad, str) else mad).fill_null(0.0) / 0.6745
    return off / pl.max_horizontal(deviation, pl.lit(smallest / THRESHOLD))


def _mad(values: pl.Expr) -> pl.Expr:
    return (values - values.median()).abs().median()


def _around(values: pl.Expr) -> pl.Expr:
    """Median of a matrix's values over AROUND tracked steps, centred."""
    return values.rolling_median(AROUND, min_samples=SIDE, center=True).over(MATRIX)


def _hits(
    rows: pl.DataFrame, kind: str, *, normal: pl.Expr, score: pl.Expr, value: pl.Expr | None = None
) -> pl.DataFrame:
    value = pl.col("value") if value is None else value
    hits = rows.with_columns(score=score.clip(upper_bound=WORST)).filter(pl.col("score") >= THRESHOLD * (1 - 1e-12))
    return hits.with_columns(kind=pl.lit(kind), normal=normal, value=value).select(
        pl.col(name).cast(dtype) for name, dtype in HIT.items()
    )
