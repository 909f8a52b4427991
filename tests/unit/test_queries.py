"""Queries on small frames whose answers are worked by hand."""

import math

import polars as pl
import pytest

from analysis import queries

NAN = float("nan")


def series(*rows: tuple[str, int, float | None]) -> pl.LazyFrame:
    schema = {"run_id": pl.String, "step": pl.Int64, "val_loss": pl.Float64}
    return pl.LazyFrame(rows, schema=schema, orient="row").with_columns(tokens=pl.col("step") * 10)


def members(*rows: tuple[str, str, int, str]) -> pl.LazyFrame:
    schema = {"run_id": pl.String, "arm": pl.String, "seed": pl.Int64, "status": pl.String}
    return pl.LazyFrame(rows, schema=schema, orient="row").with_columns(optimizer=pl.col("arm"))


def values(frame: pl.LazyFrame) -> dict[str, tuple[int, float]]:
    rows = frame.select("run_id", "step", "value").collect().rows()
    return {run: (step, value) for run, step, value in rows}


def test_value_per_run_at_the_end_is_the_last_row_that_has_one() -> None:
    val = series(("a", 20, 3.0), ("a", 0, 2.0), ("a", 40, None), ("b", 0, 5.0))
    assert values(queries.value_per_run(val, "val_loss")) == {"a": (20, 3.0), "b": (0, 5.0)}


def test_value_per_run_at_the_end_keeps_a_value_that_is_not_finite() -> None:
    step, value = values(queries.value_per_run(series(("a", 0, 2.0), ("a", 20, NAN)), "val_loss"))["a"]
    assert step == 20
    assert math.isnan(value)


@pytest.mark.parametrize(("goal", "expected"), [("min", (20, 2.0)), ("max", (0, 4.0))])
def test_value_per_run_at_best_is_the_first_of_the_best_finite_rows(goal: str, expected: tuple[int, float]) -> None:
    val = series(("a", 0, 4.0), ("a", 40, 2.0), ("a", 20, 2.0), ("a", 60, NAN), ("a", 80, 4.0))
    assert values(queries.value_per_run(val, "val_loss", at="best", goal=goal)) == {"a": expected}  # type: ignore[arg-type]


def test_value_per_run_counts_a_row_once_that_two_blocks_share() -> None:
    val = series(("a", 0, 2.0), ("a", 0, 2.0))
    assert queries.value_per_run(val, "val_loss").collect().height == 1


def test_metric_table_finds_the_table_and_names_the_metrics() -> None:
    assert (queries.metric_table("val_accuracy"), queries.metric_table("train_loss")) == ("val", "train")
    with pytest.raises(ValueError, match=r"unknown metric 'val_los'; choose one of train_loss, .*val_loss"):
        queries.metric_table("val_los")


def test_mean_over_seeds_is_over_steps_that_every_counted_run_reached() -> None:
    who = members(("a", "x", 1, "done"), ("b", "x", 2, "running"), ("c", "x", 3, "diverged"))
    rows = [("a", 0, 4.0), ("a", 20, 2.0), ("a", 40, 1.0), ("b", 0, 6.0), ("b", 20, 3.0), ("c", 0, 99.0)]
    means = queries.mean_over_seeds(queries.curves(series(*rows), who, "val_loss")).collect()
    assert means.select("arm", "step", "tokens", "mean", "n").rows() == [("x", 0, 0, 5.0, 2), ("x", 20, 200, 2.5, 2)]
    assert means["sd"].to_list() == pytest.approx([math.sqrt(2), math.sqrt(0.5)])


def test_mean_over_one_seed_has_no_deviation() -> None:
    means = queries.mean_over_seeds(queries.curves(series(("a", 0, 4.0)), members(("a", "x", 1, "done")), "val_loss"))
    assert means.select("mean", "sd", "n").collect().rows() == [(4.0, None, 1)]


def test_difference_to_baseline_pairs_by_seed_and_step() -> None:
    who = members(
        ("b1", "base", 1, "done"), ("b2", "base", 2, "failed"), ("c1", "x", 1, "done"), ("c2", "x", 2, "done")
    )
    rows = [
        ("b1", 0, 4.0),
        ("b1", 20, 3.0),
        ("b2", 0, 9.0),
        ("c1", 0, 4.5),
        ("c1", 20, 2.0),
        ("c1", 40, 1.0),
        ("c2", 0, 1.0),
    ]
    found = queries.difference_to_baseline(queries.curves(series(*rows), who, "val_loss"), "base").collect()
    assert found.select("run_id", "step", "value").rows() == [("c1", 0, 0.5), ("c1", 20, -1.0)]


def runs(*names: str) -> pl.DataFrame:
    return pl.DataFrame({"run_id": names})


def layer_rows() -> pl.LazyFrame:
    rows = [("a", "q", 0, 20, 32.0, 64, 64), ("a", "k", 1, 0, 16.0, 32, 64), ("b", "q", 0, 0, 8.0, 64, 64)]
    names = ["run_id", "projection", "layer", "step", "effective_rank", "rows", "cols"]
    return pl.LazyFrame(rows, schema=names, orient="row")


def test_layer_cells_of_a_derived_metric_is_a_share_of_full_rank() -> None:
    cells = (
        queries.layer_cells(layer_rows(), runs("a"), ["effective_rank_share"]).sort("layer", descending=True).collect()
    )
    assert cells.rows() == [("a", "k", 1, 0, 0.5), ("a", "q", 0, 20, 0.5)]


def test_layer_table_names_the_metrics_for_an_unknown_one() -> None:
    with pytest.raises(
        ValueError, match=r"unknown layer metric 'rank'; choose one of weight_norm, .*effective_rank_share"
    ):
        queries.layer_table("rank")


def test_shared_scale_is_the_percentiles_of_finite_values_and_the_share_beyond() -> None:
    cells = pl.LazyFrame({"value": [*map(float, range(101)), NAN, math.inf, None]})
    assert queries.shared_scale(cells).collect().rows() == [(1.0, 99.0, 2 / 101)]


def test_shared_scale_of_nothing_is_null() -> None:
    empty = pl.LazyFrame(schema={"value": pl.Float64})
    assert queries.shared_scale(empty).collect().row(0) == (None, None, None)


@pytest.mark.parametrize("metric", queries.layer_metrics())
def test_every_layer_metric_has_a_definition(metric: str) -> None:
    assert queries.metric_unit(metric)
