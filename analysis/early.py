"""How arms got through their first steps: gradient norms, spikes of the loss, values that are not finite.

A run that nearly blows up early may end well, by luck, and a comparison of final losses does not tell. Train rows are
those of the steps that were logged; the largest gradient norm of a hidden matrix, from the `layers` table, is over
every step.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.store import Store

SHARE = 0.1
"""Of the steps of a sweep's longest run that count as the first ones."""


def early_stability(view: Store, members: pl.DataFrame, share: float = SHARE) -> pl.DataFrame:
    """A row an arm in the sweep's order; what was not measured is null.

    Args:
        members: rows of `sweep_members`; all runs that were started count, however they ended.

    Returns: `arm`; `runs` started; `first_steps`, the last step that counts as early; `grad_norm`, the largest global
        gradient norm until then, at `step` of `seed`, and `times_later`, how many times the median of the same run's
        later ones that is; `matrix_grad_norm`, the largest of a hidden matrix; `not_finite`, logged steps until
        then whose loss or gradient norm is not finite; and over whole runs `loss_spikes`, `skipped_steps`,
        `nonfinite_momenta` (entries of perturbed momenta, from the `health` table), `diverged` runs and `failed` ones.
    """
    started = members.filter(pl.col("status") != "planned").unique(["arm", "run_id"], maintain_order=True)
    who = started.select("arm", "run_id", "seed")
    runs = who["run_id"].unique().to_list()
    of_runs = pl.col("run_id").is_in(runs)
    train = view.train.filter(of_runs).select("run_id", "step", "train_loss", "grad_norm").unique().collect()
    last = int(train["step"].max() or 0)  # type: ignore[arg-type]
    first_steps = max(1, round(share * last)) if last else None
    is_early = pl.col("step") <= (first_steps or 0)
    per_run = _largest(train, is_early).join(_not_finite(train, is_early), on="run_id", how="full", coalesce=True)
    matrices = view.layers.filter(of_runs, is_early, pl.col("grad_norm_peak").is_finite())
    peaks = matrices.group_by("run_id").agg(matrix_grad_norm=pl.col("grad_norm_peak").max()).collect()
    health = view.table("health").filter(of_runs, pl.col("num_nonfinite").is_not_null())
    counted = health.select("run_id").unique().collect()
    bad = health.filter(pl.col("num_nonfinite") > 0).select("run_id", "step", "layer", "projection", "num_nonfinite")
    # A run of two blocks has its rows in each.
    sums = bad.unique().group_by("run_id").agg(nonfinite_momenta=pl.col("num_nonfinite").sum()).collect()
    momenta = counted.join(sums, on="run_id", how="left").with_columns(pl.col("nonfinite_momenta").fill_null(0))
    for frame in (per_run, peaks, momenta):
        who = who.join(frame, on="run_id", how="left", maintain_order="left")
    worst = pl.col("grad_norm").fill_null(-1).arg_max()
    arms = who.group_by("arm", maintain_order=True).agg(
        runs=pl.len(),
        first_steps=pl.lit(first_steps, pl.Int64),
        **{name: pl.col(name).get(worst) for name in ("grad_norm", "step", "seed", "times_later")},
        matrix_grad_norm=pl.col("matrix_grad_norm").max(),
        not_finite=_sum("not_finite"),
        nonfinite_momenta=_sum("nonfinite_momenta"),
    )
    whole = started.group_by("arm", maintain_order=True).agg(
        _sum("loss_spikes"),
        _sum("skipped_steps"),
        diverged=(pl.col("status") == "diverged").sum(),
        failed=(pl.col("status") == "failed").sum(),
    )
    return arms.join(whole, on="arm", maintain_order="left")


def early_sentences(stability: pl.DataFrame) -> list[str]:
    """An arm a sentence: the largest gradient norm of the first steps, then what went wrong, or that nothing did."""
    return [_sentence(row) for row in stability.iter_rows(named=True)]


def _largest(train: pl.DataFrame, is_early: pl.Expr) -> pl.DataFrame:
    """`run_id`, `grad_norm` (the largest early one), its `step`, `times_later`."""
    norms = train.filter(pl.col("grad_norm").is_finite())
    later = norms.filter(~is_early).group_by("run_id").agg(later=pl.col("grad_norm").median())
    largest = (
        norms.filter(is_early)
        .sort("step")
        .group_by("run_id")
        .agg(pl.col("step").get(pl.col("grad_norm").arg_max()), pl.col("grad_norm").max())
    )
    times = pl.when(pl.col("later") > 0).then(pl.col("grad_norm") / pl.col("later"))
    return largest.join(later, on="run_id", how="left").with_columns(times_later=times).drop("later")


def _not_finite(train: pl.DataFrame, is_early: pl.Expr) -> pl.DataFrame:
    is_bad = ~pl.col("train_loss").is_finite() | ~pl.col("grad_norm").is_finite().fill_null(value=True)
    return train.filter(is_early).group_by("run_id").agg(not_finite=is_bad.fill_null(value=False).sum())


def _sum(name: str) -> pl.Expr:
    """Sum of a column, null where no run has a value."""
    return pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name)


_TOLD = {
    "diverged": ("run diverged", "runs diverged"),
    "failed": ("run failed", "runs failed"),
    "not_finite": ("logged step not finite", "logged steps not finite"),
    "loss_spikes": ("loss spike", "loss spikes"),
    "skipped_steps": ("step skipped", "steps skipped"),
    "nonfinite_momenta": ("entry of a momentum not finite", "entries of momenta not finite"),
}

_CLEAN = {
    "not_finite": "all losses and norms finite",
    "loss_spikes": "no loss spike",
    "skipped_steps": "no step skipped",
}


def _sentence(row: dict[str, Any]) -> str:
    wrong = [f"{row[name]:,} {words[row[name] > 1]}" for name, words in _TOLD.items() if row[name]]
    clean = [words for name, words in _CLEAN.items() if row[name] is not None]
    rest = ", ".join(wrong or clean or ["what is not finite was not counted"])
    return f"{row['arm']}: {_norm(row)}; {rest}, in {row['runs']} run{'' if row['runs'] == 1 else 's'}."


def _norm(row: dict[str, Any]) -> str:
    if row["grad_norm"] is None:
        return "no gradient norm was logged"
    where = f"step {row['step']:,}" + ("" if row["seed"] is None else f", seed {row['seed']}")
    norm = f"gradient norm up to {row['grad_norm']:.3g} in the first {row['first_steps']:,} steps ({where})"
    return norm + (f", {row['times_later']:.2g} times the run's later median" if row["times_later"] else "")
