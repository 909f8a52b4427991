"""`muon import`: what the files of the older project hold beside evaluations, in made-up files of their layouts."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import test_cli
from test_cli import Muon
from test_import_meaning import write_run
from test_legacy import imported, line

from analysis.summary import summarize
from muon_core.legacy.history import layer_rows, train_rows
from muon_core.legacy.lines import Counts, read_layer_tables
from muon_core.legacy.shapes import shapes
from muon_core.metrics.chance import chance_alignment

muon = test_cli.muon
MODEL = {"d_model": 512, "n_heads": 8, "n_kv_heads": 4, "d_ff": 2048}


def rows_of(store_table: pl.LazyFrame, *columns: str) -> list[tuple[Any, ...]]:
    return store_table.select(columns).collect().sort(columns).rows()


def test_training_losses_and_learning_rates_come_with_their_steps_and_tokens(muon: Muon, tmp_path: Path) -> None:
    history = {
        "steps": [0, 100], "val_losses": [10.8, 6.2], "learning_rates": [0.0, 0.024],
        "train_loss_steps": [0, 50], "train_loss_tokens": [16_384, 835_584], "train_losses": [10.887344360351562, 7.25],
        "train_loss_elapsed_minutes": [0.0625, 0.125],
    }  # fmt: skip
    final = {"val_loss": 6.2, "train_loss": 6.0}
    write_run(tmp_path / "older" / "run" / "metrics.json", 6.2, steps=100, history=history, final_metrics=final)
    assert muon("import", "older").code == 0
    assert rows_of(imported(tmp_path).train, "step", "tokens", "train_loss", "elapsed_s") == [
        (0, 16_384, 10.887344360351562, 3.75),
        (50, 835_584, 7.25, 7.5),
        (100, 1_638_400, 6.0, None),
    ]
    rates = dict(imported(tmp_path).train.select("step", "lr").collect().iter_rows())
    assert rates == {0: 0.0, 50: None, 100: pytest.approx(0.024)}


def test_a_list_that_does_not_fit_its_steps_is_left_out_by_name() -> None:
    notes: list[str] = []
    history = {"steps": [0, 1], "learning_rates": [0.1], "train_losses": [3.0, 2.0]}
    rows = train_rows({"actual_steps": 1, "tokens_seen": 8, "history": history}, notes)
    assert rows == [{"step": 0, "tokens": 0, "train_loss": 3.0}, {"step": 1, "tokens": 8, "train_loss": 2.0}]
    assert notes == ["learning_rates of the history are left out: they are not one number for each of its steps"]


def test_series_of_manifold_history_become_layer_rows(muon: Muon, tmp_path: Path) -> None:
    top = [[0.875, 0.5] + [0.25] * 8, [4.0, 2.0] + [1.0] * 8]
    manifold = {
        "steps": [0, 100], "loss": [10.887, 6.284],
        "spec_norm_Q_0": [0.875, 4.0], "spec_norm_Up_1": [1.25, 8.0], "spec_norm_Q_1": [0.5, 3.0],
        "spec_gap_Q_0": [1.75, 2.0], "spec_gap_Q_last": [1.0, 1.5], "ortho_err_V_0": [0.5, 0.75],
        "alignment_Q_0": [0.125, 0.25], "alignment_V_0": [[0.5, 0.25], [0.75, 0.125]], "spec_vals_Q_0": top,
        "entropy_Q_0": [0.92, 0.91], "update_rank_Q_0": [300.0, 310.0], "alignment_O_0": [0.5], "stretch": [1, 2],
    }  # fmt: skip
    history = {"steps": [0, 100], "val_losses": [10.8, 6.2], "manifold_history": manifold}
    write_run(tmp_path / "older" / "run" / "metrics.json", 6.2, steps=100, history=history)
    done = muon("import", "older")
    assert (
        "run: left out of manifold_history: alignment_O_0 (no value for each step), entropy (of squared singular "
        "values, as a share), stretch, update_rank (of the momentum buffer)"
    ) in done.err.splitlines()
    where = ("projection", "layer", "step", "tokens")
    assert rows_of(imported(tmp_path).layers, *where, "spectral_norm", "spectral_gap", "orthogonality_error") == [
        ("q", 0, 0, 0, 0.875, 1.75, None),
        ("q", 0, 100, 1_638_400, 4.0, 2.0, None),
        ("q", 1, 0, 0, 0.5, 1.0, None),
        ("q", 1, 100, 1_638_400, 3.0, 1.5, None),
        ("up", 1, 0, 0, 1.25, None, None),
        ("up", 1, 100, 1_638_400, 8.0, None, None),
        ("v", 0, 0, 0, None, None, 0.5),
        ("v", 0, 100, 1_638_400, None, None, 0.75),
    ]
    sides = ("update_alignment", "left_alignment", "right_alignment")
    aligned = imported(tmp_path).layers.filter(pl.col("update_alignment").is_not_null(), pl.col("step") == 100)
    assert rows_of(aligned, "projection", *sides) == [("q", 0.25, 0.25, None), ("v", 0.75, 0.75, 0.125)]
    assert rows_of(imported(tmp_path).train, "step", "train_loss") == [(0, 10.887), (100, 6.284)]
    spectra = imported(tmp_path).spectra.sort("step").collect()
    assert (spectra["singular_values"].to_list(), spectra["sampled"].to_list()) == (top, [True, True])


def test_layer_logs_are_the_lines_that_were_written_beside_them(tmp_path: Path) -> None:
    measured = {"weight_norm": 2.0, "grad_norm": 0.5, "alignment": [0.25, 0.125], "effective_rank": 400.0}
    logs = [
        {"step": 5, "tokens": 80, "layers": [{"layer": 3, "projections": {"up": measured, "gate": {}}}]},
        {"step": 10},
    ]
    metrics = {"actual_steps": 10, "tokens_seen": 160, "history": {"layer_logs": logs}}
    counts = Counts()
    path = tmp_path / "norms.jsonl"
    path.write_text(line(5, 3, "up", 80, weight_norm=2.0, update_norm=1.5))
    ((row,), _) = read_layer_tables([path], counts, layer_rows(metrics, counts, []))
    assert row == {
        "step": 5, "layer": 3, "projection": "up", "tokens": 80, "weight_norm": 2.0, "update_norm": 1.5,
        "grad_norm": 0.5, "update_alignment": 0.25, "left_alignment": 0.25, "right_alignment": 0.125,
        "effective_rank": 400.0, "entropy": math.log(400),
    }  # fmt: skip
    assert (counts.lines, counts.torn) == (4, 2)


def test_norms_of_the_unified_layout_are_peaks_over_all_steps_so_far(tmp_path: Path) -> None:
    """There they are maxima since the last line."""
    norms = {250: (4.0, 0.5), 500: (5.0, 0.25), 750: (4.5, 0.75)}
    path = tmp_path / "manifold_stats.jsonl"
    path.write_text("".join(line(step, 0, "q", step, weight_norm=w, grad_norm=g) for step, (w, g) in norms.items()))
    layers, _ = read_layer_tables([path], Counts())
    assert [(row["weight_norm_peak"], row["grad_norm_peak"]) for row in layers] == [(4.0, 0.5), (5.0, 0.5), (5.0, 0.75)]
    assert not {"weight_norm", "grad_norm"} & layers[0].keys()


def test_what_follows_from_singular_values(tmp_path: Path) -> None:
    """Of a sample the two largest, of a whole spectrum everything; worked by hand."""
    sample, whole = [4.0, 2.0, *[1.0] * 48], [2.0] * 32 + [1.0] * 32
    path = tmp_path / "singular_values.jsonl"
    path.write_text(line(1, 0, "q", 1, singular_values=sample) + line(1, 0, "k", 1, singular_values=whole))
    (tmp_path / "norms.jsonl").write_text(line(1, 0, "q", 1, effective_rank=391.5))
    (q, k), _ = read_layer_tables([tmp_path / "norms.jsonl", path], Counts())
    assert (q["spectral_norm"], q["spectral_gap"], q["effective_rank"]) == (4.0, 2.0, 391.5)
    assert q["entropy"] == pytest.approx(math.log(391.5))
    assert "stable_rank" not in q
    rank = math.exp(math.log(96) - 64 / 96 * math.log(2))  # p = 2/96 and 1/96
    assert (k["effective_rank"], k["entropy"]) == (pytest.approx(rank), pytest.approx(math.log(rank)))
    assert (k["stable_rank"], k["orthogonality_error"]) == (40.0, pytest.approx(math.sqrt(32 * 0.75**2 / 64)))


def test_shapes_of_the_config_give_chance_levels(muon: Muon, tmp_path: Path) -> None:
    folder = tmp_path / "older" / "run"
    write_run(folder / "metrics.json", 3.3, flags=MODEL)
    (folder / "norms.jsonl").write_text("".join(line(5, 0, name, 80, effective_rank=200.0) for name in ("k", "up")))
    muon("import", "older")
    found = imported(tmp_path).layers.sort("projection").collect()
    assert found.select("projection", "rows", "cols").rows() == [("k", 256, 512), ("up", 2048, 512)]
    assert found["alignment_chance"].to_list() == pytest.approx([chance_alignment(256, 5), chance_alignment(2048, 5)])
    assert found["right_alignment_chance"].to_list() == pytest.approx([chance_alignment(512, 5)] * 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MODEL, {"q": (512, 512), "o": (512, 512), "k": (256, 512), "v": (256, 512), "up": (2048, 512),
                 "down": (512, 2048)}),
        ({"d_model": 64, "n_heads": 4}, dict.fromkeys("qkov", (64, 64))),
        ({"d_model": 64, "n_heads": 5, "n_kv_heads": 5}, dict.fromkeys("qo", (64, 64))),
        ({"d_model": "64", "d_ff": 256}, {}),
    ],
)  # fmt: skip
def test_shapes_are_told_as_far_as_the_config_does(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert shapes(config) == expected


def test_names_seed_flags_and_commit_of_a_metrics_file(muon: Muon, tmp_path: Path) -> None:
    told: dict[str, Any] = {
        "run_name": "tiny_pnorm_s9_full", "config_name": "tiny1m", "seed": 42, "flags": MODEL | {"norm": "pnorm1.5"},
        "git_commit": "4be65bb65771507ac2923bd1802b90b3b6234986", "git_dirty": True,
    }  # fmt: skip
    write_run(tmp_path / "older" / "tiny_pnorm_s9_full" / "metrics.json", 6.4025, **told)
    write_run(tmp_path / "older" / "tiny_ctrl_s43_full.json", 6.5, git_commit="0badcafe")
    assert muon("import", "older").code == 0
    runs = {run["seed"]: run for run in imported(tmp_path).runs.collect().iter_rows(named=True)}
    assert runs.keys() == {42, 43}
    assert [runs[seed]["commit"] for seed in (42, 43)] == [told["git_commit"], "0badcafe"]
    config = json.loads(runs[42]["config_json"])
    assert (config["norm"], config["config_name"], config["run_name"]) == ("pnorm1.5", "tiny1m", "tiny_pnorm_s9_full")
    assert json.loads(runs[43]["config_json"])["imported_from"] == "tiny_ctrl_s43_full"


def test_a_metrics_file_of_the_trainer_itself_counts_no_tokens(muon: Muon, tmp_path: Path) -> None:
    """One that its early stopping ended is in no mean."""
    for seed in (1, 2):
        path = tmp_path / "older" / f"muon_seed{seed}" / "metrics.json"
        write_run(path, 4.0 + seed / 10, experiment_config={"optimizer_type": "muon"}, stopped_early=seed == 2)
        metrics = json.loads(path.read_text())
        del metrics["tokens_seen"]
        path.write_text(json.dumps(metrics))
    done = muon("import", "older", "--baseline", "muon")
    assert "2/2" not in done.out
    assert rows_of(imported(tmp_path).val, "tokens", "step") == [(None, 0), (None, 0), (None, 500), (None, 500)]
    (arm,) = summarize(imported(tmp_path).sweep("older")).arms
    assert (arm.values, arm.counts["stopped early"]) == ({1: 4.1}, 1)


def test_metrics_among_plots_and_configs_beside_the_runs(muon: Muon, tmp_path: Path) -> None:
    """A config above is nobody's there; other JSON files are none of ours."""
    older = tmp_path / "older"
    config = {"optimizer_type": "adamw", "adamw_lr": 0.0005}
    for time in ("160436", "160507"):
        write_run(older / "plots" / f"metrics_adamw_1000000_20260223_{time}.json", 4 + int(time) / 1e6,
                  experiment_config=config)  # fmt: skip
    (older / "config.yaml").write_text("optimizer_type: muon\n")
    (older / "plots" / "notes.json").write_text('{"final_metrics": 1}')
    write_run(older / "m_seed1" / "metrics.json", 3.9)
    (older / "configs").mkdir()
    (older / "configs" / "m_seed1.yaml").write_text("optimizer_type: muon\nmuon_lr: 0.02\n")
    done = muon("import", "older", "--baseline", "adamw")
    assert done.code == 0, done.err
    rows = imported(tmp_path).runs.collect().sort("optimizer", "final_val_loss")
    assert rows.select("optimizer", "seed", "lr").rows() == [
        ("adamw", None, 0.0005),
        ("adamw", None, 0.0005),
        ("muon", 1, 0.02),
    ]


def test_a_report_draws_all_that_an_older_file_measured(muon: Muon, tmp_path: Path) -> None:
    """Norms at a step too, which stand for the peaks that such a file lacks."""
    folder = tmp_path / "older" / "run"
    folder.mkdir(parents=True)
    measured = {"weight_norm": 2.0, "grad_norm": 0.5, "update_norm": 0.25, "alignment": 0.25, "effective_rank": 3.0}
    (folder / "norms.jsonl").write_text("".join(line(step, 0, "q", step, **measured) for step in (5, 10)))
    run_id = muon("import", "older").out.split()[0]
    assert muon("report", run_id, "-o", "page").code == 0
    drawn = {path.name.removesuffix("_q_no_seed.csv") for path in (tmp_path / "page" / "data").glob("*_q_no_seed.csv")}
    assert drawn == {"entropy", "effective_rank", "left_alignment", "weight_norm", "grad_norm", "update_norm"}
