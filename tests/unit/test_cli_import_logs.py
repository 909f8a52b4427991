"""`muon import` of other tools' logs, and `muon export` of what is in the store."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import test_cli
from test_cli import Muon
from test_imports_formats import CHART, TABLE, modded, write

from analysis.history import history
from analysis.store import open_store
from muon_core.store.folder import Folder
from muon_core.store.sweeps import SweepRecord, SweepRun, write_sweep
from muon_core.store.writer import RunWriter

muon = test_cli.muon


def losses(store: str = "results") -> list[tuple[Any, ...]]:
    """(optimizer, seed, step, val_loss) of every evaluation."""
    opened = open_store(store)
    rows = opened.val.join(opened.runs.select("run_id", "optimizer", "seed"), on="run_id")
    return rows.select("optimizer", "seed", "step", "val_loss").sort(pl.all()).collect().rows()


def test_dry_run_shows_the_guesses_and_writes_nothing(muon: Muon, tmp_path: Path) -> None:
    write(tmp_path, {"runs.csv": TABLE})
    ended = muon("import", "runs.csv", "--dry-run")
    assert ended.code == 0
    assert "  val_acc -> val_accuracy: percent, divided by 100\n" in ended.out
    assert "runs.csv/1-muon: muon, seed 1, 2 evaluations, last val_loss 3.271849632263184\n" in ended.out
    assert [line.split() for line in ended.out.splitlines()[-3:]] == [
        ["arm", "runs", "seeds", "steps"],
        ["adamw", "1", "1", "10"],
        ["muon", "2", "1,", "2", "10"],
    ]
    assert ended.err.endswith("3 runs would be imported; nothing was written\n")
    assert not (tmp_path / "results").exists()


def test_dry_run_tells_arms_apart_as_the_import_does(muon: Muon, tmp_path: Path) -> None:
    rows = [f"{lr},{seed},{step},3.5" for lr in (0.1, 0.2) for seed in (1, 2) for step in (0, 10)]
    write(tmp_path, {"t.csv": "\n".join(["lr,seed,step,val_loss", *rows, ""]), "one.csv": "step,train_loss\n4,2.5\n"})
    names = [line.split("  ")[0] for line in muon("import", "t.csv", "--dry-run").out.splitlines()[-3:]]
    done = muon("import", "t.csv")
    assert [line.split("  ")[0] for line in done.out.splitlines()[-3:]] == names
    assert names == ["arm", "unknown lr=0.1", "unknown lr=0.2"]
    alone = muon("import", "one.csv", "--dry-run")
    assert "one.csv: unknown optimizer, no seed, 1 training row\n" in alone.out
    assert alone.out.splitlines()[-1].split() == ["one.csv", "1", "none", "4"]
    assert alone.err.endswith("1 run would be imported; nothing was written\n")


def test_dry_run_takes_a_copy_for_the_same_run_as_the_import_does(muon: Muon, tmp_path: Path) -> None:
    rows = "".join(f"m{seed},muon,{seed},{step},3.{seed}\n" for seed in (1, 2) for step in (0, 10))
    write(tmp_path, {f"logs/{copy}/t.csv": f"run,optimizer,seed,step,val_loss\n{rows}" for copy in "ab"})
    dry = muon("import", "logs", "--dry-run")
    assert dry.out.splitlines()[-1].split() == ["muon", "2", "1,", "2", "10"]
    assert dry.err.endswith("2 runs would be imported; nothing was written\n")
    assert "repeat a seed" not in dry.err
    assert "logs: 2 runs imported, 2 were there already" in muon("import", "logs").err


def test_dry_run_of_nothing_that_can_be_read_shows_no_arms(muon: Muon, tmp_path: Path) -> None:
    write(tmp_path, {"old/run/metrics.json": '{"history": {'})
    dry = muon("import", "old", "--dry-run")
    assert (dry.code, dry.out) == (3, "")
    assert "left out: run: " in dry.err
    assert dry.err.endswith("0 runs would be imported; nothing was written\n")


def test_a_table_with_a_baseline_in_other_letters_has_a_report(muon: Muon, tmp_path: Path) -> None:
    rows = [
        f"{name},{seed},10,{3 + seed / 100 + (name == 'AdamW')}" for name in ("AdamW", "Muon") for seed in (1, 2, 3)
    ]
    write(tmp_path, {"runs.csv": "\n".join(["optimizer,seed,step,val_loss", *rows, ""])})
    assert (
        "--baseline: no run has the optimizer 'sgd' to be the baseline; there are AdamW, Muon"
        in muon("import", "runs.csv", "--dry-run", "--baseline", "sgd").err
    )
    assert muon("import", "runs.csv", "--baseline", "adamw").code == 0
    ended = muon("report", "runs", "-o", "report")
    assert ended.code == 0, ended.err
    assert "Muon: lower than AdamW" in ended.out


def test_importing_again_adds_nothing_and_a_grown_file_what_is_new(muon: Muon, tmp_path: Path) -> None:
    write(tmp_path, {"runs.csv": TABLE})
    assert muon("import", "runs.csv", "--baseline", "adamw").code == 0
    first = losses()
    assert len(first) == 6
    assert "runs: 0 runs imported, 3 were there already" in muon("import", "runs.csv").err
    assert losses() == first
    (tmp_path / "runs.csv").write_text(TABLE.rpartition("10,")[0] + "20,3.125,47,2,1,adamw\n0,10.5,0,0,3,muon\n")
    grown = muon("import", "runs.csv")
    assert "runs: 1 run imported, 1 has grown, 2 were there already" in grown.err
    assert sorted(set(losses()) - set(first)) == [("adamw", 1, 20, 3.125), ("muon", 3, 0, 10.5)]
    assert len(losses()) == 8


def test_runs_of_a_table_that_begin_alike_are_several(muon: Muon, tmp_path: Path) -> None:
    table = "run,step,val_loss\na,0,10.8\nb,0,10.8\nb,10,4.5\nc,0,10.8\nc,10,4.5\n"
    write(tmp_path, {"t.csv": table})
    assert "t: 3 runs imported, 0 were there already" in muon("import", "t.csv").err
    assert "t: 0 runs imported, 3 were there already" in muon("import", "t.csv").err
    (tmp_path / "t.csv").write_text(table + "a,10,4.25\n")
    assert "t: 0 runs imported, 1 has grown, 2 were there already" in muon("import", "t.csv").err
    assert sorted(row[2:] for row in losses()) == [(0, 10.8)] * 3 + [(10, 4.25), (10, 4.5), (10, 4.5)]


def test_tables_of_one_name_in_two_folders_are_two(muon: Muon, tmp_path: Path) -> None:
    write(tmp_path, {f"{name}/t.csv": f"step,val_loss\n0,10.8\n10,{loss}\n" for name, loss in (("a", 4), ("b", 5))})
    muon("import", "a/t.csv", "--name", "both")
    assert "both: 1 run imported, 0 were there already" in muon("import", "b/t.csv", "--name", "both").err
    assert sorted(row[3] for row in losses() if row[2] == 10) == [4.0, 5.0]


def test_runs_of_a_chart_are_arms_by_their_names(muon: Muon, tmp_path: Path) -> None:
    write(tmp_path, {"chart.csv": CHART})
    ended = muon("import", "chart.csv")
    assert ended.code == 0
    assert open_store("results").runs.select("arm", "seed").sort("seed").collect().rows() == [("muon", 1), ("muon", 2)]


def test_logs_without_seeds_are_one_arm_of_many(muon: Muon, tmp_path: Path) -> None:
    base = {f"tuned/{i}.txt": modded(3.27 + i / 1000, "None") for i in range(4)}
    other = {f"fresh/{i}.txt": modded(3.26 + i / 1000, "None", lr=0.05) for i in range(3)}
    write(tmp_path / "logs", base | other)
    ended = muon("import", "logs", "--baseline", "tuned")
    assert ended.code == 0, ended.err
    means = open_store("results").runs.group_by("arm").agg(pl.len(), pl.col("final_val_loss").mean()).sort("arm")
    assert means.collect().rows() == [("fresh", 3, pytest.approx(3.261)), ("tuned", 4, pytest.approx(3.2715))]
    assert "unpaired, for not all runs tell their seed" in " ".join(ended.out.split())


def test_tables_beside_the_older_project_are_named(muon: Muon, tmp_path: Path) -> None:
    metrics = {"history": {"steps": [10], "val_losses": [3.5]}, "actual_steps": 10, "tokens_seen": 640}
    write(tmp_path, {"old/run/metrics.json": json.dumps(metrics), "old/runs.csv": TABLE})
    ended = muon("import", "old")
    assert ended.code == 0
    assert "not looked at, as others are of the older project: runs.csv; import each by itself\n" in ended.err
    assert muon("import", "old", "--dry-run").err.endswith("1 run would be imported; nothing was written\n")
    assert muon("import", "old", "--map", "step=it").code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["t.csv"], "t.csv has no loss among step, metric_a; name it with --map val_loss=COLUMN"),
        (["t.csv", "--map", "loss=metric_a"], "--map knows no 'loss' (did you mean 'val_loss'?)"),
        (["none.csv"], "none.csv is no file or folder; give a log, or the folder that holds the runs"),
        (["empty"], "empty holds no file that may be a log; understood are table"),
        (["x.log"], "x.log is no log of a known format; understood are table"),
    ],
)
def test_refusals_are_one_line(muon: Muon, tmp_path: Path, arguments: list[str], message: str) -> None:
    write(tmp_path, {"t.csv": "step,metric_a\n1,3.5\n", "x.log": "hello\n"})
    (tmp_path / "empty").mkdir()
    ended = muon("import", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_optimizer_of_logs_that_name_none(muon: Muon, tmp_path: Path) -> None:
    write(tmp_path, {"a.csv": "step,val_loss\n0,5\n10,4.5\n", "b.csv": "step,val_loss\n0,5.5\n10,4\n"})
    muon("import", "a.csv", "--name", "both", "--optimizer", "adamw", "--baseline", "adamw")
    ended = muon("import", "b.csv", "--name", "both", "--optimizer", "muon")
    assert ended.code == 0
    assert losses() == [
        ("adamw", None, 0, 5.0),
        ("adamw", None, 10, 4.5),
        ("muon", None, 0, 5.5),
        ("muon", None, 10, 4.0),
    ]


# ---- export


def trained_store(root: Path) -> None:
    """A sweep of two runs whose numbers have all their digits, one of which diverged."""
    storage = Folder(root)
    for seed, end in ((1, 3.2718496322631836), (2, math.inf)):
        writer = RunWriter(storage, f"muon-s{seed}-0badcafe", {"arm": "muon", "optimizer": "muon", "seed": seed})
        for step, loss in ((0, 10.412893771648408), (10, end)):
            writer.emit(
                "train",
                step=step,
                tokens=step * 64,
                train_loss=loss / 3,
                lr=0.02 / 3,
                grad_norm=1.1,
                elapsed_s=step + 0.1,
            )
            writer.emit("val", step=step, tokens=step * 64, val_loss=loss, val_accuracy=0.1 / 3, elapsed_s=step + 0.7)
        writer.end(status="done" if seed == 1 else "diverged", steps=10)
    runs = tuple(
        SweepRun(run_id=f"muon-s{seed}-0badcafe", block="muon", role="baseline", arm="muon", seed=seed)
        for seed in (1, 2)
    )
    write_sweep(storage, SweepRecord(sweep="demo", spec={"name": "demo"}, runs=runs))


def curves(store: str, sweep: str) -> pl.DataFrame:
    return history(open_store(store).sweep(sweep)).drop("run", "arm").sort("seed", "step", "elapsed_s").collect()


@pytest.mark.parametrize(("format", "place"), [("csv", "demo.csv"), ("wandb-jsonl", "demo-wandb-jsonl")])
def test_what_is_exported_is_imported_to_the_last_digit(muon: Muon, tmp_path: Path, format: str, place: str) -> None:
    trained_store(tmp_path / "results")
    ended = muon("export", "demo", "--to", format)
    assert (ended.code, ended.out, ended.err) == (0, f"{place}\n", f"2 runs of demo as {format}\n")
    assert muon("import", place, "--name", "demo", "--store", "again").code == 0
    assert curves("again", "demo").equals(curves("results", "demo"))
    assert curves("again", "demo").height == 8
    runs = open_store("again").runs.select("optimizer", "seed", "steps").sort("seed").collect().rows()
    assert runs == [("muon", 1, 10), ("muon", 2, 10)]


def test_tensorboard_has_the_scalars_of_each_run(muon: Muon, tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c  # noqa: F401  # the format's own module

    trained_store(tmp_path / "results")
    assert muon("export", "muon-s1", "--to", "tensorboard", "-o", "events").code == 0
    (file,) = (tmp_path / "events" / "muon-s1-0badcafe").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # a record: its length of 8 bytes, 4 of their sum, the event, 4 of its sum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert found["val/loss", 10] == pytest.approx(3.2718496322631836, abs=1e-6)
    assert found["train/lr", 0] == pytest.approx(0.02 / 3, rel=1e-6)


def test_export_overwrites_nothing(muon: Muon, tmp_path: Path) -> None:
    trained_store(tmp_path / "results")
    (tmp_path / "demo.csv").write_text("mine")
    ended = muon("export", "demo", "--to", "csv")
    assert (ended.code, ended.err) == (2, "muon: demo.csv is there already; give another place with -o, or remove it\n")
    assert (tmp_path / "demo.csv").read_text() == "mine"


def test_export_of_one_run_has_json_that_any_reader_takes(muon: Muon, tmp_path: Path) -> None:
    trained_store(tmp_path / "results")
    assert muon("export", "muon-s2", "--to", "wandb-jsonl", "-o", "out").code == 0
    text = (tmp_path / "out" / "muon-s2-0badcafe" / "wandb-history.jsonl").read_text()
    lines = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in text.splitlines()]
    assert [line.get("val_loss") for line in lines] == [None, 10.412893771648408, None, "Infinity"]
    assert [line["_step"] for line in lines] == [0, 1, 2, 3]
