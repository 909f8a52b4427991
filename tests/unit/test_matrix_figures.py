"""Figures of single matrices: alignments beside their chance level, differences, pairs, scans, lines and spectra."""

import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import pytest
import vl_convert
from support.analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, put_final, write_store, write_sweep
from support.pictures import decode_png, open_groups, panel_pixels

import analysis
from analysis.figures.cells import chance_sd, read_cells
from analysis.figures.difference_heatmap import difference_heatmap_figures, difference_infos
from analysis.figures.heatmap import heatmap_figures, heatmaps_info, why_no_heatmaps
from analysis.figures.heatmap_drawing import LINES, MISSING, PAPER, colour_indices, draw_heatmap
from analysis.figures.heatmap_text import describe_heatmap, heatmap_caption
from analysis.figures.layer_lines import MAX_POINTS, layer_lines_figures, layer_lines_info, two_arms
from analysis.figures.pairs import pair_figures, why_no_pairs
from analysis.figures.panels import Heatmap, Panel, Shown, bin_steps
from analysis.figures.picture_grid import wrapped
from analysis.figures.scan import describe_scan, draw_scan, scan_caption, scan_figures, scan_info
from analysis.figures.spectrum import STEP_COLOURS, shown_places, spectrum_figures
from analysis.figures.style import DARK, LIGHT, blueorange, contrast, viridis
from analysis.figures.svg import VEGA_LITE, to_png, to_svg
from analysis.store import Store
from analysis.summary import members_of
from muon_core.store.keys import ROOT, Attempt
from muon_core.tables import SPECTRA

LAYERS, STEPS = 4, (0, 20, 40)


def aligned(
    run: str, shift: float = 0.0, *, ill_posed: tuple[int, ...] = (), chance: float | None = 0.1156
) -> pl.DataFrame:
    """Alignments of one projection of a run, shape 256 x 64, of which these layers are ill-posed."""
    rows = [
        {
            "run_id": run,
            "projection": "up",
            "layer": layer,
            "step": step,
            "left_alignment": 0.2 + shift + 0.01 * layer + 0.001 * step,
            "ill_posed": layer in ill_posed,
            "alignment_chance": chance,
            "rows": 256,
            "cols": 64,
        }
        for layer in range(LAYERS)
        for step in STEPS
    ]
    return pl.DataFrame(rows, schema_overrides={"alignment_chance": pl.Float64})


def members(*runs: tuple[str, str, int | None]) -> pl.DataFrame:
    """Rows of (run_id, arm, seed)."""
    frame = pl.DataFrame(list(runs), schema={"run_id": pl.String, "arm": pl.String, "seed": pl.Int64}, orient="row")
    return frame.with_columns(optimizer="arm", status=pl.lit("done"), block="arm", role=pl.lit("candidate"))


TWO = members(("m", "muon", 1), ("a", "adamw", 1))


def two_arms_of_alignments() -> pl.LazyFrame:
    return pl.concat([aligned("m", ill_posed=(0, 2)), aligned("a", 0.1)]).lazy()


def view_of(folder: Path, runs: list[FakeRun]) -> tuple[Store, pl.DataFrame]:
    write_store(folder, runs)
    view = analysis.open_store(folder).sweep("demo")
    return view, members_of(view)


@pytest.mark.parametrize("size", [16, 64, 256, 2048])
def test_the_deviation_of_chance_alignments_is_that_of_random_subspaces(size: int) -> None:
    """The corner of a random orthonormal frame is G (G'G + W)^-1/2, W Wishart, made by its triangular factor."""
    rng, n = np.random.default_rng(7), 6000
    gaussian = rng.standard_normal((n, 5, 5))
    factor = np.tril(rng.standard_normal((n, 5, 5)), -1)
    factor[:, range(5), range(5)] = np.sqrt(rng.chisquare(size - 5 - np.arange(5), (n, 5)))
    gram = gaussian.transpose(0, 2, 1) @ gaussian + factor @ factor.transpose(0, 2, 1)
    corner = gaussian @ np.linalg.inv(np.linalg.cholesky(gram)).transpose(0, 2, 1)
    found = np.linalg.svd(corner, compute_uv=False).mean(-1).std()
    assert chance_sd(size) == pytest.approx(found, rel=0.04)  # four standard errors of 6,000 draws
    assert math.isnan(chance_sd(9))


