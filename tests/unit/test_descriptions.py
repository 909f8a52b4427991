"""Every number in a description or caption is the one in the frame it describes."""

import re
from pathlib import Path
from statistics import fmean, median

import polars as pl
import pytest
from scipy import stats
from support.analysis_fixtures import FINAL_LOSS, FakeRun, demo_runs, known_runs, loss_curve, write_store

import analysis
from analysis.figures.curves import curves_info, difference_info
from analysis.figures.describe import curves_caption, describe_curves
from analysis.figures.heatmap import heatmaps_info
from analysis.figures.heatmap_text import describe_heatmap, heatmap_caption
from analysis.store import Store
from analysis.summary import members_of


@pytest.fixture
def demo(tmp_path: Path) -> tuple[Store, pl.DataFrame]:
    write_store(tmp_path, demo_runs())
    view = analysis.open_store(tmp_path).sweep("demo")
    return view, members_of(view)


@pytest.fixture
def known(tmp_path: Path) -> tuple[Store, pl.DataFrame]:
    write_store(tmp_path, known_runs())
    view = analysis.open_store(tmp_path).sweep("demo")
    return view, members_of(view)


def test_describe_curves_says_axes_ends_and_file(known: tuple[Store, pl.DataFrame]) -> None:
    view, members = known
    text = describe_curves(curves_info(view.val, members, "val_loss", "adamw"), "data/val_loss.csv")
    muon, adamw = (fmean(FINAL_LOSS[name].values()) for name in ("muon", "adamw"))
    assert text == (
        "Line chart of val_loss (nats per token) against training tokens, 0 to 409,600; the left panel shows all "
        f"of it, the right panel the last half on its own scale. muon: {muon:.4f} at step 200 (n = 3). "
        f"adamw: {adamw:.4f} at step 200 (n = 3). Values: data/val_loss.csv."
    )


def test_describe_difference_gives_the_paired_interval(known: tuple[Store, pl.DataFrame]) -> None:
    view, members = known
    text = describe_curves(difference_info(view.val, members, "val_loss", "adamw"), "x.csv")
    pairs = [FINAL_LOSS["muon"][seed] - FINAL_LOSS["adamw"][seed] for seed in (42, 137, 256)]
    interval = stats.t.interval(0.95, 2, loc=fmean(pairs), scale=stats.sem(pairs))
    numbers = [f"{value:+.4f}".replace("-", "−") for value in (fmean(pairs), *interval)]
    assert f"muon: {numbers[0]} at step 200 (n = 3, 95 % t interval {numbers[1]} to {numbers[2]})." in text
    assert "adamw:" not in text


def test_describe_curves_names_runs_that_are_in_no_mean(demo: tuple[Store, pl.DataFrame]) -> None:
    view, members = demo
    text = describe_curves(curves_info(view.val, members, "val_loss", "muon"), "x.csv")
    assert "isotropic: 3.9050 at step 200 (single run); 1 run not in the mean." in text


def test_describe_curves_says_what_has_no_mean_and_what_is_not_drawn(tmp_path: Path) -> None:
    write_store(tmp_path, [FakeRun("muon", 1, {0: 7.0, 20: float("nan")}, "diverged", "baseline")])
    view = analysis.open_store(tmp_path).sweep("demo")
    text = describe_curves(curves_info(view.val, members_of(view), "val_loss", "muon"), "x.csv")
    assert "muon: 1 run, none done or running, so there is no mean. " in text
    assert "1 run evaluated once, a dot. 1 value not finite and not drawn." in text


@pytest.mark.parametrize("number", range(6))
def test_describe_heatmap_is_computed_from_the_frame(demo: tuple[Store, pl.DataFrame], number: int) -> None:
    view, members = demo
    info = heatmaps_info(view.layers, members, "effective_rank")[number]
    text = describe_heatmap(info, "data/x.csv")
    layers = view.layers.collect().filter(pl.col("projection") == info.projection)
    found = re.findall(
        r"(\w+): median ([\d.]+) at step (\d+) and ([\d.]+) at step (\d+); lowest ([\d.]+) at layer (\d), step (\d+)",
        text,
    )
    assert [match[0] for match in found] == ["muon", "adamw", "orthonoise", "isotropic"]
    for arm, first, at_first, last, at_last, lowest, layer, step in found:
        rows = layers.filter(pl.col("run_id") == f"{arm}-s42-0badcafe")
        by_step = {s: rows.filter(pl.col("step") == s)["effective_rank"].to_list() for s in (0, 200)}
        assert (at_first, at_last) == ("0", "200")
        assert (float(first), float(last)) == (
            pytest.approx(median(by_step[0]), rel=5e-4),
            pytest.approx(median(by_step[200]), rel=5e-4),
        )
        values = {(r["layer"], r["step"]): r["effective_rank"] for r in rows.iter_rows(named=True)}
        assert values[int(layer), int(step)] == min(values.values()) == pytest.approx(float(lowest), rel=5e-4)
    assert f"{info.projection} projection, 4 layers by 11 steps (0 to 200), 4 arms at seed 42." in text
    assert text.endswith("Values: data/x.csv.")


