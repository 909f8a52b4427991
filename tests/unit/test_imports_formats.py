"""Logs of other tools, written here after the public shapes of their files: every value to its last digit.

Shapes: Lightning's CSVLogger (2.6), Ray Tune's JSON and CSV callbacks (2.60), transformers' TrainerState (5.24), W&B's
run folders and chart exports, and what modded-nanogpt, nanochat and llm.c print.
"""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from muon_core.imports.log import UnreadableLog
from muon_core.imports.mapping import parse_map
from muon_core.imports.read import ReadLogs, read_logs
from muon_core.legacy.arms import arm_id
from muon_core.legacy.imported import ImportedRun


def read(path: Path, *maps: str, optimizer: str | None = None) -> ReadLogs:
    return read_logs(path, parse_map(maps), optimizer)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def only(found: ReadLogs) -> ImportedRun:
    (run,) = found.runs
    return run


def values(rows: list[dict[str, Any]], *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row.get(column) for column in columns) for row in rows]


TABLE = """\
step,val_loss,val_acc,minutes,seed,optimizer
0,10.412893771648408,0.5,0,1,muon
10,3.2718496322631841,44.25,1.5,1,muon
0,10.39725112915039,0.5,0,2,muon
10,3.2981047630310059,43.5,1.75,2,muon
0,10.412893771648408,0.5,0,1,adamw
10,3.4027183055877686,40.125,1.25,1,adamw
10,3.40271
"""


def test_table_has_a_run_a_seed_and_optimizer(tmp_path: Path) -> None:
    found = read(write(tmp_path, {"runs.csv": TABLE}) / "runs.csv")
    assert [(run.optimizer, run.seed) for run in found.runs] == [("muon", 1), ("muon", 2), ("adamw", 1)]
    assert values(found.runs[0].val, "step", "val_loss", "val_accuracy", "elapsed_s") == [
        (0, 10.412893771648408, 0.005, 0.0),
        (10, 3.2718496322631841, 0.4425, 90.0),
    ]
    assert found.runs[0].steps == 10
    assert found.runs[0].wall_s == 90.0
    assert [str(reading) for reading in found.guesses[0].readings] == [
        "step -> step",
        "seed -> seed",
        "optimizer -> optimizer",
        "val_loss -> val_loss: nats per token",
        "val_acc -> val_accuracy: percent, divided by 100",
        "minutes -> elapsed_s: minutes, times 60",
    ]
    assert list(found.notes) == ["1 of 7 lines are torn or have no step, and are left out"]


