"""Figures of the spread between seeds: the bars they draw and the words that go with them."""

import re
from pathlib import Path

import pytest
from test_volatility import BOTH, SEEDS, store_of

from analysis.figures.figure import Figure
from analysis.figures.volatility import draw_spreads, spreads_info, volatility_figures, why_no_volatility
from analysis.figures.volatility_heatmap import volatility_heatmap_figures
from analysis.store import open_store
from analysis.summary import members_of, summarize_members
from analysis.volatility import volatility
from muon_core.store.folder import Folder
from muon_core.store.sweeps import write_sweep


def figures_of(storage: Folder, *metrics: str) -> list[Figure]:
    view = open_store(storage).sweep("demo")
    members = members_of(view)
    return volatility_figures(view, members, summarize_members(view, members), metrics)


def test_a_figure_has_a_bar_for_each_arm_and_projection_and_its_numbers_in_words(tmp_path: Path) -> None:
    ranks, alignments = figures_of(store_of(tmp_path, BOTH), "effective_rank", "update_alignment")
    assert (ranks.name, alignments.file) == ("volatility_effective_rank", "data/volatility_update_alignment.csv")
    bars = alignments.tables[alignments.file]
    assert bars.select("projection", "arm", "cells").rows() == [("q", "muon", 6), ("q", "adamw", 6)]
    medians = re.search(r"q: median muon ([\d.]+), adamw ([\d.]+)\.", alignments.description)
    assert medians is not None
    assert [float(text) for text in medians.groups()] == pytest.approx(bars["median"].to_list(), rel=0.05)
    assert "5-fold more in q" in alignments.description
    assert "(n = 3)" in alignments.caption
    assert "logarithmic scale" in alignments.caption
    assert "ill-posed" not in alignments.caption
    assert "sd / mean between seeds, %" in ranks.svg
    assert ">q projection<" in alignments.svg


def test_a_bar_that_reaches_0_makes_the_scale_linear(tmp_path: Path) -> None:
    storage = store_of(tmp_path, BOTH, lambda run, _: {"update_alignment": 0.5} if run.optimizer == "adamw" else {})
    view = open_store(storage).sweep("demo")
    members = members_of(view)
    info = spreads_info(volatility(view, members, "update_alignment"), members, "adamw")
    assert not info.is_log
    spec, data = draw_spreads(info)
    assert "'type': 'log'" not in str(spec)
    assert {row["arm"]: row["q90"] for row in data["bars"]}["adamw"] == 0
    (figure,) = figures_of(storage, "update_alignment")
    assert "only one of them varies in q" in figure.description


@pytest.mark.parametrize("seeds", [{"muon": SEEDS[:1], "adamw": SEEDS[:1]}, {"muon": SEEDS[:1]}])
def test_one_seed_has_no_figure_and_the_page_can_say_why(tmp_path: Path, seeds: dict[str, tuple[int, ...]]) -> None:
    storage = store_of(tmp_path, seeds)
    assert figures_of(storage, "update_alignment") == []
    view = open_store(storage).sweep("demo")
    why = why_no_volatility(view, members_of(view), ("update_alignment", "right_alignment"))
    assert why.startswith("No arm has two seeds with update_alignment at one cell")
    assert "right_alignment was measured in no run" in why


def test_arms_of_the_same_runs_are_one_bar(tmp_path: Path) -> None:
    storage = store_of(tmp_path, BOTH)
    view = open_store(storage).sweep("demo")
    assert view.record is not None
    runs = view.record.runs
    again = tuple(run.model_copy(update={"block": "again"}) for run in runs if run.block == "muon")
    write_sweep(storage, view.record.model_copy(update={"runs": (*runs, *again)}))
    (figure,) = figures_of(storage, "update_alignment")
    assert figure.tables[figure.file]["arm"].to_list() == ["muon: muon", "adamw"]


def test_the_caption_tells_how_many_values_are_ill_posed(tmp_path: Path) -> None:
    storage = store_of(tmp_path, BOTH, lambda run, row: {"ill_posed": run.seed == 42 and row["layer"] == 0})
    (figure,) = figures_of(storage, "update_alignment")
    assert "6 ill-posed values are left out." in figure.caption
    assert "(n = 2 to 3)" in figure.caption


def test_heatmaps_show_where_seeds_part_and_hatch_what_is_ill_posed(tmp_path: Path) -> None:
    storage = store_of(tmp_path, BOTH, lambda run, row: {"ill_posed": run.optimizer == "muon" and row["layer"] == 1})
    (figure,) = volatility_heatmap_figures(open_store(storage).sweep("demo"), metrics=("update_alignment",))
    assert (figure.name, figure.title) == ("volatility_update_alignment_q", "q projection, all seeds")
    rows = figure.tables["data/volatility_update_alignment_q.csv"]
    assert rows.columns == ["arm", "layer", "step", "value", "ill_posed"]
    assert rows.filter(arm="muon", layer=0)["value"].to_list() == pytest.approx([0.1] * 3, rel=1e-4)
    assert rows.filter(arm="muon", layer=1).select("value", "ill_posed").rows() == [(None, True)] * 3
    assert rows.filter(arm="adamw")["value"].to_list() == pytest.approx([0.02] * 6, rel=1e-4)
    assert "sd of update_alignment of the q matrices by layer" in figure.caption
    assert figure.caption.endswith(
        "over the seeds of an arm, n = 3. 3 cells are hatched: ill-posed values leave no two seeds there."
    )
    assert "muon: median 0.1 at step 0 and 0.1 at step 40" in figure.description


def test_heatmaps_are_of_the_projections_asked_for_and_of_no_arm_with_one_seed(tmp_path: Path) -> None:
    view = open_store(store_of(tmp_path, BOTH)).sweep("demo")
    assert volatility_heatmap_figures(view, projections=("k",)) == []
    assert len(volatility_heatmap_figures(view, projections=("q",))) == 2
    alone = open_store(store_of(tmp_path / "one", {"muon": SEEDS[:1]})).sweep("demo")
    assert volatility_heatmap_figures(alone) == []
