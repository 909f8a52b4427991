"""`muon import`: runs of older projects in made-up files of their layouts, and what is counted."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import test_cli
from support.analysis_fixtures import FakeRun, write_store
from test_cli import Muon

from analysis.store import Store, open_store
from muon_core.legacy.lines import Counts, read_layer_tables
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreError
from muon_core.store.writer import RunWriter

muon = test_cli.muon
STEPS, TOKENS_PER_STEP = [0, 10, 20], 16_384
LOSSES = {  # a start that seeds share in the first arm, and ends with all the digits a float has
    ("muon", 42): [10.412893771648408, 4.602715492248535, 3.271849632263184],
    ("muon", 137): [10.412893771648408, 4.588306427001953, 3.298104763031006],
    ("adamw", 42): [10.39725112915039, 4.871939420700073, 3.4027183055877686],
    ("adamw", 137): [10.4, 4.910284757614136, 3.394650936126709],
}


def write_metrics(folder: Path, optimizer: str, seed: int | None, losses: list[float], **changes: Any) -> None:
    """A run's folder with its metrics.json and config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"optimizer_type": optimizer, "seed": seed, "log_every": 50}
    (folder / "config.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items()))
    metrics = {
        "final_metrics": {"val_loss": losses[-1], "val_accuracy": 0.41, "val_perplexity": 26.4, "train_loss": 3.31},
        "total_wall_time_seconds": 15720.5,
        "actual_steps": STEPS[-1],
        "tokens_seen": STEPS[-1] * TOKENS_PER_STEP,
        "experiment_config": {"optimizer_type": optimizer, "muon_lr": "24e-3", "adamw_lr": 0.0005},
        "history": {
            "steps": STEPS,
            "val_losses": losses,
            "val_accuracies": [0.004, 0.26, 0.41],
            "elapsed_times": [0.15, 2.0, 4.5],
            "learning_rates": [0.024, 0.024, 0.012],
            "manifold_history": [],
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder with two arms at two seeds."""
    for (optimizer, seed), losses in LOSSES.items():
        write_metrics(tmp_path / "older" / f"{optimizer}_seed{seed}", optimizer, seed, losses)
    return tmp_path / "older"


def line(step: int, layer: int, proj: str, tokens: int, **values: Any) -> str:
    return json.dumps({"step": step, "tokens": tokens, "layer": layer, "proj": proj, **values}) + "\n"


def write_split(folder: Path) -> None:
    """Split layout: two steps x two layers x two projections, by two runs that wrote to the same files."""
    raw = folder / "dry_run" / "metrics" / "raw"
    raw.mkdir(parents=True)
    (folder / "config.yaml").write_text("optimizer_type: muon\nmuon_lr: 1e-2\n")
    cells = [(step, layer, proj) for step in (5, 10) for layer in (0, 1) for proj in ("q", "up")]
    norms, alignment = "", ""
    for n, tokens in ((1, 100), (2, 200)):
        norms += "".join(line(*cell, tokens * cell[0], weight_norm=n + 0.5, effective_rank=387.25) for cell in cells)
        alignment += "".join(line(*cell, tokens * cell[0], alignment=0.125 * n) for cell in cells)
    torn = '{"step": 10, "tokens": 20\n'
    (raw / "norms.jsonl").write_text(torn + norms + '{"step": 15, "tokens": 3000, "layer": 0, "pr')
    (raw / "alignment.jsonl").write_text(alignment + "\n")


def imported(tmp_path: Path) -> Store:
    return open_store(tmp_path / "results")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_import_keeps_the_losses_to_the_last_digit(muon: Muon, tmp_path: Path, older: Path) -> None:
    done = muon("import", "older")
    assert done.code == 0, done.err
    store = imported(tmp_path)
    runs = store.runs.sort("optimizer", "seed").collect()
    final = {(run["optimizer"], run["seed"]): run["final_val_loss"] for run in runs.iter_rows(named=True)}
    assert final == {arm: losses[-1] for arm, losses in LOSSES.items()}
    assert runs["status"].unique().to_list() == ["done"]
    val = store.val.join(store.runs.select("run_id", "optimizer", "seed"), on="run_id").sort("step").collect()
    for (optimizer, seed), losses in LOSSES.items():
        rows = val.filter(optimizer=optimizer, seed=seed)
        assert rows["val_loss"].to_list() == losses
        assert rows["tokens"].to_list() == [step * TOKENS_PER_STEP for step in STEPS]
        assert rows["elapsed_s"].to_list() == pytest.approx([9.0, 120.0, 270.0])


def test_import_fills_what_the_files_tell_and_leaves_the_rest_null(muon: Muon, tmp_path: Path, older: Path) -> None:
    muon("import", "older")
    row = imported(tmp_path).runs.filter(optimizer="muon", seed=42).collect().row(0, named=True)
    assert row["run_id"].startswith("imported-muon-s42-")
    assert (row["lr"], row["embedding_lr"], row["steps"], row["tokens"]) == (0.024, 0.0005, 20, 20 * TOKENS_PER_STEP)
    assert (row["wall_s"], row["best_val_loss"], row["final_val_accuracy"]) == (15720.5, 3.271849632263184, 0.41)
    assert [row[name] for name in ("init_hash", "environment_json", "device", "alpha", "train_s")] == [None] * 5
    assert json.loads(row["config_json"])["imported_from"] == "muon_seed42"
    train = imported(tmp_path).train.filter(pl.col("run_id") == row["run_id"]).sort("step").collect()
    assert train.select("step", "tokens", "train_loss").rows() == [
        (0, 0, None),
        (10, 163_840, None),
        (20, 327_680, 3.31),
    ]
    assert train["lr"].to_list() == pytest.approx([0.024, 0.024, 0.012])
    adamw = imported(tmp_path).runs.filter(optimizer="adamw", seed=42).collect()["lr"].item()
    assert adamw == 0.0005


def test_import_warns_of_seeds_that_share_their_loss_at_step_0(muon: Muon, older: Path) -> None:
    done = muon("import", "older")
    warnings = [text for text in done.err.splitlines() if text.startswith("warning: ")]
    assert [text for text in warnings if "have the same" in text] == [
        "warning: muon: seeds 42, 137 have the same validation loss at step 0 (10.412893771648408): their initial "
        "weights were probably the same, so they are not independent draws of them"
    ]


def test_import_lists_the_runs_under_a_sweep_with_a_baseline(muon: Muon, tmp_path: Path, older: Path) -> None:
    done = muon("import", "older", "--name", "old", "--baseline", "adamw")
    assert done.err.splitlines()[-1] == "next: muon report old"
    rows = imported(tmp_path).sweep("old").runs.select("optimizer", "block", "role").unique().collect()
    assert set(rows.rows()) == {("muon", "muon", "candidate"), ("adamw", "adamw", "baseline")}
    listed = imported(tmp_path).sweep("old").record.runs  # type: ignore[union-attr]
    assert {(run.arm, run.seed) for run in listed} == LOSSES.keys()  # seeds share their arm


def test_imported_arms_of_one_optimizer_are_named_by_what_differs(muon: Muon, tmp_path: Path) -> None:
    for name, rate in (("slow", 0.01), ("fast", 0.02)):
        write_metrics(tmp_path / "older" / name, "muon", 42, [10.4, 4.6, 3.3],
                      experiment_config={"optimizer_type": "muon", "muon_lr": rate})  # fmt: skip
    muon("import", "older")
    listed = imported(tmp_path).sweep("older").record.runs  # type: ignore[union-attr]
    assert sorted(run.arm for run in listed) == ["muon muon_lr=0.01", "muon muon_lr=0.02"]


def test_the_length_of_imported_runs_is_a_part_of_their_arm(muon: Muon, tmp_path: Path) -> None:
    """A run that stopped without metrics counts where its config fits one arm only."""
    for seed, steps in ((1, 20), (2, 20), (3, 10)):
        write_metrics(tmp_path / "older" / f"r{seed}", "adamw", seed, [10.4, 4.6, 3.3], actual_steps=steps,
                      experiment_config={})  # fmt: skip
    write_metrics(tmp_path / "older" / "m1", "muon", 1, [10.4, 4.6, 3.3], experiment_config={})
    for name, optimizer in (("r4", "adamw"), ("m2", "muon")):
        write_metrics(tmp_path / "older" / name, optimizer, int(name[1]), [3.0])
        (tmp_path / "older" / name / "metrics.json").unlink()
        (tmp_path / "older" / name / "norms.jsonl").write_text(line(5, 0, "q", 100, weight_norm=1.0))
    assert muon("import", "older", "--baseline", "muon").code == 0
    listed = imported(tmp_path).sweep("older").record.runs  # type: ignore[union-attr]
    assert sorted((run.arm, run.seed) for run in listed) == [
        ("adamw steps=10", 3),
        ("adamw steps=20", 1),
        ("adamw steps=20", 2),
        ("adamw steps=unknown", 4),
        ("muon", 1),
        ("muon", 2),
    ]
    arm_ids = imported(tmp_path).runs.filter(optimizer="adamw").select("seed", "arm_id").collect()
    assert len({arm for seed, arm in arm_ids.iter_rows() if seed in (1, 2)}) == 1
    assert arm_ids["arm_id"].n_unique() == 3


def test_an_imported_sweep_reports(muon: Muon, tmp_path: Path, older: Path) -> None:
    muon("import", "older", "--name", "old", "--baseline", "adamw")
    assert muon("report", "old", "-o", "page", "--metric", "effective_rank", "--projection", "q").code == 0
    assert "seeds 42, 137 have the same validation loss at step 0" in (tmp_path / "page" / "index.html").read_text()
    assert "no run has the optimizer 'sgd' to be the baseline; there are adamw, muon" in (
        muon("import", "older", "--baseline", "sgd").err
    )


def test_import_twice_adds_nothing(muon: Muon, tmp_path: Path, older: Path) -> None:
    write_split(tmp_path / "older" / "split")
    muon("import", "older", "--baseline", "adamw")
    before = files(tmp_path / "results")
    again = muon("import", "older")
    assert (again.code, again.out.splitlines()[0]) == (0, "older")  # the verdict alone
    assert "older: 0 runs imported, 5 were there already" in again.err
    assert files(tmp_path / "results") == before


def test_import_of_a_copy_finds_its_runs_and_adds_the_new_one(muon: Muon, tmp_path: Path, older: Path) -> None:
    muon("import", "older", "--name", "old")
    write_metrics(older / "muon_seed7", "muon", 7, [10.5, 4.0, 3.0])
    done = muon("import", str(older.rename(tmp_path / "moved")), "--name", "old")
    assert "old: 1 run imported, 4 were there already" in done.err
    assert imported(tmp_path).sweep("old").runs.collect().height == 5


def test_import_completes_one_that_was_killed(
    muon: Muon, tmp_path: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: RunWriter, **_: Any) -> None:
        self.flush()
        raise StoreError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "end", killed)
        assert muon("import", "older").code == 2
    assert imported(tmp_path).runs.collect()["status"].to_list() == ["running"]
    assert "4 runs imported, 0 were there" in muon("import", "older").err
    store = imported(tmp_path)
    assert store.runs.collect()["status"].to_list() == ["done"] * 4
    assert store.val.collect().height == 4 * len(STEPS)


def test_import_reads_the_split_layout_and_counts_torn_and_repeated_lines(muon: Muon, tmp_path: Path) -> None:
    write_split(tmp_path / "older")
    done = muon("import", "older")
    assert done.code == 0, done.err
    assert done.err.splitlines()[:2] == [
        "dry_run: 2 of 34 lines are torn and left out",
        "dry_run: 16 of 34 lines repeat a step, layer and projection, 16 of them with other values; "
        "the last line of each counts",
    ]
    rows = imported(tmp_path).layers.sort("step", "layer", "projection").collect()
    assert rows.height == 2 * 2 * 2
    assert rows["weight_norm"].unique().to_list() == [2.5]  # of the last
    assert rows["update_alignment"].unique().to_list() == [0.25]
    assert rows["effective_rank"].unique().to_list() == [387.25]
    assert rows["tokens"].unique().sort().to_list() == [1000, 2000]
    assert rows["projection"].unique().sort().to_list() == ["q", "up"]
    run = imported(tmp_path).runs.collect().row(0, named=True)
    assert (run["status"], run["seed"], run["lr"], run["steps"], run["final_val_loss"]) == (
        "stopped",
        None,
        0.01,
        10,
        None,
    )
    assert run["error"] == "imported without metrics.json, so how it ended is not known"


def test_import_reads_the_unified_layout_and_marks_samples_of_singular_values(muon: Muon, tmp_path: Path) -> None:
    flat, falling = [2.0] * 50, [1 / n for n in range(1, 51)]
    common = {"update_alignment": 0.5, "left_alignment": 0.5, "right_alignment": 0.25, "entropy": 0.9}
    (tmp_path / "older" / "run_seed3" / "metrics").mkdir(parents=True)
    text = line(250, 0, "q", 2_506_752, singular_values=falling, effective_rank=391.5, grad_norm=0.5, **common)
    text += line(
        250, 0, "k", 2_506_752, singular_values=flat, effective_rank=50.0, weight_norm=1.0
    )  # what 50 equal values give
    text += line(250, 0, "v", 2_506_752, singular_values=[3.0] * 50 + [4.0], effective_rank=51.5)  # a whole spectrum
    (tmp_path / "older" / "run_seed3" / "metrics" / "manifold_stats.jsonl").write_text(text)
    done = muon("import", "older")
    assert done.err.splitlines()[:3] == [
        "run_seed3: 2 spectra may be samples and are marked so: of them only s_1 and s_2 are taken",
        "run_seed3: 1 effective ranks are left out, computed from such samples",
        "run_seed3: fields left out: entropy",
    ]
    rows = imported(tmp_path).layers.collect()
    assert dict(rows.select("projection", "effective_rank").iter_rows()) == {"q": 391.5, "k": None, "v": 51.5}
    spectra = imported(tmp_path).table("spectra").sort("projection").collect()
    assert spectra.select("step", "tokens", "projection", "sampled").rows() == [
        (250, 2_506_752, "k", True),
        (250, 2_506_752, "q", True),
        (250, 2_506_752, "v", None),
    ]
    assert spectra["singular_values"].to_list()[::2] == [flat, [4.0] + [3.0] * 50]
    assert spectra["singular_values"].to_list()[1] == pytest.approx(falling)
    assert muon("query", "SELECT COUNT(*) AS n FROM spectra WHERE sampled IS NULL", "--csv").out == "n\n1\n"
    q = rows.filter(projection="q").row(0, named=True)
    assert (q["left_alignment"], q["right_alignment"], q["grad_norm"], q["grad_norm_peak"]) == (0.5, 0.25, None, 0.5)
    assert q["entropy"] == pytest.approx(math.log(391.5))  # the rank is that of all singular values
    assert (q["spectral_norm"], q["spectral_gap"], q["stable_rank"]) == (1.0, 2.0, None)
    assert imported(tmp_path).runs.collect()["seed"].to_list() == [3]


@pytest.mark.parametrize(
    ("values", "rank", "left_out"),
    [
        ([1.0] * 50, 50.0, True),
        ([2.0] * 25 + [1.0] * 25, math.exp(math.log(75) - (50 * math.log(2)) / 75), True),  # p = s / sum(s), by hand
        ([2.0] * 25 + [1.0] * 25, math.exp(math.log(125) - (100 * math.log(4)) / 125), True),  # p = s^2 / sum(s^2)
        ([2.0] * 25 + [1.0] * 25, 300.0, False),
        ([0.0] * 50, 391.5, False),
    ],
)
def test_ranks_that_a_sample_gives_are_left_out(
    tmp_path: Path, values: list[float], rank: float, left_out: bool
) -> None:
    path = tmp_path / "manifold_stats.jsonl"
    path.write_text(line(1, 0, "q", 1, singular_values=values, effective_rank=rank, weight_norm=1.0))
    counts = Counts()
    (row,), (spectrum,) = read_layer_tables([path], counts)
    assert (spectrum["singular_values"], spectrum["sampled"]) == (values, True)
    assert ("effective_rank" not in row) == left_out == counts.sampled_ranks


@pytest.mark.parametrize(
    "torn",
    [
        '{"step": 1',
        "[1, 2]",
        "3",
        line(1, 0, "gate", 1),
        line(1, 0, "q", 1, weight_norm="heavy"),
        line(1, 0, "q", 1, singular_values=["?"]),
        '{"step": 1.5, "layer": 0, "proj": "q", "tokens": 1}',
        '{"step": 1, "layer": 0, "proj": "q"}',
        '{"step": 1, "layer": 0, "proj": "q", "tokens": 1, "weight_norm": 2.0}{"step": 2',
    ],
)
def test_lines_that_are_no_cell_are_counted_as_torn(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "norms.jsonl"
    path.write_text(f"{torn.rstrip()}\n{line(1, 0, 'q', 8, weight_norm=2.0)}")
    counts = Counts()
    layers, _ = read_layer_tables([path], counts)
    assert layers == [{"step": 1, "layer": 0, "projection": "q", "tokens": 8, "weight_norm": 2.0}]
    assert (counts.lines, counts.torn, counts.repeated) == (2, 1, 0)


def test_a_file_of_spectra_only_makes_a_run(muon: Muon, tmp_path: Path) -> None:
    (tmp_path / "older" / "run").mkdir(parents=True)
    text = "".join(line(step, 0, "q", 8 * step, singular_values=[1.0] * 64) for step in (5, 10))
    (tmp_path / "older" / "run" / "singular_values.jsonl").write_text(text)
    done = muon("import", "older")
    assert done.out.endswith("  run: 2 layer rows, 2 spectra rows\n")
    run = imported(tmp_path).runs.collect().row(0, named=True)
    assert (run["optimizer"], run["steps"], run["tokens"]) == ("unknown", 10, 80)


def test_files_that_disagree_on_tokens_are_not_mixed(tmp_path: Path) -> None:
    norms, alignment = tmp_path / "norms.jsonl", tmp_path / "alignment.jsonl"
    norms.write_text(line(1, 0, "q", 8, weight_norm=2.0))
    alignment.write_text(line(1, 0, "q", 16, alignment=0.5))
    counts = Counts()
    (row,), _ = read_layer_tables([norms, alignment], counts)
    assert "update_alignment" not in row
    assert counts.unmatched == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"actual_steps": None}, "lacks actual_steps or tokens_seen as whole numbers"),
        ({"history": {"steps": [0, 1], "val_losses": [1.0]}}, "has not one number for val_loss at each of its 2 steps"),
        ({"history": {"steps": [0], "val_losses": ["low"]}}, "has not one number for val_loss at each of its 1 steps"),
        ({"history": {"steps": [0.5], "val_losses": [1.0]}}, "has steps that are no whole numbers"),
        ({"history": {"steps": 5}}, "has 5 where a list of steps belongs"),
        ({"history": {"steps": [0], "val_losses": 1.5}}, "has 1.5 where a list of val_losses belongs"),
        (
            {"history": {"steps": [0], "learning_rates": {"a": 1}}},
            "has {'a': 1} where a list of learning_rates belongs",
        ),
        ({"history": {"steps": [0], "val_accuracies": [0.5]}}, "it has neither an evaluation nor a whole line"),
        ({"experiment_config": {"seed": "x"}}, "seed 'x' is no whole number; correct it in config.yaml"),
    ],
)
def test_import_leaves_out_a_damaged_run_by_name(
    muon: Muon, tmp_path: Path, older: Path, changes: dict[str, Any], reason: str
) -> None:
    write_metrics(older / "bad", "muon", 9, [9.0, 8.0, 7.0], **changes)
    done = muon("import", "older")
    assert done.code == 3
    (told,) = [text for text in done.err.splitlines() if text.startswith("left out: ")]
    assert told.startswith("left out: bad: ")
    assert told.endswith(reason)
    assert imported(tmp_path).runs.collect().height == 4


HUGE = 10**400


@pytest.mark.parametrize(
    "metrics",
    [
        {"history": {"steps": [1 << 63], "val_losses": [1.0]}},
        {"history": {"steps": [1], "val_losses": [HUGE]}},
        {"actual_steps": HUGE},
        {"tokens_seen": HUGE},
        {"total_wall_time_seconds": HUGE},
        {"experiment_config": {"seed": 1 << 63}},
        {"experiment_config": {"adamw_lr": HUGE}},
    ],
)
def test_import_leaves_out_a_run_whose_metrics_are_out_of_range(
    muon: Muon, tmp_path: Path, older: Path, metrics: dict[str, Any]
) -> None:
    write_metrics(older / "bad", "muon", 9, [9.0, 8.0, 7.0], **metrics)
    assert_bad_is_left_out(muon, tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        line(1 << 63, 0, "q", 1, weight_norm=1.0),
        line(1, 1 << 31, "q", 1, weight_norm=1.0),
        line(1, 0, "q", 1 << 63, weight_norm=1.0),
        line(1, 0, "q", 1, weight_norm=HUGE),
        line(1, 0, "q", 1, singular_values=[HUGE] * 60),
        line(1, 0, "q", 1, singular_values=[1e200] * 50, effective_rank=2.0),
    ],
)
def test_import_leaves_out_a_run_with_a_line_out_of_range(muon: Muon, tmp_path: Path, older: Path, bad: str) -> None:
    (older / "bad").mkdir()
    (older / "bad" / "manifold_stats.jsonl").write_text(line(1, 0, "k", 1, weight_norm=1.0) + bad)
    assert_bad_is_left_out(muon, tmp_path)


def assert_bad_is_left_out(muon: Muon, tmp_path: Path) -> None:
    done = muon("import", "older")
    assert done.code == 3
    (told,) = [text for text in done.err.splitlines() if text.startswith("left out: ")]
    assert told.startswith("left out: bad: it has a number that is out of range (")
    assert imported(tmp_path).runs.collect()["status"].to_list() == ["done"] * 4


def test_a_run_is_the_same_whichever_folder_above_it_is_imported(muon: Muon, tmp_path: Path) -> None:
    write_split(tmp_path / "older")
    part = tmp_path / "older" / "part"
    part.mkdir()
    (part / "config.yaml").write_text("log_every: 50\n")  # nobody's: it names no optimizer
    (tmp_path / "older" / "dry_run").rename(part / "dry_run")
    for folder in (".", "older", "older/part", "older/part/dry_run"):
        assert muon("import", folder, "--name", "old").code == 0
    (run,) = imported(tmp_path).runs.collect().iter_rows(named=True)
    assert (run["optimizer"], run["lr"]) == ("muon", 0.01)


def test_import_leaves_out_torn_metrics_and_config(muon: Muon, tmp_path: Path, older: Path) -> None:
    metrics, config = older / "muon_seed42" / "metrics.json", older / "adamw_seed42" / "config.yaml"
    metrics.write_bytes(metrics.read_bytes()[:100])
    config.write_text("seed: [1\n")
    done = muon("import", "older")
    left = sorted(text for text in done.err.splitlines() if text.startswith("left out: "))
    assert [text.split(" is not ")[1][:4] for text in left] == ["YAML", "JSON"]
    assert imported(tmp_path).runs.collect().height == 2


def test_import_takes_final_metrics_where_there_is_no_history(muon: Muon, tmp_path: Path) -> None:
    write_metrics(tmp_path / "older" / "run", "muon", 1, [3.25], history={}, total_wall_time_seconds=None,
                  total_time_minutes=2.0)  # fmt: skip
    assert muon("import", "older").code == 0
    assert imported(tmp_path).val.select("step", "val_loss", "val_accuracy").collect().rows() == [(20, 3.25, 0.41)]
    assert imported(tmp_path).runs.collect()["wall_s"].to_list() == [120.0]


def test_import_tells_diverged_from_done_and_final_metrics_that_differ(muon: Muon, tmp_path: Path) -> None:
    write_metrics(tmp_path / "older" / "a", "muon", 1, [9.0, 8.0, math.nan], final_metrics={"val_loss": 8.0})
    done = muon("import", "older")
    assert "a: final_metrics say val_loss 8.0, the last evaluation nan, which counts" in done.err.splitlines()
    row = imported(tmp_path).runs.collect().row(0, named=True)
    assert (row["status"], row["best_val_loss"]) == ("diverged", 8.0)


def test_import_refuses_an_empty_folder_and_a_sweep_of_another_origin(muon: Muon, tmp_path: Path, older: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = muon("import", "empty")
    assert (empty.code, empty.err.count("\n")) == (2, 1)
    assert "holds no file that may be a log; understood are " in empty.err
    assert "metrics.json of the older project" in empty.err
    assert muon("import", "nowhere").err.endswith(
        "nowhere is no file or folder; give a log, or the folder that holds the runs\n"
    )
    write_store(tmp_path / "results", [FakeRun("muon", 1, {0: 6.9})])
    taken = muon("import", "older", "--name", "demo")
    assert taken.code == 2
    assert taken.err.endswith("has a sweep 'demo' that was not imported; choose another with --name\n")
    assert Folder(tmp_path / "results").list("attempts/imported") == []
    assert open_store(tmp_path / "results").runs.collect().height == 1
    assert muon("import", "older", "--name", "a b").err.startswith("muon: 'a b' cannot name a run or sweep")
