"""`muon runs ls|show|diff` and `muon compact`."""

import json
from pathlib import Path

import pytest
import test_cli
from support.analysis_fixtures import FakeRun, demo_runs, write_store
from test_cli import Muon

from analysis.store import open_store
from muon_core.store.folder import Folder
from muon_core.store.sweeps import SweepRecord, SweepRun, write_sweep
from muon_core.store.writer import RunWriter
from ray_jobs.cli.runs import differing, spent

muon = test_cli.muon
SPENT = {"data_s": 2.0, "gradients_s": 10.0, "optimizer_s": 4.0, "tracking_s": 1.0, "evaluation_s": 1.0,
         "checkpoint_s": 1.0}  # fmt: skip  # of 20 seconds


@pytest.fixture
def demo(muon: Muon, tmp_path: Path) -> Muon:
    """The command beside a store with four arms at three seeds."""
    write_store(tmp_path / "results", demo_runs())
    return muon


@pytest.fixture
def pair(muon: Muon, tmp_path: Path) -> Muon:
    """The command beside a store with two runs whose records are full."""
    one = SPENT | {"config_json": '{"steps": 200, "optimizer": {"name": "muon", "lr": 0.02, "ns_dtype": "bf16"}}'}
    other = {"config_json": '{"steps": 200, "optimizer": {"name": "adamw", "lr": 0.003}}', "device": "H200"}
    error = {"error": "Traceback (most recent call last):\nValueError: boom", "environment_json": '{"torch": "2.12.0"}'}
    runs = [
        FakeRun("muon", 1, {0: 6.9, 200: 3.5}, facts=one | {"health": "frozen momentum at step 40"}),
        FakeRun("adamw", 1, {0: 6.9}, "failed", facts=other | error),
    ]
    write_store(tmp_path / "results", runs)
    return muon


def test_runs_ls_lists_every_run_once_in_order_of_its_name(demo: Muon) -> None:
    done = demo("runs", "ls")
    header, *rows = done.out.splitlines()
    assert header.split() == [
        "status",
        "run_id",
        "optimizer",
        "lr",
        "alpha",
        "seed",
        "steps",
        "final_val_loss",
        "wall_s",
    ]
    names = [row.split()[1] for row in rows]
    assert len(names) == 12
    assert names == sorted(names)
    assert done.err == "12 rows\nnext: muon runs show adamw-s137-0badcafe\n"


def test_runs_ls_narrows_to_a_condition_and_a_sweep(demo: Muon, tmp_path: Path) -> None:
    found = json.loads(demo("runs", "ls", "--where", "optimizer = 'isotropic' AND status <> 'done'", "--json").out)
    assert [run["run_id"] for run in found] == ["isotropic-s137-0badcafe", "isotropic-s256-0badcafe"]
    assert {"config_json", "init_hash", "error"} <= found[0].keys()
    either = json.loads(demo("runs", "ls", "--where", "seed = 42 OR seed = 137", "--sweep", "demo", "--json").out)
    assert len(either) == 8
    write_sweep(Folder(tmp_path / "results"), SweepRecord(sweep="empty"))
    assert demo("runs", "ls", "--sweep", "empty").err == "0 rows\nnext: muon status\n"


def test_runs_ls_answers_a_wrong_condition_in_one_line(demo: Muon) -> None:
    wrong = demo("runs", "ls", "--where", "seeds = 42")
    assert wrong.code == 2
    assert wrong.err.startswith(
        "muon: no column 'seeds' (did you mean 'seed'?); the columns are runs: run_id, arm_id, "
    )
    assert wrong.err.count("\n") == 1


def test_runs_show_tells_where_the_time_went(pair: Muon) -> None:
    done = pair("runs", "show", "muon")
    assert done.code == 0
    assert "\nhealth\nfrozen momentum at step 40\n" in done.out
    table = done.out.split("\nseconds\n")[1].split("\nconfig\n")[0].splitlines()
    assert [line.split() for line in table] == [
        ["data", "2.0", "10.0%"],
        ["gradients", "10.0", "50.0%"],
        ["optimizer", "4.0", "20.0%"],
        ["tracking", "1.0", "5.0%"],
        ["evaluation", "1.0", "5.0%"],
        ["checkpoint", "1.0", "5.0%"],
        ["other", "1.0", "5.0%"],
        ["wall", "20.0", "100.0%"],
    ]
    assert "  optimizer.ns_dtype  bf16" in done.out.splitlines()
    assert done.err == "next: muon runs diff muon-s1-0badcafe RUN\n"


def test_runs_show_json_holds_config_and_environment_as_objects(pair: Muon) -> None:
    told = json.loads(pair("runs", "show", "adamw-s1", "--json").out)
    assert told["run_id"] == "adamw-s1-0badcafe"
    assert told["sweeps"] == ["demo"]
    assert told["outcome"]["status"] == "failed"
    assert told["config"]["optimizer"] == {"name": "adamw", "lr": 0.003}
    assert (told["environment"]["torch"], told["environment"]["device"]) == ("2.12.0", "H200")
    assert told["seconds"] == {"wall": 20.0}
    assert pair("runs", "show", "adamw-s1").out.endswith(
        "error\nTraceback (most recent call last):\nValueError: boom\n"
    )


def test_runs_show_takes_only_a_beginning_that_is_one_run(demo: Muon) -> None:
    assert demo("runs", "show", "muon-s13").code == 0
    several, none = demo("runs", "show", "muon-s"), demo("runs", "show", "mu-s")
    assert several.code == none.code == 2
    assert several.err == (
        "muon: 3 runs begin with 'muon-s': muon-s137-0badcafe, muon-s256-0badcafe, muon-s42-0badcafe; "
        "give more of the name\n"
    )
    assert none.err == (
        f"muon: no run begins with 'mu-s' in {Path('results').absolute()}; `muon runs ls` lists its 12\n"
    )  # fmt: skip
    assert ", ...; give more" in demo("runs", "show", "").err


