"""`muon import`: what imported runs mean, arm by arm, and what is the same run in other files."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import test_cli
from test_cli import Muon
from test_legacy import files, imported, line

from analysis.first_losses import is_of_any_weights
from analysis.summary import Summary, summarize
from muon_core.legacy.imported import ImportedRun
from muon_core.legacy.seeds import seed_in, without_seed
from muon_core.legacy.write import write_runs
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreError
from muon_core.store.writer import RunWriter

muon = test_cli.muon
START = 10.886251859664917
CONFIG = {"optimizer_type": "muon", "muon_lr": 0.024}


def write_run(
    path: Path, loss: float, steps: int = 500, batch: int = 16_384, start: float = START, **more: Any
) -> None:
    """A metrics file of two evaluations, whose times no other run has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    history = {"steps": [0, steps], "val_losses": [start, loss], "elapsed_times": [loss / 1e3, loss]}
    told = {"actual_steps": steps, "tokens_seen": steps * batch, "history": history}
    path.write_text(json.dumps({"final_metrics": {"val_loss": loss}} | told | more))


def write_arm(folder: Path, optimizer: str, losses: list[float], **more: Any) -> None:
    """Runs of one arm, seeds from 1, each in its folder."""
    config = {"optimizer_type": optimizer, "adamw_lr": 0.0005}
    for seed, loss in enumerate(losses, 1):
        write_run(folder / f"{optimizer}_seed{seed}" / "metrics.json", loss, experiment_config=config, **more)


def answer(tmp_path: Path, sweep: str = "older") -> Summary:
    return summarize(imported(tmp_path).sweep(sweep))


def verdicts(summary: Summary) -> dict[str, str]:
    return {arm.arm: arm.verdict for arm in summary.arms}


def test_runs_of_other_lengths_are_arms_of_their_own_and_not_compared(muon: Muon, tmp_path: Path) -> None:
    """A smoke test of 123 steps beside runs of 103,760."""
    older = tmp_path / "older"
    write_arm(older, "adamw", [3.36, 3.37, 3.365], steps=103_760)
    write_arm(older, "muon", [3.3, 3.31, 3.306], steps=103_760)
    write_arm(older / "smoke", "muon", [6.24, 6.25, 6.22], steps=123)
    assert muon("import", "older", "--baseline", "adamw").code == 0
    summary = answer(tmp_path)
    assert verdicts(summary) == {"adamw": "baseline", "muon steps=103760": "lower", "muon steps=123": "not compared"}
    (smoke,) = [arm for arm in summary.arms if arm.verdict == "not compared"]
    assert (smoke.found, smoke.adjusted_p, smoke.pooled, summary.tests) == (None, None, None, 1)
    assert smoke.apart == "it trained for 123 steps (2,015,232 tokens), adamw for 103,760 steps (1,700,003,840 tokens)"
    assert not [text for text in summary.warnings if "unequal length" in text]
    assert summary.target is not None
    assert [arm.arm for arm in summary.target.arms] == ["adamw", "muon steps=103760"]
    done = muon("import", "older")  # the baseline stays
    assert "muon steps=123: not compared with adamw: it trained for 123 steps" in " ".join(done.out.split())
    assert "%" not in done.out.split("muon steps=123 ")[1].splitlines()[0]


def test_runs_of_another_batch_are_compared_at_equal_tokens_only(muon: Muon, tmp_path: Path) -> None:
    older = tmp_path / "older"
    write_arm(older, "adamw", [3.36, 3.37, 3.365], steps=1000)
    write_arm(older / "half", "muon", [3.3, 3.31, 3.306], steps=500, batch=32_768)
    write_arm(older / "more", "muon", [3.2, 3.21, 3.206], steps=1000, batch=32_768)
    muon("import", "older", "--baseline", "adamw")
    found = {arm.verdict: arm.apart for arm in answer(tmp_path).arms if arm.optimizer == "muon"}
    assert found == {
        "lower": "",
        "not compared": "it trained for 1,000 steps (32,768,000 tokens), adamw for 1,000 steps (16,384,000 tokens)",
    }
    assert len(answer(tmp_path).arms) == 3