def test_a_run_in_two_blocks_is_read_once(tmp_path: Path) -> None:
    runs = known_runs()[:2]
    storage = write_store(tmp_path, runs)
    listed = [{"run_id": r.run_id, "block": block, "role": r.role, "arm": r.optimizer} for r in runs for block in "ab"]
    write_sweep(storage, "demo", listed, number=2)
    view = analysis.open_store(tmp_path).sweep("demo")
    cells = read_cells(view.layers, members_of(view), ["effective_rank", "weight_norm"])
    assert cells.values["weight_norm"].shape == (2, 6, 4, 11)
    assert (cells.values["weight_norm"] == 1.0 + np.arange(4)[:, None]).all()
    assert view.layers.collect().height == 2 * cells.measured.sum()


def test_ill_posed_cells_are_hatched_unlike_missing_ones_and_count_in_no_number() -> None:
    info = heatmaps_info(two_arms_of_alignments(), TWO, "left_alignment")[0]
    assert [panel.num_ill_posed for panel in info.panels] == [6, 0]
    assert info.panels[0].missing == 0
    finite = info.rows.drop_nulls("value")["value"]
    assert (info.low, info.high) == (finite.quantile(0.01, "nearest"), finite.quantile(0.99, "nearest"))
    assert info.rows.height == 24
    assert info.rows["value"].null_count() == info.rows["ill_posed"].sum() == 6
    pixels = panel_pixels(info)
    height = len(pixels) // LAYERS
    for layer in range(LAYERS):
        band = pixels[(LAYERS - 1 - layer) * height + 2 : (LAYERS - layer) * height - 2, 2:-2]
        found = {tuple(colour) for colour in band.reshape(-1, 3)}
        assert MISSING not in found
        assert ({PAPER, LINES} <= found) == (layer in (0, 2)), layer
        assert (found & set(viridis())) == set() if layer in (0, 2) else found <= set(viridis())


def test_alignments_are_told_with_their_chance_level_and_z() -> None:
    info = heatmaps_info(two_arms_of_alignments(), TWO, "left_alignment")[0]
    sd = 0.2815 * (1 - 3 / 256) / 16
    level = (
        f"Chance level 0.1156: so much do unrelated subspaces of this size align, with a standard deviation of {sd:.4g}"
    )
    text, caption = describe_heatmap(info, "x"), heatmap_caption(info)
    assert level in text
    assert level in caption
    z = {
        "muon": [(0.2 + 0.01 * layer + 0.001 * step - 0.1156) / sd for layer in (1, 3) for step in STEPS],
        "adamw": [(0.3 + 0.01 * layer + 0.001 * step - 0.1156) / sd for layer in range(4) for step in STEPS],
    }
    for arm, values in z.items():
        above = 100 * sum(value > 2 for value in values) / len(values)
        assert re.search(
            rf"{arm}: [^.]*.*?z above chance {median(values):.1f} in the median cell, above 2 in {above:.0f} %", text
        )
    assert "muon: median 0.22 at step 0 and 0.26 at step 40; lowest 0.21 at layer 1, step 0; z" in text
    assert "6 values ill-posed." in text
    assert "6 values are hatched as ill-posed, and in no number" in caption
    assert "momentum_left_alignment is the one to read there" in caption


def test_chance_levels_that_were_not_recorded_are_not_made_up() -> None:
    rows = aligned("m", chance=None).drop("ill_posed").lazy()
    info = heatmaps_info(rows, TWO.head(1), "left_alignment")[0]
    assert "No chance level was recorded with these runs." in describe_heatmap(info, "x")
    caption = heatmap_caption(info)
    assert "No chance level was recorded with these runs." in caption
    assert "Which values are ill-posed was not recorded" in caption
    assert "z above" not in describe_heatmap(info, "x")


def test_a_projection_that_is_all_ill_posed_is_drawn_and_told() -> None:
    info = heatmaps_info(aligned("m", ill_posed=(0, 1, 2, 3)).lazy(), TWO.head(1), "left_alignment")[0]
    assert "muon: no well-posed value; 12 values ill-posed." in describe_heatmap(info, "x")
    found = {tuple(colour) for colour in panel_pixels(info)[4:-4, 4:-4].reshape(-1, 3)}
    assert found == {PAPER, LINES}