def test_json_lines_and_parquet_are_the_same_table(tmp_path: Path) -> None:
    rows = [
        {"step": step, "val_loss": loss, "run": run, "config": {"lr": lr, "width": 64}}
        for run, lr in (("a", 0.1), ("b", 0.2))
        for step, loss in ((0, 10.412893771648408), (10, 3.1 + lr / 3))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write(tmp_path, {"t.jsonl": lines + '{"step": 20, "val_l\n[1, 2]\n'})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    from_lines, from_parquet = read(tmp_path / "t.jsonl"), read(tmp_path / "t.parquet")
    assert [run.val for run in from_lines.runs] == [run.val for run in from_parquet.runs]
    assert [run.config for run in from_lines.runs] == [
        {"config/lr": 0.1, "config/width": 64},
        {"config/lr": 0.2, "config/width": 64},
    ]
    assert from_lines.runs[1].val[1]["val_loss"] == 3.1 + 0.2 / 3
    assert list(from_lines.notes) == ["2 of 6 lines are torn or have no step, and are left out"]


def test_long_tables_become_wide(tmp_path: Path) -> None:
    by_metric = "step,metric,value\n0,val_loss,4.5\n0,train_loss,4.25\n5,val_loss,4.125\n"
    by_split = "step,split,loss\n0,train,4.25\n0,val,4.5\n5,val,4.125\n"
    write(tmp_path, {"m.csv": by_metric, "s.csv": by_split})
    for name in ("m.csv", "s.csv"):
        run = only(read(tmp_path / name))
        assert values(run.val, "step", "val_loss") == [(0, 4.5), (5, 4.125)]
        assert values(run.train, "step", "train_loss") == [(0, 4.25)]


def test_what_stays_the_same_in_a_run_is_a_parameter(tmp_path: Path) -> None:
    table = "run,step,val_loss,wd,lr,depth,gpu\n" + "".join(
        f"{run},{step},{4 - step / 10},{wd},0.02,4,{step}\n" for run, wd in (("a", 0.1), ("b", 0.2)) for step in (0, 10)
    )
    found = read(write(tmp_path, {"t.csv": table}) / "t.csv")
    assert [run.config for run in found.runs] == [{"wd": wd, "lr": 0.02, "depth": 4} for wd in (0.1, 0.2)]
    assert found.guesses[0].left_out == {"gpu"}
    found = read(tmp_path / "t.csv", "config.depth=")
    assert [run.config for run in found.runs] == [{"wd": wd, "lr": 0.02} for wd in (0.1, 0.2)]


def test_one_line_a_run_has_the_numbers_that_runs_share_as_parameters(tmp_path: Path) -> None:
    lines = [f"cosmic-{i},finished,2024-01-0{i},muon,0.{1 + i // 3},{i},1000,3.{i},11.{i}" for i in range(1, 5)]
    header = "Name,State,Created,optimizer,wd,seed,_step,val/loss,gpu_mem"
    found = read(write(tmp_path, {"t.csv": "\n".join([header, *lines])}) / "t.csv")
    assert [(run.config, run.seed, run.steps) for run in found.runs] == [
        ({"wd": 0.1}, 1, 1000), ({"wd": 0.1}, 2, 1000), ({"wd": 0.2}, 3, 1000), ({"wd": 0.2}, 4, 1000),
    ]  # fmt: skip


def test_runs_without_a_name_begin_where_steps_begin_anew(tmp_path: Path) -> None:
    found = read(write(tmp_path, {"t.csv": "step,val_loss\n0,5\n10,4\n0,5.5\n10,4.5\n"}) / "t.csv")
    assert [(run.folder, run.val[-1]["val_loss"]) for run in found.runs] == [("t.csv/1", 4.0), ("t.csv/2", 4.5)]


def test_rows_of_runs_that_lie_among_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"t.csv": "step,val_loss,who\n0,5,1\n0,5.5,2\n10,4,1\n10,4.5,2\n"})
    with pytest.raises(
        UnreadableLog, match=r"unlike values at step 0 .* --map run=COLUMN .* there are step, val_loss, who"
    ):
        read(tmp_path / "t.csv")
    assert [run.val[-1]["val_loss"] for run in read(tmp_path / "t.csv", "run=who").runs] == [4.0, 4.5]


def table(head: str, *cells: tuple[object, ...]) -> str:
    """Two steps of each run, whose cells are before the step."""
    rows = [(*some, step, 9 - step / 10 + i / 100) for i, some in enumerate(cells) for step in (0, 10)]
    return "\n".join([f"{head},step,val_loss", *(",".join(map(str, row)) for row in rows), ""])


RUN_NAMES = ("run", "Run Name", "run_label", "trial", "name", "job_id", "exp", "exp_name", "experiment", "exp_id")


@pytest.mark.parametrize("column", RUN_NAMES)
def test_names_of_runs_are_no_parameter(tmp_path: Path, column: str) -> None:
    cells = [(f"{optimizer}{seed}x", optimizer, seed) for optimizer in ("adamw", "muon") for seed in (1, 2)]
    found = read(write(tmp_path, {"t.csv": table(f"{column},optimizer,seed", *cells)}))
    assert sorted(run.folder for run in found.runs) == [f"t.csv/{name}" for name, *_ in cells]
    assert len({arm_id(run) for run in found.runs}) == 2
    assert not found.notes