def test_71_configs_without_an_optimizer_are_71_arms(muon: Muon, tmp_path: Path) -> None:
    for i in range(71):
        flags = {"activation": f"f{i}", "d_ff": 256 * (i % 5 + 1), "d_model": 64}
        write_run(tmp_path / "older" / f"arch_{i}" / "metrics.json", 4 + i / 100, ablation_flags=flags)
    done = muon("import", "older", "--baseline", "arch_3")
    summary = answer(tmp_path)
    assert sorted(arm.arm for arm in summary.arms) == sorted(f"arch_{i}" for i in range(71))
    assert {arm.verdict for arm in summary.arms} == {"baseline", "not resolved"}  # of one run each, nothing follows
    assert "no config" not in done.err


def test_runs_without_any_config_stay_apart_and_are_counted(muon: Muon, tmp_path: Path) -> None:
    for name in ("a/one", "a/two_seed1", "a/two_seed2", "b/one"):
        write_run(tmp_path / "older" / name / "metrics.json", 3 + len(name) / 10 + ord(name[0]) / 1e4)
    done = muon("import", "older")
    assert "4 runs have no config: each is an arm of its own, named by its folder" in done.err
    assert set(verdicts(answer(tmp_path))) == {"a/one", "a/two_seed1", "a/two_seed2", "b/one"}


def test_a_seed_that_repeats_makes_arms_of_folders(muon: Muon, tmp_path: Path) -> None:
    older = tmp_path / "older"
    write_arm(older / "try1", "muon", [3.3, 3.31])
    write_arm(older / "try2", "muon", [3.5, 3.51])
    write_arm(older, "adamw", [3.36, 3.37])
    done = muon("import", "older", "--baseline", "adamw")
    arms = {arm.arm: arm.values for arm in answer(tmp_path).arms if arm.optimizer == "muon"}
    assert arms == {"muon folder=try1/muon": {1: 3.3, 2: 3.31}, "muon folder=try2/muon": {1: 3.5, 2: 3.51}}
    assert "4 runs of muon with one config repeat a seed (1, 2): they are arms of their folders" in done.err
    assert not [text for text in answer(tmp_path).warnings if "their mean stands for it" in text]


def test_a_seed_that_repeats_in_another_import_of_one_name_stays_apart(muon: Muon, tmp_path: Path) -> None:
    for i, root in enumerate(("one", "two")):
        write_arm(tmp_path / root, "muon", [3.3 + i / 10])
        assert muon("import", root, "--name", "both").code == 0
    assert sorted(mean for arm in answer(tmp_path, "both").arms for mean in arm.values.values()) == [3.3, 3.4]
    assert len(answer(tmp_path, "both").arms) == 2