def test_what_is_binned_leaves_ill_posed_values_out() -> None:
    values = np.array([[1, 3, np.nan, 5, np.nan]], np.float32)
    assert bin_steps(values, 2, peak=False).tolist()[0][:2] == [2.0, 5.0]
    assert bin_steps(values, 2, peak=True).tolist()[0][:2] == [3.0, 5.0]
    assert np.isnan(bin_steps(values, 2, peak=False)[0, 2])
    rows = pl.DataFrame({"run_id": "m", "projection": "q", "layer": 0, "step": range(640), "left_alignment": 0.5})
    rows = rows.with_columns(ill_posed=pl.col("step") % 4 < 2)
    info = heatmaps_info(rows.lazy(), TWO.head(1), "left_alignment")[0]
    panel = info.panels[0]
    assert (info.bin_size, panel.num_ill_posed) == (2, 320)
    assert panel.ill_posed is not None
    assert (panel.ill_posed[0] == np.isnan(panel.cells[0])).all()
    assert panel.ill_posed[0].sum() == 160


def test_the_legend_on_the_picture_has_the_colours_of_its_scale() -> None:
    cells = np.arange(48, dtype=np.float32).reshape(4, 12)
    info = Heatmap(
        "entropy",
        "q",
        "seed 1",
        "1 arm",
        (Panel("muon", "r", cells),),
        (0, 1, 2, 3),
        tuple(range(12)),
        1,
        0.0,
        47.0,
        0.0,
    )
    for minus, palette in ((None, viridis()), ("adamw", blueorange())):
        svg = to_svg(*draw_heatmap(replace(info, minus=minus)), name="h", title="t", description="d")
        pixels = decode_png(to_png(svg, scale=2))
        at = svg.index("role-legend-gradient")
        x, y = (sum(float(pair[axis]) for pair in open_groups(svg[:at])) for axis in (0, 1))
        size = re.match(r'[^>]*><path d="M0,0h(\d+)v(\d+)', svg[at:])
        assert size is not None
        height = 2 * int(size[2])
        strip = pixels[round(2 * y) : round(2 * y) + height, round(2 * x) + int(size[1]), :3].astype(int)
        for share in (0.02, 0.25, 0.5, 0.75, 0.98):
            expected = np.array(palette[round(254 * share)])
            assert np.abs(strip[round((1 - share) * (height - 1))] - expected).max() <= 6, (minus, share)