def test_a_second_name_of_a_run_is_no_parameter(tmp_path: Path) -> None:
    cells = [(f"{optimizer}{i}", i, "lr-scan", optimizer) for i, optimizer in enumerate(["adamw"] * 2 + ["muon"] * 2)]
    found = read(write(tmp_path, {"t.csv": table("run_name,trial,experiment,optimizer", *cells)}))
    assert [run.config for run in found.runs] == [{"experiment": "lr-scan"}] * 4
    assert len({arm_id(run) for run in found.runs}) == 2


def test_a_name_that_several_seeds_share_is_their_setting(tmp_path: Path) -> None:
    cells = [(name, seed) for name in ("base", "wide") for seed in (1, 2)]
    path = write(tmp_path, {"t.csv": table("experiment,seed", *cells)})
    found = read(path)
    assert sorted((run.optimizer, run.seed, len(run.val)) for run in found.runs) == [(*cell, 2) for cell in cells]
    assert list(found.notes) == [
        "experiment has several values of seed under one name: each is a run",
        "it tells no optimizer: what experiment says stands for it",
    ]
    given = read(path, optimizer="muon").runs
    assert sorted((run.optimizer, run.config["run"], run.seed) for run in given) == [("muon", *cell) for cell in cells]


@pytest.mark.parametrize("lines_of_a_run_lie_together", [True, False])
def test_a_name_that_several_settings_share_is_no_run(tmp_path: Path, lines_of_a_run_lie_together: bool) -> None:
    grid = [(lr, wd) for lr in (0.1, 0.2) for wd in (0, 1)]
    head, *lines = table("exp,lr,wd,phase", *(("scan", *cell, "full") for cell in grid)).splitlines()
    rows = lines if lines_of_a_run_lie_together else sorted(lines, key=lambda line: line.split(",")[4])
    found = read(write(tmp_path, {"t.csv": "\n".join([head, *rows, ""])}))
    assert sorted((run.lr, run.config["wd"], len(run.val), run.optimizer) for run in found.runs) == [
        (*cell, 2, "scan") for cell in grid
    ]
    assert "exp has several values of lr and wd under one name: each is a run" in found.notes


@pytest.mark.parametrize("column", ["run", "exp"])
def test_a_run_that_goes_on_elsewhere_stays_one(tmp_path: Path, column: str) -> None:
    """Neither the host nor the time of a line tells runs apart, nor what an evaluation has beside training."""
    rows = ["a,0,9.0,,h1,train,10", "a,0,,9.1,h1,eval,11", "a,10,8.0,,h1,train,12", "a,5,8.5,,h2,train,13",
            "a,10,8.1,,h2,train,14"]  # fmt: skip
    table = "\n".join([f"{column},step,train_loss,val_loss,machine,event,clock", *rows, ""])
    run = only(read(write(tmp_path, {"t.csv": table})))
    assert values(run.train, "step", "train_loss") == [(0, 9.0), (5, 8.5), (10, 8.1)]
    assert values(run.val, "step", "val_loss") == [(0, 9.1)]


def test_a_number_that_optimizers_share_counts_their_runs(tmp_path: Path) -> None:
    cells = [(optimizer, trial) for optimizer in ("adamw", "muon") for trial in (1, 2, 3)]
    found = read(write(tmp_path, {"t.csv": table("optimizer,trial", *cells)}))
    assert len(found.runs) == 6
    assert len({arm_id(run) for run in found.runs}) == 2


def test_texts_that_differ_in_every_run_are_told(tmp_path: Path) -> None:
    cells = [(f"{optimizer}{seed}x", optimizer, seed) for optimizer in ("adamw", "muon") for seed in (1, 2)]
    path = write(tmp_path, {"t.csv": table("label,optimizer,seed", *cells)})
    (note,) = read(path).notes
    assert note == (
        "label is another text in each of the 4 runs, and counts as a parameter; if it only names them: --map run=label"
    )
    mapped = read(path, "run=label")
    assert len({arm_id(run) for run in mapped.runs}) == 2
    assert not mapped.notes


