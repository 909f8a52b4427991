"""Figures: the data they draw, and the pixels where those could lie."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from support.analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, write_store, write_sweep
from support.pictures import decode_png, panel_pixels

import analysis
from analysis.figures.curves import MAX_TOGETHER, Curves, axis_range, curves_info, difference_info
from analysis.figures.describe import curves_caption
from analysis.figures.draw_curves import draw_curves
from analysis.figures.figure import Figure, Figures
from analysis.figures.heatmap import choose_seed, heatmaps_info
from analysis.figures.heatmap_drawing import colour_indices, draw_heatmap, scale_ends, spread
from analysis.figures.panels import MAX_COLUMNS, Heatmap, Panel
from analysis.figures.png import encode_indexed
from analysis.figures.style import DARK, LIGHT, VIRIDIS_ANCHORS, Theme, arm_styles, contrast, hex_colour, viridis
from analysis.figures.svg import to_svg
from analysis.store import Store
from analysis.summary import members_of
from muon_core.config.optimizers import OPTIMIZERS


def view_of(tmp_path: Path, runs: list[FakeRun]) -> tuple[Store, pl.DataFrame]:
    write_store(tmp_path, runs)
    view = analysis.open_store(tmp_path).sweep("demo")
    return view, members_of(view)


def heatmap(cells: npt.NDArray[np.float64], low: float, high: float) -> Heatmap:
    """A figure of one panel."""
    layers, steps = tuple(range(cells.shape[0])), tuple(range(0, 20 * cells.shape[1], 20))
    panel = Panel("muon", "r", cells.astype(np.float32))
    return Heatmap("entropy", "q", "seed 1", "1 arm at seed 1", (panel,), layers, steps, 1, low, high, 0.0)


def test_encode_indexed_round_trips() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (decode_png(encode_indexed(pixels, viridis(12)))[..., 0] == pixels).all()


def test_encode_indexed_refuses_an_index_without_colour_and_an_empty_image() -> None:
    with pytest.raises(ValueError, match="index 3 is beyond a palette of 3 colours"):
        encode_indexed(np.array([[3]], np.uint8), viridis(3))
    with pytest.raises(ValueError, match=r"got shape \(0, 4\)"):
        encode_indexed(np.zeros((0, 4), np.uint8), viridis(3))


def test_a_constant_field_renders_in_one_colour() -> None:
    pixels = panel_pixels(heatmap(np.full((4, 37), 5.0), 5.0, 5.0))
    inner = pixels[2:-4, 4:-4]  # the axis lines lie on the edge
    assert (inner == np.array(viridis()[127])).all()


def test_every_cell_has_the_colour_of_its_value_and_missing_is_grey() -> None:
    cells = np.arange(48, dtype=float).reshape(4, 12)
    cells[1, 3] = np.nan
    pixels = panel_pixels(heatmap(cells, 0.0, 47.0))
    height, width, _ = pixels.shape
    for layer in range(4):
        for column in range(12):
            y, x = int((4 - layer - 0.5) * height / 4), int((column + 0.5) * width / 12)  # layer 0 is at the bottom
            grey = (153, 153, 153)
            expected = grey if (layer, column) == (1, 3) else viridis()[round(254 * cells[layer, column] / 47)]
            assert tuple(pixels[y, x]) == expected, (layer, column)


def test_colour_indices_clip_to_the_ends_and_keep_0_for_missing() -> None:
    cells = np.array([[np.nan, -9.0, 0.0, 5.0, 10.0, 99.0]])
    assert colour_indices(cells, 0.0, 10.0).tolist() == [[0, 1, 1, 128, 255, 255]]


def test_a_constant_scale_is_widened() -> None:
    assert scale_ends(4.0, 4.0) == pytest.approx((3.8, 4.2))
    assert scale_ends(0.0, 0.0) == (-1.0, 1.0)
    assert scale_ends(1.0, 2.0) == (1.0, 2.0)


def test_the_legend_has_the_colours_of_the_pictures() -> None:
    """The legend interpolates its range linearly; at every palette index that gives the palette's colour."""
    spec, data = draw_heatmap(heatmap(np.array([[1.0, 2.0]]), 1.0, 2.0))
    (scale,) = (layer["encoding"]["color"]["scale"] for layer in spec["layer"] if "color" in layer["encoding"])
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in scale["range"]])
    at = np.linspace(0, len(anchors) - 1, 255)
    legend = np.stack([np.interp(at, range(len(anchors)), anchors[:, k]) for k in range(3)], axis=1)
    assert scale["interpolate"] == "rgb"
    assert np.abs(legend - np.array(viridis())).max() <= 0.5
    assert scale["domain"] == [1.0, 2.0]
    assert [row["value"] for row in data["ends"]] == [1.0, 2.0]