def test_blueorange_is_that_of_vega() -> None:
    rows = [{"x": i / 10} for i in range(11)]
    spec = {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "opacity": 1},
        "encoding": {"fill": {"field": "x", "type": "quantitative", "scale": {"scheme": "blueorange"}, "legend": None}},
    }
    drawn = re.findall(r'fill="rgb\((\d+), (\d+), (\d+)\)"', vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    ours = blueorange(11)
    assert len(drawn) == 11
    for theirs, colour in zip(drawn, ours, strict=True):
        assert max(abs(int(a) - b) for a, b in zip(theirs, colour, strict=True)) <= 12  # Vega's ramp is a spline


def test_a_difference_is_candidate_minus_baseline_on_a_symmetric_scale(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, demo_runs())
    figure = difference_heatmap_figures(view, runs)[0]
    rows = figure.tables["data/effective_rank_minus_baseline_q_s42.csv"]
    ranks = view.layers.filter(projection="q").select("run_id", "layer", "step", "effective_rank").collect()
    by_place = {(run, layer, step): value for run, layer, step, value in ranks.iter_rows()}
    assert rows.height == 3 * 4 * 11
    for row in rows.iter_rows(named=True):
        place = row["layer"], row["step"]
        assert row["value"] == pytest.approx(
            by_place[row["run_id"], *place] - by_place["muon-s42-0badcafe", *place], abs=1e-4
        )
    bound = float(rows["value"].abs().quantile(0.98, "nearest"))  # type: ignore[arg-type]
    clipped = 100 * (rows["value"].abs() > bound).mean()  # type: ignore[operator]
    assert (
        f"{-bound:.4g} to {bound:.4g}, the 98th percentile of the distances from 0; {clipped:.1f} %" in figure.caption
    )
    assert "4 layers by 11 steps (0 to 200), 3 arms at seed 42, each minus muon." in figure.description
    last = rows.filter(arm="adamw", step=200)["value"].median()
    assert f"adamw: median 0 at step 0 and {last:.4g} at step 200;" in figure.description


def test_no_difference_is_the_middle_colour_and_ill_posed_in_either_run_is_ill_posed() -> None:
    rows = pl.concat([aligned("m", ill_posed=(0,)), aligned("a", ill_posed=(1,)), aligned("b", 0.5)]).lazy()
    cells = read_cells(rows, members(("m", "muon", 1), ("a", "adamw", 1)), ["left_alignment"])
    info = difference_infos(cells, "left_alignment", [Shown("adamw", "a", 1)], Shown("muon", "m", 1), 1)[0]
    panel = info.panels[0]
    assert panel.ill_posed is not None
    assert panel.ill_posed.any(axis=1).tolist() == [True, True, False, False]
    assert set(colour_indices(panel.cells, info.low, info.high)[2:].ravel()) == {128}
    assert blueorange()[127] == (242, 240, 235)
    sd = math.sqrt(2) * chance_sd(256)
    assert f"the difference is 0, with a standard deviation of {sd:.4g}" in heatmap_caption(info)


def test_without_a_baseline_there_is_no_difference(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, [FakeRun("muon", 1, loss_curve(3.0))])
    assert difference_heatmap_figures(view, runs) == []


def test_pairs_lay_two_seeds_of_each_arm_side_by_side_on_one_scale(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, known_runs())
    figures = pair_figures(view, runs, pair=(42, 256))
    assert [figure.name for figure in figures] == [
        f"effective_rank_pairs_{p}" for p in ("q", "k", "v", "o", "up", "down")
    ]
    rows = figures[0].tables["data/effective_rank_pairs_q.csv"]
    assert rows.select("arm", "seed").unique(maintain_order=True).rows() == [
        ("muon", 42), ("muon", 256), ("adamw", 42), ("adamw", 256)
    ]  # fmt: skip
    low, high = (rows["value"].quantile(q, "nearest") for q in (0.01, 0.99))
    assert f"2 arms at seeds 42 and 256. Shared scale {low:.4g} to {high:.4g} over 4 panels" in figures[0].description
    assert "muon, seed 256: median" in figures[0].description


def test_pairs_are_of_the_two_seeds_most_arms_have_or_of_any_two_runs(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, demo_runs())
    assert pair_figures(view, runs)[0].title == "q projection, seeds 42 and 137"
    two = ("adamw-s42-0badcafe", "orthonoise-s256-0badcafe")
    figure = pair_figures(view, runs, pair=two)[0]
    assert set(figure.tables["data/effective_rank_pairs_q.csv"]["run_id"]) == set(two)
    assert "2 runs side by side" in figure.description


@pytest.mark.parametrize(
    ("pair", "message"), [((42, 7), "no run of the sweep has seed 7; its seeds are 42"), (("x", "y"), "no run 'x'")]
)
def test_a_pair_that_is_not_there_is_refused(tmp_path: Path, pair: tuple[int, int], message: str) -> None:
    view, runs = view_of(tmp_path, known_runs())
    with pytest.raises(ValueError, match=message):
        pair_figures(view, runs, pair=pair)


def test_one_seed_makes_no_pair(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, [FakeRun("muon", 1, loss_curve(3.0))])
    assert pair_figures(view, runs) == []
    assert why_no_pairs(runs) == "There are no two seeds to lay side by side."


def test_a_scan_of_two_hundred_runs_names_each_and_is_small() -> None:
    rng = np.random.default_rng(1)
    grid = pl.DataFrame({"layer": np.arange(22)}).join(pl.DataFrame({"step": np.arange(0, 1000, 20)}), how="cross")
    frames, listed = [], []
    for n in range(200):
        run, arm = f"r{n}", f"orthonoise alpha={0.001 * (n // 4 + 1):.3f} rank_threshold=0.3"
        listed.append((run, arm, n % 4))
        values = 400 + 5 * rng.standard_normal(grid.height)
        frames.append(
            grid.select(
                pl.lit(run).alias("run_id"),
                pl.lit("q").alias("projection"),
                pl.all(),
                pl.Series("effective_rank", values),
            )
        )
    known = members(*listed)
    info = scan_info(read_cells(pl.concat(frames).lazy(), known, ["effective_rank"]), known, "effective_rank")
    assert info is not None
    svg = to_svg(*draw_scan(info), name="s", title="t", description="d")
    assert svg.count("<image ") == 200
    assert len(re.findall(r">seed [0-3]</text>", svg)) == 200
    assert svg.count(">alpha=0.050</text>") == 4
    assert len(svg) < 500_000


def test_a_scan_says_who_is_lowest_and_highest(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, demo_runs())
    figure = scan_figures(view, runs)[0]
    layers = view.layers.collect()
    for projection in ("q", "down"):
        own = layers.filter(projection=projection)
        medians = own.group_by("run_id").agg(pl.col("effective_rank").median()).sort("effective_rank")
        found = re.search(
            rf"{projection}: scale ([\d.]+) to ([\d.]+); medians of runs from ([\d.]+) \((\w+), seed \d+\) to ([\d.]+)",
            figure.description,
        )
        assert found is not None
        values = own["effective_rank"]
        ends = [values.quantile(0.01, "nearest"), values.quantile(0.99, "nearest"), *medians["effective_rank"][[0, -1]]]
        assert [float(found[i]) for i in (1, 2, 3, 5)] == [pytest.approx(end, rel=5e-4) for end in ends]
        assert found[4] == "adamw"
    missing = 6 * 4 * 7  # of the run that diverged after 4 of 11 steps, beside the one without rows
    assert f"{missing + 6 * 4 * 11} cells missing, in 2 runs. 1 run without a value." in figure.description


def test_a_scan_of_an_alignment_has_chance_and_z() -> None:
    info = scan_info(read_cells(two_arms_of_alignments(), TWO, ["left_alignment"]), TWO, "left_alignment")
    assert info is not None
    for text in (describe_scan(info, "x"), scan_caption(info)):
        assert "Chance level 0.1156" in text
    z = (info.rows["median"][1] - 0.1156) / chance_sd(256)
    assert f"(adamw, seed 1, z {z:.1f})" in describe_scan(info, "x")
    assert "6 cells ill-posed, in 1 run." in describe_scan(info, "x")


def test_lines_by_layer_are_means_over_seeds_and_their_numbers_those_of_the_rows(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, known_runs())
    figure = layer_lines_figures(view, runs, metrics=["effective_rank"])[0]
    assert figure.title == "effective_rank by layer and projection, adamw against muon"
    rows = figure.tables["data/effective_rank_by_layer.csv"]
    layers = view.layers.collect()
    for arm in ("muon", "adamw"):
        own = layers.filter(pl.col("run_id").str.starts_with(arm), projection="v", layer=2, step=100)["effective_rank"]
        drawn = rows.filter(arm=arm, projection="v", layer=2, step=100)
        assert drawn["value"].item() == pytest.approx(own.mean(), rel=1e-6)
        assert drawn["n"].item() == 3
        end = rows.filter(arm=arm, projection="v", step=200)["value"]
        text = f"{end.median():.4g} at step 200 (layers {end.min():.4g} to {end.max():.4g})"
        assert re.search(rf"v, {arm}: median [^)]*\) and {re.escape(text)}\.", figure.description)


def test_lines_stop_where_a_seed_has_no_value_and_leave_ill_posed_values_out() -> None:
    rows = pl.concat([aligned("m", ill_posed=(0,)), aligned("n", 0.1).filter(pl.col("step") < 40), aligned("a")]).lazy()
    known = members(("m", "muon", 1), ("n", "muon", 2), ("a", "adamw", 1))
    info = layer_lines_info(read_cells(rows, known, ["left_alignment"]), known, "left_alignment", ["muon", "adamw"])
    assert info is not None
    muon = info.rows.filter(arm="muon")
    assert set(muon["step"]) == {0, 20}
    assert set(muon["layer"]) == {1, 2, 3}
    assert info.num_ill_posed == 3
    assert info.n == {"muon": 2, "adamw": 1}


def test_long_runs_are_binned_and_a_spike_in_a_peak_stays() -> None:
    rows = pl.DataFrame({"run_id": "m", "projection": "q", "layer": 0, "step": range(600), "grad_norm_peak": 1.0})
    rows = rows.with_columns(grad_norm_peak=pl.when(pl.col("step") == 333).then(9.0).otherwise(1.0))
    info = layer_lines_info(read_cells(rows.lazy(), TWO, ["grad_norm_peak"]), TWO, "grad_norm_peak", ["muon"])
    assert info is not None
    assert info.rows.height == MAX_POINTS
    assert info.rows.filter(value=9.0)["step"].to_list() == [330]


@pytest.mark.parametrize(
    ("optimizers", "baseline", "expected"),
    [
        (("muon", "orthonoise", "adamw"), "muon", ("muon", "adamw")),
        (("adamw", "lion", "muon"), "adamw", ("adamw", "muon")),
        (("muon", "lion"), "muon", ("muon", "lion")),
        (("muon",), None, ("muon",)),
    ],
)
def test_the_arms_of_lines_are_the_baseline_and_muon_or_adamw(
    optimizers: tuple[str, ...], baseline: str | None, expected: tuple[str, ...]
) -> None:
    known = members(*((f"r{i}", name, 1) for i, name in enumerate(optimizers)))
    assert two_arms(known, set(known["run_id"]), baseline) == expected


def test_an_arm_of_lines_that_is_not_there_is_refused(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, known_runs())
    with pytest.raises(ValueError, match="no arm 'x' in the sweep; its arms are muon, adamw"):
        layer_lines_figures(view, runs, arms=["x"])


def with_spectra(folder: Path) -> tuple[Store, pl.DataFrame]:
    """Known runs, with 64 singular values of the q matrices at two steps."""
    storage = write_store(folder, known_runs())
    for run in known_runs():
        if run.seed == 42:
            rows = [
                {
                    "run_id": run.run_id, "attempt": 1, "seq": 100 + layer, "step": step, "tokens": 0, "layer": layer,
                    "projection": "q", "singular_values": [(1 + layer + step / 100) / (i + 1) for i in range(64)],
                }
                for step in (100, 200) for layer in range(4)
            ]  # fmt: skip
            put_final(storage, SPECTRA, Attempt("00001.ab", ROOT, 0, run.run_id), 11, rows)
    view = analysis.open_store(folder).sweep("demo")
    return view, members_of(view)


def test_spectra_are_drawn_by_arm_layer_and_step(tmp_path: Path) -> None:
    (figure,) = spectrum_figures(*with_spectra(tmp_path))
    rows = figure.tables["data/spectrum_q.csv"]
    assert rows.height == 2 * 3 * 2 * 64
    assert set(rows["layer"]) == {0, 2, 3}
    assert rows["arm"].unique(maintain_order=True).to_list() == ["adamw", "muon"]
    one = rows.filter(arm="muon", layer=3, step=200)["value"]
    assert one.to_list() == [pytest.approx(6 / (i + 1)) for i in range(64)]
    text = f"at step 200 {one.max():.4g}, median {one.median():.4g}, smallest {one.min():.4g}."
    assert re.search(rf"muon, layer 3: largest at step 100 [^;]*; {re.escape(text)}", figure.description)
    assert "at 2 steps from 100 to 200" in figure.caption


def test_places_of_a_spectrum_are_the_largest_and_then_even() -> None:
    assert shown_places(3) == [1, 2, 3]
    places = shown_places(512)
    assert (places[:8], places[-1], len(places) <= 48) == (list(range(1, 9)), 512, True)


def test_lines_of_steps_are_seen_on_either_paper() -> None:
    assert min(contrast(colour, theme.paper) for colour in STEP_COLOURS for theme in (LIGHT, DARK)) >= 3


def test_without_rows_no_figure_and_a_reason(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, [FakeRun("muon", 1, loss_curve(3.0), with_layers=False)])
    assert heatmap_figures(view, runs) == []
    assert why_no_heatmaps(view, runs) == "No layer has been measured yet."
    for build in (difference_heatmap_figures, pair_figures, scan_figures, layer_lines_figures, spectrum_figures):
        assert build(view, runs) == []


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    view, runs = view_of(tmp_path, known_runs())
    for build in (heatmap_figures, difference_heatmap_figures, pair_figures, scan_figures, layer_lines_figures):
        with pytest.raises(ValueError, match="unknown layer metric 'rank'"):
            build(view, runs, metrics=["rank"])


def test_long_names_are_wrapped_within_their_panel_and_lose_nothing() -> None:
    """In letters of 11 pixels DejaVu Sans, the widest font a browser may take, has an m of 10.7 and digits of 7."""
    name = "orthonoise-alpha=0.05-rank_threshold=0.3-anneal=exponential-WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW"
    rows = pl.concat([aligned(f"r{i}") for i in range(5)]).lazy()
    known = members(*((f"r{i}", f"{name}-{i}", 1) for i in range(5)))
    _, data = draw_heatmap(heatmaps_info(rows, known, "left_alignment")[0])
    lines = [row["text"] for row in data["titles"]]
    assert "".join(lines) == "".join(f"{name}-{i}" for i in range(5))
    assert max(10.7 * line.count("W") + 7 * (len(line) - line.count("W")) for line in lines) <= 160 + 22
    assert wrapped("orthonoise alpha=0.05", 94) == ["orthonoise", "alpha=0.05"]
    assert wrapped("mm", 12) == ["m", "m"]