def test_lines_without_a_run_are_counted(tmp_path: Path) -> None:
    found = read(write(tmp_path, {"t.csv": "run,step,val_loss\na,0,5\n,0,6\na,10,4\n"}) / "t.csv")
    assert values(only(found).val, "step", "val_loss") == [(0, 5.0), (10, 4.0)]
    assert list(found.notes) == ["1 line left out: no run is named there"]


def test_resumed_steps_count_once(tmp_path: Path) -> None:
    run = only(read(write(tmp_path, {"t.csv": "step,val_loss\n0,5\n10,4\n20,3\n10,4\n20,3.5\n"}) / "t.csv"))
    assert values(run.val, "step", "val_loss") == [(0, 5.0), (10, 4.0), (20, 3.5)]
    assert run.notes == ["2 of 5 lines repeat a step, 1 of them with other values; the last line of each counts"]


CHART = (
    '"Step","muon-s1 - val/loss","muon-s1 - val/loss__MIN","muon-s1 - val/loss__MAX",'
    '"muon-s2 - val/loss","muon-s2 - val/loss__MIN","muon-s2 - val/loss__MAX"\n'
    '"0","10.412893771648408","10.412893771648408","10.412893771648408","","",""\n'
    '"10","3.2718496322631841","3.27","3.28","3.2981047630310059","3.2981047630310059","3.2981047630310059"\n'
)


def test_wandb_chart_has_a_column_a_run(tmp_path: Path) -> None:
    found = read(write(tmp_path, {"chart.csv": CHART}) / "chart.csv")
    assert [(run.folder, run.optimizer, run.seed) for run in found.runs] == [
        ("chart.csv/muon-s1", "muon", 1),
        ("chart.csv/muon-s2", "muon", 2),
    ]
    assert values(found.runs[0].val, "step", "val_loss") == [(0, 10.412893771648408), (10, 3.2718496322631841)]
    assert values(found.runs[1].val, "step", "val_loss") == [(10, 3.2981047630310059)]
    assert [note.partition(",")[0] for note in found.notes] == [
        "1 value of a range", "the seed is from the name of its run", "the optimizer is from the name of its run",
    ]  # fmt: skip


def test_wandb_history_and_its_config(tmp_path: Path) -> None:
    lines = [
        {"_step": 0, "_runtime": 1.5, "_timestamp": 1700000000.0, "step": 0, "val/loss": 10.412893771648408},
        {"_step": 1, "_runtime": 2.5, "step": 50, "train/loss": 5.25, "train/lr": 0.02},
        {"_step": 2, "_runtime": 3.5, "step": 100, "val/loss": "NaN"},
    ]
    config = (
        "wandb_version: 1\n_wandb: {desc: null, value: {cli_version: 0.19.0}}\n"
        "lr: {desc: null, value: 0.02}\nseed: {value: 5}\n"
    )
    folder = "wandb/run-20250101_000000-abc/files"
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"_step": 3, "_runti'
    write(tmp_path, {f"{folder}/wandb-history.jsonl": text, f"{folder}/config.yaml": config})
    found = read(tmp_path)
    run = only(found)
    assert (run.seed, run.config, run.lr) == (5, {"lr": 0.02, "seed": 5}, 0.02)
    assert values(run.val, "step", "elapsed_s")[1] == (100, 3.5)
    assert run.val[0]["val_loss"] == 10.412893771648408
    assert math.isnan(run.val[1]["val_loss"])
    assert values(run.train, "step", "train_loss", "lr") == [(50, 5.25, 0.02)]
    assert list(found.notes) == ["1 of 4 lines are torn or have no step, and are left out"]


