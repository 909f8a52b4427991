"""`muon import` of six public runs and the start of a seventh, whose answer is known.

Numbers from github.com/vukrosic/muon-llm-research (MIT licence, copyright 2025 Vuk Rosić): models of 88 million
parameters, 1.7 billion tokens each.
"""

import json
import math
from pathlib import Path

import polars as pl
import pytest
import test_cli
from test_cli import Muon
from test_import_meaning import answer
from test_legacy import imported

muon = test_cli.muon
STEPS = [0, 1000, 5000, 10000, 20000, 30000, 40000, 50000, 103760]
# fmt: off
LOSSES = {
    ("muon", 42): [10.887699146270752, 4.725796780586243, 3.804699501991272, 3.604775540828705, 3.4685737895965576,
                   3.411647982597351, 3.3825511050224306, 3.3632349300384523, 3.315414309501648],
    ("muon", 137): [10.887699146270752, 4.726120824813843, 3.8005765223503114, 3.6003313064575195, 3.4642126393318176,
                    3.408564958572388, 3.3799095940589905, 3.358266351222992, 3.309816346168518],
    ("muon", 256): [10.886251859664917, 4.688590168952942, 3.7982710790634155, 3.598477253913879, 3.46046138048172,
                    3.4024594759941102, 3.369400448799133, 3.3471509838104248, 3.2926828551292417],
    ("adamw", 42): [10.886251859664917, 4.957194709777832, 3.8716126394271853, 3.6374841809272764, 3.4894307589530946,
                    3.434683454036713, 3.4071832585334776, 3.391933434009552, 3.3610411405563356],
    ("adamw", 137): [10.886251859664917, 4.972416753768921, 3.873600196838379, 3.6415421319007875, 3.4935172057151793,
                     3.4401699709892273, 3.4130635023117066, 3.397153985500336, 3.366878514289856],
    ("adamw", 256): [10.886251859664917, 4.961323199272155, 3.863865737915039, 3.6336485624313353, 3.4871822786331177,
                     3.43572651386261, 3.4072221159934997, 3.3931474590301516, 3.3644543361663817],
}
NORMS = """\
{"step": 10, "tokens": 159744, "layer": 0, "proj": "q", "grad_norm": 0.001068115234375, "weight_norm": 10.5625, \
"update_norm": 0.416015625, "effective_rank": 412.4607238769531}
{"step": 10, "tokens": 159744, "layer": 0, "proj": "k", "grad_norm": 0.00098419189453125, "weight_norm": 7.59375, \
"update_norm": 0.333984375, "effective_rank": 236.88088989257812}
"""
ALIGNMENT = """\
{"step": 10, "tokens": 159744, "layer": 0, "proj": "q", "alignment": 0.09221427142620087}
{"step": 10, "tokens": 159744, "layer": 0, "proj": "k", "alignment": 0.1262201964855194}
"""
# fmt: on


def write_published(folder: Path) -> None:
    """The files as they were published, without accuracies and times."""
    for (optimizer, seed), losses in LOSSES.items():
        run = folder / "experiment_01" / f"{optimizer}_seed{seed}"
        run.mkdir(parents=True)
        config = {"optimizer_type": optimizer, "muon_lr": 0.024, "adamw_lr": 0.0005, "batch_size": 8}
        rate = config["muon_lr" if optimizer == "muon" else "adamw_lr"]
        history = {"steps": STEPS, "val_losses": losses, "learning_rates": [rate] * 9, "manifold_history": []}
        told = {"actual_steps": 103_760, "tokens_seen": 1_700_003_840, "train_tokens": 1_700_000_000}
        (run / "config.yaml").write_text(f'optimizer_type: "{optimizer}"\nseed: {seed}\ntrain_tokens: 1700000000\n')
        metrics = {"final_metrics": {"val_loss": losses[-1]}, **told, "experiment_config": config, "history": history}
        (run / "metrics.json").write_text(json.dumps(metrics))
    raw = folder / "experiment_00" / "muon_dry_run" / "metrics" / "raw"
    raw.mkdir(parents=True)
    (folder / "experiment_00" / "config.yaml").write_text("optimizer_type: muon\nmuon_lr: 0.02\nbatch_size: 2\n")
    (raw / "norms.jsonl").write_text(NORMS)
    (raw / "alignment.jsonl").write_text(ALIGNMENT)


def test_the_known_answer_of_six_public_runs(muon: Muon, tmp_path: Path) -> None:
    write_published(tmp_path / "older")
    done = muon("import", "older", "--baseline", "adamw")
    assert done.code == 0, done.err
    runs = imported(tmp_path).runs.select("run_id", "optimizer", "seed")
    rows = imported(tmp_path).val.join(runs, on="run_id").sort("step").collect()
    found = dict(rows.group_by("optimizer", "seed"))
    assert {key: group["val_loss"].to_list() for key, group in found.items()} == LOSSES
    assert (
        "muon: lower than adamw: −0.0582 nats (−1.73 %), 95 % interval −0.0907 to −0.0256 nats; better in 3 of 3"
        in (" ".join(done.out.split()))
    )
    (arm,) = [arm for arm in answer(tmp_path).arms if arm.comparison]
    assert arm.comparison is not None
    assert (arm.comparison.better, arm.comparison.n, arm.arm) == (3, 3, "muon")
    assert arm.comparison.difference_interval == pytest.approx((-0.0907, -0.0256), abs=5e-5)
    names = ["muon batch_size=2 muon_lr=0.02 steps=unknown", "adamw", "muon"]
    assert [one.arm for one in answer(tmp_path).arms] == names


def test_the_first_lines_of_a_public_log(muon: Muon, tmp_path: Path) -> None:
    write_published(tmp_path / "older")
    muon("import", "older/experiment_00")
    (q,) = imported(tmp_path).layers.filter(projection="q").collect().iter_rows(named=True)
    assert {name: value for name, value in q.items() if value is not None and name not in ("run_id", "attempt")} == {
        "seq": 0, "step": 10, "tokens": 159_744, "layer": 0, "projection": "q",
        "grad_norm": 0.001068115234375, "weight_norm": 10.5625, "update_norm": 0.416015625,
        "effective_rank": pytest.approx(412.4607238769531), "entropy": pytest.approx(math.log(412.4607238769531)),
        "update_alignment": pytest.approx(0.09221427142620087), "left_alignment": pytest.approx(0.09221427142620087),
    }  # fmt: skip
    (run,) = imported(tmp_path).runs.collect().iter_rows(named=True)
    assert (run["optimizer"], run["lr"], run["seed"], run["status"], run["steps"]) == (
        "muon",
        0.02,
        None,
        "stopped",
        10,
    )
    plain = pl.read_parquet(tmp_path / "results/final/table=layers/**/*.parquet", hive_partitioning=True)
    assert plain.height == 2