def test_viridis_has_its_published_ends_and_anchors() -> None:
    colours = [hex_colour(c) for c in viridis(VIRIDIS_ANCHORS)]
    assert (colours[0], colours[-1]) == ("#440154", "#fde725")
    assert viridis(255)[0] == viridis(2)[0]
    brightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in viridis(VIRIDIS_ANCHORS)]
    assert brightness == sorted(brightness)


def test_the_panels_of_a_projection_share_one_scale_which_others_do_not_flatten(tmp_path: Path) -> None:
    """k and v have half the rows of q, so half its rank: on their own scale they still span all colours."""
    view, members = view_of(tmp_path, demo_runs())
    infos = heatmaps_info(view.layers, members, "effective_rank")
    assert [info.projection for info in infos] == ["q", "k", "v", "o", "up", "down"]
    assert {tuple(p.arm for p in info.panels) for info in infos} == {("muon", "adamw", "orthonoise", "isotropic")}
    for info in infos:
        values = info.rows["value"].sort()
        assert (info.low, info.high) == (values.quantile(0.01, "nearest"), values.quantile(0.99, "nearest"))
        indices = colour_indices(np.stack([panel.cells for panel in info.panels]), info.low, info.high)
        assert (indices[indices > 0].min(), indices.max()) == (1, 255)
        assert len(np.unique(indices)) > 50
    assert infos[1].high < infos[0].low


def test_a_projection_without_a_finite_value_has_no_heatmap() -> None:
    cells = {"run_id": "r", "projection": ["q", "k"], "layer": 0, "step": 0, "entropy": [1.0, float("nan")]}
    members = pl.DataFrame({"run_id": ["r"], "arm": ["muon"], "seed": [1]})
    assert [info.projection for info in heatmaps_info(pl.LazyFrame(cells), members, "entropy")] == ["q"]