def test_runs_without_seeds_are_counted_one_by_one(muon: Muon, tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        for optimizer, loss in (("muon", 3.3), ("adamw", 3.4)):
            path = tmp_path / "older" / f"{optimizer}_{name}" / "metrics.json"
            write_run(path, loss + i / 1e3, experiment_config={"optimizer_type": optimizer})
    muon("import", "older", "--baseline", "adamw")
    (arm,) = [arm for arm in answer(tmp_path).arms if arm.arm == "muon"]
    assert (len(arm.unseeded), arm.comparison, arm.verdict) == (3, None, "lower")
    assert arm.unpaired is not None
    assert (arm.unpaired.n, arm.unpaired.baseline_n) == (3, 3)


def test_folders_and_names_in_a_config_make_no_arm(muon: Muon, tmp_path: Path) -> None:
    for seed in (42, 137):
        write_run(tmp_path / "older" / f"muon_seed{seed}" / "metrics.json", 3.3 + seed / 1e5)
        (tmp_path / "older" / "configs").mkdir(exist_ok=True)
        (tmp_path / "older" / "configs" / f"muon_seed{seed}.yaml").write_text(
            f"optimizer_type: muon\nseed: {seed}\noutput_dir: exp/muon_s{seed}\nnote: exp/muon_seed{seed}\n"
        )
    muon("import", "older")
    assert [arm.values.keys() for arm in answer(tmp_path).arms] == [{42, 137}]
    assert imported(tmp_path).runs.collect()["arm_id"].n_unique() == 1


def test_an_import_without_a_baseline_tells_how_to_name_one(muon: Muon, tmp_path: Path) -> None:
    write_arm(tmp_path / "older", "adamw", [3.36, 3.37])
    for rate in (0.01, 0.02):
        config = CONFIG | {"muon_lr": rate}
        write_run(tmp_path / "older" / f"m{rate}_seed1" / "metrics.json", 3.3 + rate, experiment_config=config)
    done = muon("import", "older")
    assert done.err.splitlines()[-2:] == [
        "no baseline; optimizers found: adamw (2 runs), muon (2 runs). Name one, or an arm: --baseline adamw",
        "next: muon report older",
    ]
    several = muon("import", "older", "--baseline", "muon")
    assert several.code == 2
    assert several.err.endswith(
        "2 arms have the optimizer 'muon'; give --baseline one of them: muon muon_lr=0.01; muon muon_lr=0.02; "
        "the runs are listed in 'older', and only the baseline is missing\n"
    )
    dry = muon("import", "older", "--dry-run", "--baseline", "muon muon_lr=0.02")
    assert (dry.code, "--baseline" in dry.err) == (0, False), dry.err
    assert "2 arms have the optimizer 'muon'" in muon("import", "older", "--dry-run", "--baseline", "muon").err
    again = muon("import", "older", "--baseline", "muon muon_lr=0.02")
    assert verdicts(answer(tmp_path))["muon"] == "baseline"
    assert "muon: the baseline, val_loss 3.3200 in a single run" in again.out


@pytest.mark.parametrize(
    ("loss", "vocabulary", "tells_nothing"),
    [
        (math.log(50_304), None, True),  # a last layer of zeros: every token is as likely
        (math.log(50_304) + 8e-7, None, True),  # in single precision
        (math.log(65), None, True),
        (math.log(50_021), 50_021, True),
        (math.log(50_021), None, False),
        (10.8125, None, True),  # a mean of bfloat16
        (10.8258, None, True),  # as a log prints it
        (START, 49_152, False),
        (10.412893771648408, None, False),
    ],
)
def test_losses_that_other_weights_share(loss: float, vocabulary: int | None, tells_nothing: bool) -> None:
    assert is_of_any_weights(loss, vocabulary) == tells_nothing


def test_a_zero_initialised_head_is_no_sign_of_equal_weights(muon: Muon, tmp_path: Path) -> None:
    write_arm(tmp_path / "older", "muon", [3.3, 3.31], start=math.log(50_304))
    write_arm(tmp_path / "older", "adamw", [3.36, 3.37], start=10.8125)
    assert "step 0" not in muon("import", "older", "--baseline", "adamw").err
    assert not [text for text in answer(tmp_path).warnings if "step 0" in text]


def write_log(folder: Path, steps: range) -> None:
    """A log that is written while a run trains."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("optimizer_type: muon\nseed: 7\n")
    rows = [line(step, layer, "q", 100 * step, weight_norm=step + layer / 8) for step in steps for layer in (0, 1)]
    (folder / "norms.jsonl").write_text("".join(rows))


def test_a_grown_log_replaces_the_shorter_import_and_adds_what_is_new(muon: Muon, tmp_path: Path) -> None:
    write_log(tmp_path / "older" / "run", range(10, 50, 10))
    first = muon("import", "older").out.split()[0]
    before = files(tmp_path / "results")
    write_log(tmp_path / "older" / "run", range(10, 90, 10))
    write_run(tmp_path / "older" / "run" / "metrics.json", 3.3, steps=90)
    done = muon("import", "older")
    assert done.out.splitlines()[0] == f"{first}  run: 2 evaluations, 16 layer rows now"
    assert "older: 0 runs imported, 1 has grown, 0 were there already" in done.err
    rows = imported(tmp_path).layers.sort("step", "layer").collect()
    assert rows["step"].to_list() == [step for step in range(10, 90, 10) for _ in (0, 1)]
    assert rows.filter(pl.col("step") < 50)["attempt"].unique().to_list() == [1]  # only the others were added
    run = imported(tmp_path).sweep("older").runs.collect().row(0, named=True)
    assert (run["run_id"], run["status"], run["final_val_loss"], run["attempts"]) == (first, "done", 3.3, 2)
    assert before.items() <= files(tmp_path / "results").items()  # objects never change
    after = files(tmp_path / "results")
    write_log(tmp_path / "older" / "run", range(10, 50, 10))  # a copy of long ago
    (tmp_path / "older" / "run" / "metrics.json").unlink()
    for _ in range(2):
        assert "0 runs imported, 1 was there already" in muon("import", "older").err
    assert files(tmp_path / "results") == after


def test_a_grown_history_keeps_what_only_its_shorter_file_told(muon: Muon, tmp_path: Path) -> None:
    """The training loss at the end of the first 500 steps, which the longer history has no more."""
    for name, steps in (("old", [0, 500]), ("new", [0, 500, 1000])):
        history = {
            "steps": steps,
            "val_losses": [START, 4.5, 4.25][: len(steps)],
            "elapsed_times": [0.1, 2.5, 5.0][: len(steps)],
            "learning_rates": [0.01] * len(steps),
        }
        final = {"val_loss": history["val_losses"][-1], "train_loss": 4.0 + len(steps)}
        path = tmp_path / name / "run_seed1" / "metrics.json"
        write_run(path, 4.0, steps=steps[-1], history=history, final_metrics=final, experiment_config=CONFIG)
        assert muon("import", name, "--name", "both").code == 0
    (run,) = imported(tmp_path).sweep("both").runs.collect().iter_rows(named=True)
    assert (run["steps"], run["final_val_loss"], run["attempts"]) == (1000, 4.25, 2)
    losses = imported(tmp_path).train.sort("step").select("step", "train_loss").collect().rows()
    assert losses == [(0, None), (500, 6.0), (1000, 7.0)]


def test_a_grown_log_whose_import_was_killed_is_completed(
    muon: Muon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: RunWriter, **_: Any) -> None:
        self.flush()
        raise StoreError("killed")

    write_log(tmp_path / "older" / "run", range(10, 50, 10))
    muon("import", "older")
    write_log(tmp_path / "older" / "run", range(10, 90, 10))
    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "end", killed)
        assert muon("import", "older").code == 2
    assert muon("import", "older").code == 0
    assert imported(tmp_path).runs.collect()["status"].to_list() == ["stopped"]
    assert sorted(imported(tmp_path).layers.collect()["step"]) == [step for step in range(10, 90, 10) for _ in (0, 1)]
    before = files(tmp_path / "results")
    assert "0 runs imported, 1 was there already" in muon("import", "older").err
    assert files(tmp_path / "results") == before


def test_a_log_that_was_written_over_counts_as_it_is_now(muon: Muon, tmp_path: Path) -> None:
    write_log(tmp_path / "older" / "run", range(10, 50, 10))
    muon("import", "older")
    path = tmp_path / "older" / "run" / "norms.jsonl"
    path.write_text(
        path.read_text() + line(40, 1, "q", 4000, weight_norm=9.0) + line(50, 1, "q", 5000, weight_norm=9.5)
    )
    done = muon("import", "older")
    assert (
        "its files have other values than at the last import in 1 row, and lack 0; they count as they are" in done.err
    )
    rows = imported(tmp_path).layers.filter(layer=1).sort("step").collect()
    assert rows["weight_norm"].to_list() == [10.125, 20.125, 30.125, 9.0, 9.5]
    assert imported(tmp_path).runs.collect().height == 1


def test_runs_that_share_no_more_than_their_start_are_two(muon: Muon, tmp_path: Path) -> None:
    """One was stopped at once, and the other began from the same weights."""
    for name, steps in (("a", range(1)), ("b", range(0, 30, 10))):
        write_log(tmp_path / "older" / name, steps)
    assert "older: 2 runs imported, 0 were there already" in muon("import", "older").err
    write_log(tmp_path / "older" / "a", range(0, 20, 10))  # where it lies tells that it is the same
    write_log(tmp_path / "older" / "b", range(0, 30, 10))
    assert "1 has grown, 1 was there already" in muon("import", "older").err


def test_a_copy_among_plots_is_the_same_run(muon: Muon, tmp_path: Path) -> None:
    """Whichever was imported first, the one that tells its seed counts."""
    older = tmp_path / "older"
    for folder in ("plots", "experiments"):
        name = "metrics_muon_1000_20260224_144629.json" if folder == "plots" else "muon_seed42/metrics.json"
        write_run(older / folder / name, 3.3, experiment_config=CONFIG)
    done = muon("import", "older")
    assert "older: 1 run imported, 1 was there already" in done.err
    assert (
        "plots/metrics_muon_1000_20260224_144629: not imported again: experiments/muon_seed42 is the same run"
        in done.err
    )
    for folder in ("plots", "experiments"):
        muon("import", f"older/{folder}", "--name", "other", "--store", "other")
    from analysis.store import open_store

    listed = open_store(tmp_path / "other").sweep("other").runs.collect()
    assert listed["seed"].to_list() == [42]


def test_plain_polars_reads_an_import_at_once(muon: Muon, tmp_path: Path) -> None:
    """Also of a run whose end is unknown."""
    write_log(tmp_path / "older" / "run", range(10, 50, 10))
    write_arm(tmp_path / "older", "adamw", [3.36, 3.37])
    muon("import", "older")
    for table, height in (("layers", 8), ("val", 4), ("runs", 3)):
        rows = pl.read_parquet(tmp_path / f"results/final/table={table}/**/*.parquet", hive_partitioning=True)
        assert rows.height == height
    assert "1 table" not in muon("compact").err


@pytest.mark.parametrize(
    ("name", "seed", "rest"),
    [
        ("muon_seed137", 137, "muon"),
        ("adamw-seed_2", 2, "adamw"),
        ("tiny1m_0604_swiglu_s43_full", 43, "tiny1m_0604_swiglu_full"),
        ("s42", 42, ""),
        ("a/try_s4/run", 4, "a/try/run"),
        ("s4_model_s4", None, "s4_model_s4"),
        ("s_ctrl_full", None, "s_ctrl_full"),
        ("steps5", None, "steps5"),
    ],
)
def test_seeds_in_names(name: str, seed: int | None, rest: str) -> None:
    assert (seed_in(name), without_seed(name)) == (seed, rest)


def test_a_writer_takes_runs_of_any_origin(tmp_path: Path) -> None:
    """Without tokens, as some tools log none."""
    rows = [{"step": step, "tokens": None, "val_loss": 4.0 - step / 100} for step in (0, 10)]
    runs = [ImportedRun(folder=f"table.csv#{seed}", digest=f"{seed:08x}", optimizer="lion", seed=seed,
                        config={"lr": 0.1}, val=[dict(row) for row in rows], steps=10) for seed in (1, 2)]  # fmt: skip
    done = write_runs(Folder(tmp_path / "results"), runs, "table", "lion")
    assert [run.store_id for run in done.new] == ["imported-lion-s1-00000001", "imported-lion-s2-00000002"]
    assert [arm.values for arm in answer(tmp_path, "table").arms] == [{1: 3.9, 2: 3.9}]
    assert imported(tmp_path).val.collect()["tokens"].to_list() == [None] * 4