def test_bits_per_byte_need_the_bytes_of_a_token(tmp_path: Path) -> None:
    line = '{"_step": 1, "step": 100, "val/bpb": 1.25}\n'
    write(tmp_path, {"wandb-history.jsonl": line})
    with pytest.raises(UnreadableLog, match=r"no loss among .*bytes_per_token=N"):
        read(tmp_path / "wandb-history.jsonl")
    run = only(read(tmp_path / "wandb-history.jsonl", "bytes_per_token=4.8"))
    assert run.val[0]["val_loss"] == 1.25 * math.log(2) * 4.8


def test_lightning_puts_training_and_validation_into_two_lines(tmp_path: Path) -> None:
    metrics = (
        "epoch,lr-AdamW,step,train_loss,val_loss\n"
        "0,0.02,49,,\n0,,49,4.8125,\n0,,99,3.90625,\n0,,99,,3.7000000476837158\n"
    )
    hparams = "lr: 0.02\noptimizer: adamw\nseed: 7\n"
    write(tmp_path, {"logs/version_0/metrics.csv": metrics, "logs/version_0/hparams.yaml": hparams})
    run = only(read(tmp_path))
    assert (run.optimizer, run.seed, run.config["lr"]) == ("adamw", 7, 0.02)
    assert values(run.val, "step", "val_loss") == [(99, 3.7000000476837158)]
    assert values(run.train, "step", "train_loss") == [(49, 4.8125), (99, 3.90625)]
    assert run.notes == []


def test_parameters_that_only_python_reads_are_not_known(tmp_path: Path) -> None:
    hparams = "out: !!python/object/apply:pathlib.PosixPath [out]\nlr: 0.1\n"
    write(tmp_path, {"r/version_0/metrics.csv": "epoch,step,val_loss\n0,9,4.5\n", "r/version_0/hparams.yaml": hparams})
    found = read(tmp_path)
    assert only(found).config == {}
    assert [note.partition(" (")[0] for note in found.notes] == ["hparams.yaml is no plain YAML"]


def ray_trial() -> dict[str, str]:
    config = {"model": {"width": 64}, "optimizer": {"name": "muon", "lr": 0.02}, "seed": 3}
    results = [
        {"val_loss": loss, "timestamp": 1700000000 + i, "training_iteration": i, "trial_id": "aaaa_00000",
         "time_this_iter_s": 1.5, "time_total_s": 1.5 * i, "pid": 1, "hostname": "h", "done": i == 2, "config": config}
        for i, loss in ((1, 4.125), (2, 3.2718496322631841))
    ]  # fmt: skip
    columns = [name for name in results[0] if name != "config"]
    progress = "\n".join([",".join(columns), *(",".join(str(row[name]) for name in columns) for row in results)])
    return {
        "train_aaaa_00000/result.json": "".join(json.dumps(row) + "\n" for row in results),
        "train_aaaa_00000/progress.csv": progress + "\n",
        "train_aaaa_00000/params.json": json.dumps(config, indent=2),
    }


@pytest.mark.parametrize("left_out", ["progress.csv", "result.json", ""])
def test_ray_trial_is_read_once(tmp_path: Path, left_out: str) -> None:
    files = {name: text for name, text in ray_trial().items() if not left_out or not name.endswith(left_out)}
    run = only(read(write(tmp_path, files)))
    assert (run.optimizer, run.seed, run.lr, run.config["model"]) == ("muon", 3, 0.02, {"width": 64})
    assert values(run.val, "step", "val_loss", "elapsed_s") == [(1, 4.125, 1.5), (2, 3.2718496322631841, 3.0)]


def trainer_state(global_step: int, *entries: dict[str, Any]) -> str:
    return json.dumps(
        {"epoch": 1.0, "global_step": global_step, "max_steps": 20, "log_history": list(entries)}, indent=2
    )