def test_a_cell_is_the_value_of_its_layer_and_step(tmp_path: Path) -> None:
    view, members = view_of(tmp_path, known_runs())
    info = heatmaps_info(view.layers, members, "effective_rank", seed=137)[0]
    for panel in info.panels:
        rows = view.layers.filter(pl.col("run_id") == panel.run_id, pl.col("projection") == "q").collect()
        for row in rows.iter_rows(named=True):
            assert panel.cells[row["layer"], row["step"] // 20] == row["effective_rank"]
    assert [panel.run_id for panel in info.panels] == ["muon-s137-0badcafe", "adamw-s137-0badcafe"]


def test_an_arm_without_rows_at_the_seed_is_all_missing(tmp_path: Path) -> None:
    view, members = view_of(tmp_path, demo_runs())
    panel = heatmaps_info(view.layers, members, "effective_rank", seed=256)[0].panels[-1]
    assert (panel.arm, panel.run_id, bool(np.isnan(panel.cells).all())) == ("isotropic", None, True)


def test_a_run_that_stopped_early_is_missing_after_its_last_step(tmp_path: Path) -> None:
    view, members = view_of(tmp_path, demo_runs())
    panel = heatmaps_info(view.layers, members, "effective_rank", seed=137)[0].panels[-1]
    assert np.isnan(panel.cells[:, 4:]).all()
    assert np.isfinite(panel.cells[:, :4]).all()


def test_the_seed_shown_is_the_one_most_arms_have(tmp_path: Path) -> None:
    _, members = view_of(tmp_path, demo_runs())
    everything = set(members["run_id"])
    assert choose_seed(members, everything) == 42
    assert choose_seed(members, everything - {"muon-s42-0badcafe"}) == 137
    assert choose_seed(members, set()) is None


def test_without_layer_rows_there_is_no_heatmap(tmp_path: Path) -> None:
    view, members = view_of(tmp_path, [FakeRun("muon", 1, loss_curve(3.0), with_layers=False)])
    assert heatmaps_info(view.layers, members, "effective_rank") == []


@pytest.mark.parametrize(("metric", "expected"), [("grad_norm", 0.5), ("grad_norm_peak", 1.0)])
def test_more_steps_than_columns_are_binned_peaks_by_maximum(metric: str, expected: float) -> None:
    steps = list(range(2 * MAX_COLUMNS))
    layers = pl.LazyFrame(
        {"run_id": "r", "projection": "q", "layer": 0, "step": steps, metric: [float(step % 2) for step in steps]}
    )
    members = pl.DataFrame({"run_id": ["r"], "arm": ["muon"], "seed": [1]})
    info = heatmaps_info(layers, members, metric)[0]
    assert (info.bin_size, info.panels[0].cells.shape) == (2, (1, MAX_COLUMNS))
    assert (info.panels[0].cells == expected).all()


@pytest.mark.parametrize(("count", "ticks", "expected"), [(1, 5, [0]), (4, 5, [0, 1, 2, 3]), (11, 5, [0, 3, 6, 9])])
def test_spread_is_even(count: int, ticks: int, expected: list[int]) -> None:
    assert spread(count, ticks) == expected


def test_every_optimizer_has_a_colour_and_a_dash_of_its_own() -> None:
    names = [*OPTIMIZERS, "Muon", "Adafactor", "LionLike"]
    styles = arm_styles([(name, name) for name in names])
    assert len({s.colour for s in styles.values()}) == len(names)
    assert len({styles[name].dash for name in (*OPTIMIZERS, "LionLike")}) == len(OPTIMIZERS) + 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_looks_the_same_whatever_else_is_shown(name: str) -> None:
    alone = arm_styles([("x", name)])["x"]
    others = [(other, other) for other in (*OPTIMIZERS, "LionLike") if other != name]
    assert arm_styles([*others, ("x", name)])["x"] == arm_styles([("x", name), *others])["x"] == alone


def test_an_arm_keeps_its_colour_when_a_second_of_its_optimizer_joins() -> None:
    first, both = arm_styles([("x", "muon")]), arm_styles([("x", "muon"), ("y", "muon")])
    assert first["x"] == both["x"] != both["y"]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "LionLike"])
def test_arms_of_one_optimizer_differ_in_colour_and_dash(name: str) -> None:
    """Also in every row of a figure: the first, if it is the baseline, beside each group of the others."""
    styles = list(arm_styles([(f"arm{i}", name) for i in range(1 + 3 * MAX_TOGETHER)]).values())
    assert len({s.colour for s in styles}) == len(styles)
    for start in range(1, len(styles), MAX_TOGETHER):
        assert len({s.dash for s in (styles[0], *styles[start : start + MAX_TOGETHER])}) == MAX_TOGETHER + 1


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", [*OPTIMIZERS, *(f"Rival{i}" for i in range(8)), None])
def test_marks_and_texts_can_be_told_from_either_background(name: str | None, theme: Theme) -> None:
    """3 to 1 for marks, 4.5 to 1 for text: WCAG 2.1, 1.4.11 and 1.4.3. Texts are in the ink of the page."""
    styles = arm_styles([(f"arm{i}", name) for i in range(40)])
    assert min(contrast(style.colour, theme.paper) for style in styles.values()) >= 3
    assert contrast(theme.ink, theme.paper) >= 4.5


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


def test_texts_are_laid_out_with_room_and_shown_at_their_size() -> None:
    """The lines of a legend are as far apart as texts a fifth wider need; what is shown has 12 pixels."""
    svg = to_svg(*draw_heatmap(heatmap(np.array([[1.0, 2.0]]), 1.0, 2.0)), name="h", title="t", description="d")
    assert set(re.findall(r'font-size="([^"]+)"', svg)) == {"11px", "12px"}