def test_runs_show_prefers_a_whole_name_to_a_beginning(muon: Muon, tmp_path: Path) -> None:
    storage = Folder(tmp_path / "results")
    for name in ("muon-s1", "muon-s11"):
        RunWriter(storage, name, {"seed": 1}).end(status="done")
    assert json.loads(muon("runs", "show", "muon-s1", "--json").out)["run_id"] == "muon-s1"


def test_runs_show_of_a_running_run_has_no_shares(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "results", [FakeRun("muon", 1, {0: 6.9}, status=None)])
    told = json.loads(muon("runs", "show", "muon", "--json").out)
    assert (told["outcome"]["status"], told["ended_at"], told["seconds"]) == ("running", None, {})


def test_runs_show_leaves_out_what_it_does_not_know(muon: Muon, tmp_path: Path) -> None:
    RunWriter(Folder(tmp_path / "results"), "muon-s1", {"seed": 1}).end(status="done")
    lines = muon("runs", "show", "muon-s1").out.splitlines()
    assert "  sweeps      none" in lines
    assert "" not in lines
    assert not {"seconds", "config", "None"} & {word for line in lines for word in line.split()}


def test_time_beyond_the_wall_is_not_negative_time_elsewhere() -> None:
    row = SPENT | {"wall_s": 18.5}
    assert spent(row)["other"] == 0.0


def test_runs_diff_shows_what_differs_and_how_both_ended(pair: Muon) -> None:
    done = pair("runs", "diff", "muon-s1", "adamw-s1")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["section", "field", "one", "other"]
    assert ["config", "optimizer.lr", "0.02", "0.003"] in rows
    assert ["config", "optimizer.ns_dtype", "bf16"] in rows
    assert ["environment", "torch", "2.13.0", "2.12.0"] in rows
    assert ["outcome", "status", "done", "failed"] in rows
    assert not any(row[1] == "steps" for row in rows if row[0] == "config")
    assert done.err == "one: muon-s1-0badcafe\nother: adamw-s1-0badcafe\n"


def test_runs_diff_json_keeps_what_both_have_of_the_outcome(pair: Muon) -> None:
    told = json.loads(pair("runs", "diff", "muon", "adamw", "--json").out)
    assert told["runs"] == ["muon-s1-0badcafe", "adamw-s1-0badcafe"]
    assert told["config"]["optimizer.name"] == ["muon", "adamw"]
    assert "device" in told["environment"]
    assert "data_hash" not in told["environment"]
    assert (told["outcome"]["final_val_loss"], told["outcome"]["last_val_loss"]) == ([3.5, None], [3.5, 6.9])


def test_runs_diff_of_a_run_with_itself_says_so(pair: Muon) -> None:
    rows = [" ".join(line.split()) for line in pair("runs", "diff", "muon", "muon").out.splitlines()]
    assert "config (the same)" in rows
    assert "environment (the same)" in rows


def test_differing_tells_a_missing_field_from_an_equal_one() -> None:
    one, other = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1}, "d": 4, "e": 5}
    assert differing(one, other) == {"a.c": [2, None], "d": [3, 4], "e": [None, 5]}


# ---- compact


def trained(storage: Folder, name: str) -> None:
    """A run as the training loop leaves it."""
    writer = RunWriter(storage, name, {"seed": 1, "optimizer": "muon"})
    for step in range(4):
        writer.emit("val", step=step, tokens=step, val_loss=4.0 - step)
    writer.end(status="done", final_val_loss=1.0)


def test_compact_tells_what_it_did_and_a_second_one_finds_nothing_to_do(muon: Muon, tmp_path: Path) -> None:
    storage = Folder(tmp_path / "results")
    for name in ("a", "b"):
        trained(storage, name)
    before = open_store(tmp_path / "results").val.sort("run_id", "seq").collect()
    first, second = muon("compact", "--grace", "0"), muon("compact", "--grace", "0")
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines()[:2] == ["finals written   0", "packs written    2"]  # each run wrote its finals
    assert first.out.splitlines()[2].startswith("objects removed  2 (")
    assert second.out == "finals written   0\npacks written    0\nobjects removed  0 (0.0 MB)\n"
    assert open_store(tmp_path / "results").val.sort("run_id", "seq").collect().equals(before)


def test_compact_of_a_sweep_leaves_the_other_runs_alone(muon: Muon, tmp_path: Path) -> None:
    storage = Folder(tmp_path / "results")
    for name in ("a", "b"):
        trained(storage, name)
    listed = (SweepRun(run_id="a", block="x", role="candidate", arm="x"),)
    write_sweep(storage, SweepRecord(sweep="one", runs=listed))
    assert muon("compact", "one", "--grace", "0").code == 0
    assert not storage.list("live/table=val/run=a/")
    assert storage.list("live/table=val/run=b/")


def test_compact_names_what_it_left_as_it_is(muon: Muon, tmp_path: Path) -> None:
    storage = Folder(tmp_path / "results")
    trained(storage, "a")
    (key, _), *_ = storage.list("final/table=val/run=a/")
    storage.delete([key])
    (key, _), *_ = storage.list("live/table=val/run=a/")
    storage.put(key, b"no Parquet")
    done = muon("compact")
    assert done.code == 3
    assert done.err.startswith("left as it is: a: ")
    assert key in done.err
    assert done.err.count("\n") == 1
    assert "no sweep 'none'" in muon("compact", "none").err