def test_hugging_face_state_of_the_last_checkpoint(tmp_path: Path) -> None:
    first = [
        {"epoch": 0.5, "grad_norm": 1.0625, "learning_rate": 4.8e-06, "loss": 4.125, "step": 10},
        {
            "epoch": 0.5,
            "eval_accuracy": 0.25503355264663696,
            "eval_loss": 3.9386301994323730,
            "eval_runtime": 9.2,
            "step": 10,
        },
    ]
    more = [
        {"epoch": 1.0, "eval_accuracy": 0.5, "eval_loss": 3.5, "step": 20},
        {"epoch": 1.0, "step": 20, "train_loss": 4.0, "train_runtime": 12.5, "train_samples_per_second": 8.0},
    ]
    run = "run_seed3"
    write(
        tmp_path,
        {
            f"{run}/checkpoint-10/trainer_state.json": trainer_state(10, *first),
            f"{run}/checkpoint-20/trainer_state.json": trainer_state(20, *first, *more),
        },
    )
    found = read(tmp_path)
    only_run = only(found)
    assert (only_run.seed, only_run.optimizer, only_run.steps, only_run.wall_s) == (3, "run", 20, 12.5)
    assert values(only_run.val, "step", "val_loss", "val_accuracy") == [
        (10, 3.9386301994323730, 0.25503355264663696),
        (20, 3.5, 0.5),
    ]
    assert values(only_run.train, "step", "train_loss", "lr", "grad_norm") == [(10, 4.125, 4.8e-06, 1.0625)]
    assert "train_loss 4.0 of the summary is a mean over all steps, and is left out" in found.notes


def test_hugging_face_run_that_was_to_go_on_is_stopped(tmp_path: Path) -> None:
    text = trainer_state(10, {"eval_loss": 3.5, "step": 10})
    run = only(read(write(tmp_path, {"r/trainer_state.json": text})))
    assert (run.steps, run.no_end) == (None, "imported log ends at step 10 of 20")


SCRIPT = (
    "import torch\nSEED = {seed}\nlr = {lr}  # of Muon\nprint0(f'step:{{step}}/{{steps}} val_loss:{{loss}}')\n"
    + "=" * 100
)
MODDED = """\
step:0/250 val_loss:10.82584 train_time:0.000s step_avg:nanms
step:1/250 train_time:0.170s step_avg:169.94ms
step:125/250 val_loss:4.58616 train_time:21.243s step_avg:169.94ms
step:250/250 val_loss:{last} train_time:42.598s step_avg:154.84ms
"""


def modded(last: float, seed: object, lr: float = 0.025) -> str:
    return SCRIPT.format(seed=seed, lr=lr) + "\n" + MODDED.format(last=last)


def test_modded_nanogpt_logs_of_one_script_are_one_arm(tmp_path: Path) -> None:
    logs = {f"baseline/{name}.txt": modded(last, seed) for name, last, seed in (("a", 3.2787, 1), ("b", 3.2771, 2))}
    found = read(write(tmp_path, logs | {"baseline/c.txt": modded(3.3, 3, lr=0.03)}))
    assert [(run.optimizer, run.seed, run.steps) for run in found.runs] == [
        ("baseline", 1, 250), ("baseline", 2, 250), ("baseline", 3, 250),
    ]  # fmt: skip
    scripts = [run.config["script"] for run in found.runs]
    assert scripts[0] == scripts[1] != scripts[2]
    assert values(found.runs[0].val, "step", "val_loss", "elapsed_s") == [
        (0, 10.82584, 0.0), (125, 4.58616, 21.243), (250, 3.2787, 42.598),
    ]  # fmt: skip
    assert found.runs[0].train == []