def test_the_scale_and_the_share_clipped_are_those_of_the_panels_of_the_projection(
    demo: tuple[Store, pl.DataFrame],
) -> None:
    view, members = demo
    shown = view.layers.filter(pl.col("run_id").str.contains("-s42-")).collect()
    infos = heatmaps_info(view.layers, members, "effective_rank")
    assert len(infos) == 6
    for info in infos:
        values = shown.filter(pl.col("projection") == info.projection)["effective_rank"].sort()
        low, high = values.quantile(0.01, "nearest"), values.quantile(0.99, "nearest")
        assert low is not None
        assert high is not None
        clipped = f"{100 * ((values < low) | (values > high)).mean():.1f} %"  # type: ignore[operator]
        scale = f"{low:.4g} to {high:.4g}"
        assert f"Shared scale {scale} over 4 panels; {clipped} clipped." in describe_heatmap(info, "x")
        caption = heatmap_caption(info)
        assert f"One scale for the 4 panels of this figure, {scale}, the 1st to 99th percentile; {clipped}" in caption
        assert "Other projections have other scales." in caption


def test_describe_heatmap_counts_missing_cells_and_arms_without_rows(demo: tuple[Store, pl.DataFrame]) -> None:
    view, members = demo
    early = heatmaps_info(view.layers, members, "effective_rank", seed=137)[0]
    assert re.search(
        r"isotropic: .* step 60; 28 cells missing\.", describe_heatmap(early, "x")
    )  # 4 layers, 7 of 11 steps
    failed = heatmaps_info(view.layers, members, "effective_rank", seed=256)[0]
    assert "isotropic: no rows at seed 256." in describe_heatmap(failed, "x")


def test_describe_heatmap_counts_cells_that_are_not_finite(tmp_path: Path) -> None:
    members = pl.DataFrame({"run_id": ["r"], "arm": ["muon"], "seed": [1]})
    cells = {"run_id": "r", "projection": "q", "layer": [0, 1], "step": 0, "entropy": [1.0, float("nan")]}
    text = describe_heatmap(heatmaps_info(pl.LazyFrame(cells), members, "entropy")[0], "x")
    assert "muon: median 1 at step 0 and 1 at step 0; lowest 1 at layer 0, step 0; 1 cell missing." in text
    assert "2 layers by 1 step (0 to 0), 1 arm at seed 1. Shared scale 1 to 1 over 1 panel" in text


def test_a_binned_heatmap_says_what_a_column_is() -> None:
    members = pl.DataFrame({"run_id": ["r"], "arm": ["muon"], "seed": [1]})
    steps = list(range(1000))
    for metric, word in (("grad_norm", "mean"), ("grad_norm_peak", "maximum")):
        cells = {"run_id": "r", "projection": "q", "layer": 0, "step": steps, metric: 1.0}
        caption = heatmap_caption(heatmaps_info(pl.LazyFrame(cells), members, metric)[0])
        assert f"A column is the {word} of 4 measured steps." in caption


def test_the_caption_of_a_difference_names_its_band(known: tuple[Store, pl.DataFrame]) -> None:
    view, members = known
    assert "95 % Student t intervals" in curves_caption(difference_info(view.val, members, "val_loss", "adamw"))
    assert "interval" not in curves_caption(curves_info(view.val, members, "val_loss", "adamw"))


def test_a_single_seed_is_described_without_an_interval(tmp_path: Path) -> None:
    write_store(tmp_path, [FakeRun("muon", 1, loss_curve(3.0), role="baseline"), FakeRun("adamw", 1, loss_curve(3.5))])
    view = analysis.open_store(tmp_path).sweep("demo")
    text = describe_curves(difference_info(view.val, members_of(view), "val_loss", "muon"), "x")
    assert "adamw: +0.5000 at step 200 (single run)." in text