def test_a_figure_is_saved_as_the_picture_its_ending_says(tmp_path: Path) -> None:
    svg = to_svg(*draw_heatmap(heatmap(np.array([[1.0, 2.0]]), 1.0, 2.0)), name="h", title="t", description="d")
    figure = Figure("h", "Title <1>", "Caption & more", "d", svg, {})
    assert figure.save(tmp_path / "a.svg").read_text() == svg
    assert decode_png(figure.save(tmp_path / "a.png").read_bytes())[0, 0, :3].tolist() == [255, 255, 255]
    assert hex_colour(tuple(decode_png(figure.to_png(dark=True))[0, 0, :3].tolist())) == DARK.paper
    with pytest.raises(ValueError, match=r"saved as .svg or .png, not as 'a.pdf'"):
        figure.save(tmp_path / "a.pdf")
    shown = Figures([figure, figure])._repr_html_()
    assert shown.count("<svg ") == 2
    assert shown.count("Title &lt;1&gt;") == shown.count("Caption &amp; more") == 2
    assert "Nothing was measured" in Figures()._repr_html_()


def test_an_arm_looks_the_same_in_every_row_and_figure(tmp_path: Path) -> None:
    """The baseline is muon, and so are six candidates: two rows, and a second figure without the baseline."""
    runs = [FakeRun("muon", s, loss_curve(3.0 + s / 9), facts={"arm": f"muon{s}"}) for s in range(6)]
    base = [FakeRun("base", s, loss_curve(3.0), role="baseline", facts={"optimizer": "muon"}) for s in range(6)]
    storage = write_store(tmp_path, [*runs, *base])
    listed = [{"run_id": r.run_id, "block": f"b{r.seed}", "role": r.role, "arm": f"muon{r.seed}"} for r in runs]
    listed += [{"run_id": r.run_id, "block": "base", "role": r.role, "arm": "base"} for r in base]
    write_sweep(storage, "demo", listed, number=2)
    view = analysis.open_store(tmp_path).sweep("demo")
    info = curves_info(view.val, members_of(view), "val_loss", "base")
    difference = difference_info(view.val, members_of(view), "val_loss", "base")
    assert info.styles == difference.styles
    assert info.styles["base"] == arm_styles([("x", "muon")])["x"]
    assert len(set(info.styles.values())) == 7
    scales = [row["hconcat"][0]["layer"][1]["encoding"]["color"]["scale"] for row in draw_curves(info)[0]["vconcat"]]
    assert len(scales) == 2
    for scale in scales:
        assert scale["range"] == [info.styles[arm].colour for arm in scale["domain"]]


def curves_of(tmp_path: Path, runs: list[FakeRun], baseline: str = "muon") -> tuple[Curves, Curves]:
    view, members = view_of(tmp_path, runs)
    return (
        curves_info(view.val, members, "val_loss", baseline),
        difference_info(view.val, members, "val_loss", baseline),
    )


def test_curves_hold_every_seed_and_a_t_interval_from_three_seeds_on(tmp_path: Path) -> None:
    info, difference = curves_of(tmp_path, demo_runs())
    assert info.seeds["run_id"].n_unique() == 11  # the failed run has no rows
    last = {row["arm"]: row for row in difference.means.filter(pl.col("step") == 200).iter_rows(named=True)}
    adamw = last["adamw"]
    assert (adamw["n"], adamw["mean"]) == (3, pytest.approx((0.14 + 0.11 + 0.16) / 3))
    assert (adamw["low"], adamw["high"]) == (pytest.approx(0.0741506, abs=1e-6), pytest.approx(0.1991827, abs=1e-6))
    assert (last["isotropic"]["n"], last["isotropic"]["low"], last["isotropic"]["high"]) == (1, None, None)


def test_two_seeds_have_no_band(tmp_path: Path) -> None:
    _, difference = curves_of(tmp_path, [run for run in known_runs() if run.seed != 42], baseline="adamw")
    assert set(difference.means["n"]) == {2}
    assert difference.means["low"].null_count() == difference.means.height


def test_the_difference_axis_holds_zero_and_the_axis_ignores_a_run_that_blew_up(tmp_path: Path) -> None:
    runs = [*known_runs(), FakeRun("muon", 1, {0: 7.0, 200: 1e6}, "diverged")]
    info, difference = curves_of(tmp_path, runs, baseline="adamw")
    low, high = axis_range(info, 0.0)
    assert low < 3.29
    assert high < 8
    low, high = axis_range(difference, 0.0)
    assert low < -0.0907
    assert high > 0