def test_modded_nanogpt_counts_milliseconds_and_torn_lines(tmp_path: Path) -> None:
    text = (
        "step:0/1750 val_loss:10.8258 train_time:0ms step_avg:nanms\n"
        "step:1/1750 train_loss:10.8258 train_time:29542ms step_avg:nanms\n"
        "step:125/1750 val_loss:4.6213 train_time:20124ms step_avg:174.99ms\n"
        "step:126/1750 train_loss:4.5 train_\n"
    )
    found = read(write(tmp_path, {"old.txt": text}) / "old.txt")
    run = only(found)
    assert values(run.val, "step", "val_loss", "elapsed_s") == [(0, 10.8258, 0.0), (125, 4.6213, 20.124)]
    assert values(run.train, "step", "train_loss") == [(1, 10.8258)]
    assert run.no_end == "imported log ends at step 125 of 1,750"
    assert "1 of 4 lines are torn or have no step, and are left out" in found.notes


def test_one_file_may_hold_several_runs(tmp_path: Path) -> None:
    trials = "".join(f"trial:{i}/2 seed:{i + 4}\n" + MODDED.format(last=3 + i / 10) for i in (1, 2))
    found = read(write(tmp_path, {"many.txt": SCRIPT.format(seed=9, lr=0.1) + "\n" + trials}) / "many.txt")
    assert [(run.folder, run.seed, run.val[-1]["val_loss"]) for run in found.runs] == [
        ("many.txt#1", 5, 3.1),
        ("many.txt#2", 6, 3.2),
    ]


def test_a_log_that_is_given_by_itself_goes_by_the_name_of_its_file(tmp_path: Path) -> None:
    folder = write(tmp_path, {"logs/speedrun.txt": modded(3.27, "None"), "logs/fast-s3.txt": modded(3.28, "None")})
    found = read(folder / "logs" / "speedrun.txt")
    assert only(found).optimizer == "speedrun"
    assert "it tells no optimizer: its file, speedrun, stands for it" in found.notes
    run = only(read(folder / "logs" / "fast-s3.txt"))
    assert (run.optimizer, run.seed) == ("fast", 3)
    assert only(read(folder / "logs" / "speedrun.txt", optimizer="muon")).optimizer == "muon"


def test_steps_in_a_name_are_no_seed(tmp_path: Path) -> None:
    names = {"muon-s250": None, "muon-s25": 25, "muon_seed4_s250": 4}
    found = read(write(tmp_path, {f"{name}.txt": modded(3.2787, "None") for name in names}))
    assert {run.folder.removesuffix(".txt"): run.seed for run in found.runs} == names


NANOCHAT = """\
Total batch size 524,288 => gradient accumulation steps: 1
Step 00000 | Validation bpb: 3.112233
step 00000/00200 (0.00%) | loss: 11.090355 | lrm: 0.03 | dt: 26234.42ms | tok/sec: 19,985 | bf16_mfu: 2.57 | epoch: 1 pq: 0 rg: 8 | total time: 0.00m
step 00100/00200 (50.00%) | loss: 6.102512 | lrm: 1.00 | dt: 410.12ms | tok/sec: 1,278,377 | bf16_mfu: 49.9 | epoch: 1 pq: 0 rg: 9 | total time: 0.61m | eta: 0.7m
step 00101/00200 (50.50%) | loss: 6.1
Step 00200 | Validation bpb: 1.250000
"""  # noqa: E501


def test_nanochat_prints_minutes_and_bits_per_byte(tmp_path: Path) -> None:
    found = read(write(tmp_path, {"run.log": NANOCHAT}) / "run.log", "bytes_per_token=4.8")
    run = only(found)
    assert values(run.train, "step", "tokens", "train_loss", "step_time_s", "tokens_per_s", "elapsed_s") == [
        (0, 0, 11.090355, 26234.42 / 1000, 19985.0, 0.0),
        (100, 52428800, 6.102512, 410.12 / 1000, 1278377.0, 0.61 * 60),
    ]
    assert values(run.val, "step", "tokens", "val_loss") == [
        (0, 0, 3.112233 * math.log(2) * 4.8),
        (200, 104857600, 1.25 * math.log(2) * 4.8),
    ]
    assert (run.steps, run.tokens) == (200, 104857600)
    assert "1 of 5 lines are torn or have no step, and are left out" in found.notes
    assert any("smoothed" in note for note in found.notes)
    without = read(tmp_path / "run.log")
    assert only(without).val == []
    assert any("--map bytes_per_token=N" in note for note in without.notes)


def test_llmc_log(tmp_path: Path) -> None:
    text = "s:0 tel:10.968871\ns:0 trl:10.965596 lr:0.000012 norm:15.34\ns:250 tel:6.4523\n"
    run = only(read(write(tmp_path, {"main.log": text}) / "main.log"))
    assert values(run.val, "step", "val_loss") == [(0, 10.968871), (250, 6.4523)]
    assert values(run.train, "step", "train_loss", "lr", "grad_norm") == [(0, 10.965596, 0.000012, 15.34)]


@pytest.mark.parametrize(
    ("name", "text", "nearest"),
    [
        ("notes.txt", "step 100/200 | loss: 5.0 | lr: 0.1\n", "nanochat log"),
        ("state.json", '{"global_step": 10, "history": [{"eval_loss": 3.5}]}\n', "Hugging Face trainer_state.json"),
        ("log.txt", "step:10 val_loss=3.5 train_time:5\n", "modded-nanogpt log"),
    ],
)
def test_what_is_not_understood_names_the_formats_and_the_nearest(
    tmp_path: Path, name: str, text: str, nearest: str
) -> None:
    with pytest.raises(UnreadableLog) as error:
        read(write(tmp_path, {name: text}) / name)
    assert f"the nearest is a {nearest}, as in " in str(error.value)
    assert "Lightning metrics.csv, Ray Tune" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "step,val_loss\n1,high\n", "a.csv: val_loss holds no number, but 'high'"),
        ("b.csv", "step,val_loss\n1\n2\n", "b.csv has no whole line among its 2"),
        ("c.csv", "step,loss,loss\n1,2,3\n", "c.csv has two columns 'loss'; rename one of them"),
        ("d.csv", "step,val_loss\n1.5,3\n", "d.csv: step holds no whole number of steps, such as 100"),
        (
            "run-abc.wandb",
            ":W&B",
            "run-abc.wandb is W&B's own file, which only its library reads; export a chart",
        ),
        ("e.parquet", "PAR1 and no more", "e.parquet is no Parquet that can be read"),
    ],
)
def test_refusals_say_what_is_wrong(tmp_path: Path, name: str, text: str, message: str) -> None:
    for path in (write(tmp_path, {name: text}) / name, tmp_path):
        with pytest.raises(UnreadableLog) as error:
            read(path)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


def test_a_spreadsheet_may_have_decimal_commas(tmp_path: Path) -> None:
    found = read(write(tmp_path, {"t.csv": "\ufeffstep;val_loss;note\n0;10,5;a\n10;3,25;a\n"}) / "t.csv")
    assert values(only(found).val, "step", "val_loss") == [(0, 10.5), (10, 3.25)]
    assert list(found.notes) == ["2 numbers have a comma, which is read as a point"]


def test_a_seed_is_the_same_with_and_without_a_point(tmp_path: Path) -> None:
    found = read(write(tmp_path, {"t.csv": "step,val_loss,seed\n0,5,42\n10,4,42.0\n"}) / "t.csv")
    assert (only(found).seed, only(found).folder, only(found).steps) == (42, "t.csv/42", 10)


def test_other_files_of_a_folder_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"a/t.csv": TABLE, "a/requirements.txt": "torch==2.13.0\n", "b.csv": "step,epoch\n1,2\n"})
    found = read(tmp_path)
    assert len(found.runs) == 3
    assert found.unknown == ["a/requirements.txt"]
    assert found.unread == {"b.csv": "b.csv has no loss among step, epoch; name it with --map val_loss=COLUMN"}