def test_values_that_are_not_finite_are_counted_not_drawn(tmp_path: Path) -> None:
    runs = known_runs()
    runs[0].val[100] = float("nan")
    info, _ = curves_of(tmp_path, runs, baseline="adamw")
    assert info.dropped == 1
    assert info.seeds["value"].is_finite().all()


def test_many_arms_are_drawn_in_several_rows_beside_the_baseline(tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, loss_curve(3.0), role="baseline")]
    runs += [FakeRun(f"arm{i}", 1, loss_curve(3.0 + i / 10)) for i in range(MAX_TOGETHER + 2)]
    info, _ = curves_of(tmp_path, runs)
    spec, _ = draw_curves(info)
    domains = [row["hconcat"][0]["layer"][1]["encoding"]["color"]["scale"]["domain"] for row in spec["vconcat"]]
    assert [len(domain) for domain in domains] == [MAX_TOGETHER + 1, 3]
    assert [domain[0] for domain in domains] == ["muon", "muon"]


@pytest.mark.parametrize("kind", ["curves", "difference", "heatmap"])
def test_an_svg_stands_alone_and_says_what_it_is(tmp_path: Path, kind: str) -> None:
    view, members = view_of(tmp_path, known_runs())
    drawings = {
        "curves": lambda: draw_curves(curves_info(view.val, members, "val_loss", "adamw")),
        "difference": lambda: draw_curves(difference_info(view.val, members, "val_loss", "adamw")),
        "heatmap": lambda: draw_heatmap(heatmaps_info(view.layers, members, "effective_rank")[0]),
    }
    svg = to_svg(*drawings[kind](), name="fig", title="A < B", description='5 > 4 & "so"')
    assert svg.startswith('<svg role="img" aria-labelledby="fig-title" aria-describedby="fig-desc"')
    assert '<title id="fig-title">A &lt; B</title><desc id="fig-desc">5 &gt; 4 &amp; &quot;so&quot;</desc>' in svg
    assert "currentColor" in svg
    assert "<script" not in svg
    assert set(re.findall(r'https?://[^"\s]+', svg)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert all(name.startswith("fig-") for name in ids)
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)


def test_mean_lines_are_thick_dashed_by_optimizer_and_seeds_thin(tmp_path: Path) -> None:
    info, _ = curves_of(tmp_path, known_runs(), baseline="adamw")
    svg = to_svg(*draw_curves(info), name="fig", title="t", description="d")
    lines = re.findall(r'<path d="M[^"]*" stroke="(#[0-9A-F]{6})" stroke-width="([\d.]+)"([^/]*)/>', svg)
    thick = {(colour, "stroke-dasharray" in rest) for colour, width, rest in lines if width == "2.5"}
    assert {colour for colour, _ in thick} == {"#0072B2", "#D55E00"}
    assert sum(width == "0.8" for _, width, _ in lines) == 2 * 6  # six seeds in two panels


DOT = r'<path transform="translate[^>]*A3[^>]*fill="#(?:0072B2|D55E00)"'


@pytest.mark.parametrize("step", [0, 200])
def test_a_run_with_one_row_is_drawn_as_a_dot(tmp_path: Path, step: int) -> None:
    """Six seeds evaluated once, each a dot in both panels; a seventh with a curve is a line."""
    runs = [FakeRun(r.optimizer, r.seed, {step: r.val[200]}, role=r.role) for r in known_runs()]
    runs.append(FakeRun("muon", 1, {step: 3.3, step + 20: 3.2}))
    info, _ = curves_of(tmp_path, runs, baseline="adamw")
    svg = to_svg(*draw_curves(info), name="fig", title="t", description="d")
    assert len(re.findall(DOT, svg)) == 2 * 6
    assert "dots are runs evaluated once" in curves_caption(info)


def test_runs_with_curves_have_no_dots(tmp_path: Path) -> None:
    info, _ = curves_of(tmp_path, known_runs(), baseline="adamw")
    assert not re.findall(DOT, to_svg(*draw_curves(info), name="fig", title="t", description="d"))
    assert "dots" not in curves_caption(info)


def test_a_lone_seed_is_labelled_a_single_run(tmp_path: Path) -> None:
    info, _ = curves_of(tmp_path, demo_runs())
    svg = to_svg(*draw_curves(info), name="fig", title="t", description="d")
    assert "isotropic (single run)" in svg
    assert "muon (n = 3)" in svg
