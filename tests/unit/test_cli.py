"""The `muon` command: what flags become, what one run leaves behind, exit codes, and what the terminal shows."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.analysis_fixtures import FakeRun, write_store
from support.sweeps import Forked

from analysis.store import open_store
from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from muon_core.progress import Progress
from muon_core.store.storage import StoreUnavailable
from muon_core.train import Outcome
from ray_jobs.cli.commands import COMMANDS
from ray_jobs.cli.main import main
from ray_jobs.cli.progress import Display
from ray_jobs.cli.run_progress import RunProgress
from ray_jobs.run_queue import RunState

MUON = str(Path(sys.executable).with_name("muon"))
DEMO = str(Path(__file__).parents[2] / "search_spaces" / "demo.yaml")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Muon:
    """Calls the entry point in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ended:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert isinstance(stop.value.code, int)
        return Ended(stop.value.code, *self._capsys.readouterr())

    def config(self, *arguments: str) -> RunConfig:
        """What `muon pretrain` with these arguments would train."""
        ended = self("pretrain", *arguments, "--dry-run")
        assert ended.code == 0, ended.err
        config = RunConfig.model_validate_json(ended.out)
        assert ended.err == f"{config.run_id}\n"
        return config


@pytest.fixture
def muon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Muon:
    """The command, in an empty folder and without the user's settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("MUON_STORE", "MUON_LOG_LEVEL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return Muon(capsys)


@pytest.fixture
def run_yaml(tmp_path: Path, small: dict[str, Any]) -> str:
    """A config file of a run that takes about a second."""
    (tmp_path / "run.yaml").write_text(json.dumps(small))  # JSON is YAML
    return "run.yaml"


# ---- imports


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], {"torch", "ray", "altair", "polars", "pyarrow", "numpy", "scipy", "pydantic", "yaml", "rich"}),
        (["sweep", "--help"], {"torch", "ray", "altair", "polars", "scipy", "rich", "boto3"}),
        (["sweep", "plan", DEMO], {"torch", "ray", "altair", "polars", "rich", "boto3", "tokenizers"}),
        (["sweep", "plan", DEMO, "--json"], {"torch", "ray", "altair", "polars", "rich", "boto3", "tokenizers"}),
        (["pretrain", "--dry-run"], {"torch", "ray", "altair", "polars", "scipy", "rich", "boto3", "tokenizers"}),
        (["schema"], {"torch", "ray", "altair", "polars", "scipy", "rich", "boto3"}),
        (["version"], {"torch", "ray", "altair", "polars", "pyarrow", "pydantic", "numpy"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_commands_that_train_nothing_import_nothing_heavy(
    arguments: list[str], unwanted: set[str], tmp_path: Path
) -> None:
    script = (
        "import json, sys\n"
        "from ray_jobs.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert "click" in loaded
    assert "muon_core" in loaded
    assert loaded & unwanted == set()


def test_the_list_of_commands_names_those_there_are() -> None:
    """`muon --help` imports no command, so its list could be out of step with them."""
    import importlib

    for name, (module, _) in COMMANDS.items():
        assert importlib.import_module(module).command.name == name


# ---- pretrain: what is trained


def test_pretrain_flags_become_fields(muon: Muon) -> None:
    config = muon.config(
        *["--orthonoise", "--alpha", "1e-2", "--anneal", "--rank-threshold", "0.5", "--steps", "7", "--seed", "3"],
        *["--set", "data.seq_len=64", "--set", "lr=2e-2", "--set", "adam_betas=[0.8, 0.9]"],
    )
    wanted = RunConfig.model_validate(
        {
            "optimizer": {
                "name": "orthonoise", "alpha": 0.01, "anneal": "exponential", "rank_threshold": 0.5, "lr": 0.02,
                "adam_betas": (0.8, 0.9),
            },
            "steps": 7,
            "seed": 3,
            "data": {"seq_len": 64},
        }
    )  # fmt: skip
    assert config == wanted


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "muon"),
        (["--optimizer", "adamw"], "adamw"),
        (["--isotropic"], "isotropic"),
        (["--orthonoise", "--optimizer", "orthonoise"], "orthonoise"),
    ],
)
def test_pretrain_flags_choose_the_optimizer(muon: Muon, arguments: list[str], name: str) -> None:
    assert muon.config(*arguments).optimizer.name == name


def test_pretrain_starts_from_a_preset(muon: Muon) -> None:
    for preset, fields in PRESETS.items():
        assert muon.config(preset) == RunConfig.model_validate(fields)


def test_pretrain_prefers_flags_to_set_to_the_file(muon: Muon, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("steps: 1\nbatch_size: 2\nseed: 3\noptimizer: orthonoise\nalpha: 0.1\n")
    config = muon.config(
        "run.yaml", "--set", "steps=10", "--set", "batch_size=20", "--set", "optimizer.alpha=0.2", "--steps", "100",
        "--alpha", "0.3",
    )  # fmt: skip
    assert (config.steps, config.batch_size, config.seed) == (100, 20, 3)
    assert config.optimizer.model_dump()["alpha"] == 0.3


def test_pretrain_file_takes_names_as_a_sweep_file_does(muon: Muon, tmp_path: Path) -> None:
    (tmp_path / "flat.yaml").write_text("preset: 88m\noptimizer: adamw\nlr: 1e-3\ndata.seq_len: 256\nbatch_size: 4\n")
    (tmp_path / "nested.yaml").write_text(
        "preset: 88m\noptimizer: {name: adamw, lr: 1e-3}\ndata:\n  seq_len: 256\nbatch_size: 4\n"
    )
    flat = muon.config("flat.yaml")
    assert (flat.model.d_model, flat.optimizer.model_dump()["lr"], flat.data.seq_len) == (512, 0.001, 256)
    assert muon.config("nested.yaml") == flat


def test_pretrain_reads_what_dry_run_printed(muon: Muon, tmp_path: Path, run_yaml: str) -> None:
    printed = muon("pretrain", run_yaml, "--isotropic", "--alpha", "0.3", "--dry-run").out
    (tmp_path / "again.yaml").write_text(printed)
    again = muon("pretrain", "again.yaml", "--dry-run")
    assert again.out == printed
    assert json.loads(printed)["data"]["corpus_sha256"]


def test_pretrain_optimizer_flag_keeps_the_files_other_fields(muon: Muon, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("optimizer: {name: adamw, lr: 0.5}\n")
    optimizer = muon.config("run.yaml", "--optimizer", "muon").optimizer
    assert (optimizer.name, optimizer.model_dump()["lr"]) == ("muon", 0.5)


def test_pretrain_finds_a_corpus_beside_the_file_that_names_it(muon: Muon, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "book.txt").write_text("a text")
    (tmp_path / "here.txt").write_text("another")
    (tmp_path / "deep" / "run.yaml").write_text("data: {corpus: book.txt}\n")
    assert muon.config("deep/run.yaml").data.corpus == str(tmp_path / "deep" / "book.txt")
    assert muon.config("deep/run.yaml", "--set", "data.corpus=here.txt").data.corpus == str(tmp_path / "here.txt")


def test_dry_runs_and_plans_write_nothing(muon: Muon, tmp_path: Path) -> None:
    assert muon("pretrain", "--dry-run").code == 0
    assert muon("sweep", "plan", DEMO).code == 0
    assert list(tmp_path.iterdir()) == []


# ---- pretrain: training


def test_pretrain_trains_and_writes_the_tables_once(
    muon: Muon, tmp_path: Path, run_yaml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.cli.run_progress.HEARTBEAT_S", float("inf"))
    first = muon("pretrain", run_yaml)
    assert first.code == 0, first.err
    run_id = muon.config(run_yaml).run_id
    lines = first.err.splitlines()
    assert lines[0] == f"training {run_id}, results in {tmp_path / 'results'}"
    assert lines[1].startswith("tokens: corpus ")
    assert [line.split("  ")[0] for line in lines[2:-2]] == ["step 0/8", "step 4/8", "step 8/8"]
    assert lines[-1] == f"next: muon status {run_id}"
    assert first.out == ""

    store = open_store(tmp_path / "results")
    assert store.runs.select("run_id", "status", "steps", "attempts").collect().rows() == [(run_id, "done", 8, 1)]
    assert store.train.sort("step").collect()["step"].to_list() == list(range(1, 9))
    val = store.val.sort("step").collect()
    assert val["step"].to_list() == [0, 4, 8]
    assert f"val {val['val_loss'][2]:.4f}" in lines[-3]
    assert lines[-2] == f"done: {run_id}: val loss {val['val_loss'][2]:.4f} nats per token"
    assert store.layers.collect().height == 3 * 2 * 6  # at steps 0, 4 and 8: two layers of six projections

    second = muon("pretrain", run_yaml)
    assert second.code == 0
    assert second.err.splitlines()[0] == f"{run_id} is done already; --again trains it once more"
    assert store.runs.collect()["attempts"].to_list() == [1]

    again = muon("pretrain", run_yaml, "--again")
    assert again.code == 0, again.err
    assert store.runs.collect()["attempts"].to_list() == [2]
    assert store.val.sort("step").collect()["val_loss"].to_list() == val["val_loss"].to_list()


def test_pretrain_continues_from_a_checkpoint_unless_asked_to_begin_again(
    muon: Muon, tmp_path: Path, run_yaml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = ["--set", "checkpoint.every_steps=3"]

    def interrupt(progress: Progress) -> bool:
        if progress.step == 5:
            raise KeyboardInterrupt
        return True

    with monkeypatch.context() as patched:
        patched.setattr("ray_jobs.cli.run_progress.RunProgress.__call__", lambda self, progress: interrupt(progress))
        assert muon("pretrain", run_yaml, *checkpoints).code == 130
    store = open_store(tmp_path / "results")
    assert store.runs.collect()["status"].to_list() == ["stopped"]
    assert muon("pretrain", run_yaml, *checkpoints).code == 0
    attempts = store.train.sort("step").collect()["attempt"].to_list()
    assert attempts == [1, 1, 1, 2, 2, 2, 2, 2]  # the checkpoint is of step 3
    assert muon("pretrain", run_yaml, *checkpoints, "--again").code == 0
    assert store.train.sort("step").collect()["attempt"].to_list() == [3] * 8


def test_pretrain_writes_to_the_store_it_is_told(
    muon: Muon, tmp_path: Path, run_yaml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUON_STORE", "by variable")
    assert muon("pretrain", run_yaml, "--steps", "1").err.splitlines()[-1].startswith("next: muon status muon-s42")
    assert open_store(tmp_path / "by variable").runs.collect().height == 1
    flagged = muon("pretrain", run_yaml, "--steps", "1", "--store", "by flag")
    assert flagged.err.splitlines()[-1].endswith(" --store 'by flag'")
    assert open_store(tmp_path / "by flag").runs.collect().height == 1


BROKEN = """
import torch

class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("out of ideas")
"""


def test_pretrain_records_a_failed_run_and_shows_its_traceback(muon: Muon, run_yaml: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    broken = ["--optimizer", "./broken.py:Broken"]
    run_id = muon.config(run_yaml, *broken).run_id
    failed = muon("pretrain", run_yaml, *broken)
    assert failed.code == 3
    told = failed.err.splitlines()[-1]
    assert told == f"failed: {run_id}: RuntimeError: out of ideas (traceback: muon status {run_id})"
    shown = muon("status", run_id)
    assert shown.code == 0
    assert "Traceback (most recent call last)" in shown.out
    assert "broken.py" in shown.out


def test_pretrain_refuses_what_does_not_fit_and_records_nothing(muon: Muon, run_yaml: str, tmp_path: Path) -> None:
    refused = muon("pretrain", run_yaml, "--set", "model.d_ff=1000000000000")
    assert refused.code == 2
    assert refused.err.startswith("muon: this run needs about ")
    assert "; set micro_batches: 8 (" in refused.err
    assert not list(tmp_path.glob("results/runs/*"))


def test_pretrain_counts_a_diverged_run_as_a_result(muon: Muon, run_yaml: str) -> None:
    too_fast = ["--set", "embedding_lr=1e30"]
    run_id = muon.config(run_yaml, *too_fast).run_id
    diverged = muon("pretrain", run_yaml, *too_fast)
    assert diverged.code == 0, diverged.err
    assert diverged.err.splitlines()[-2].startswith(f"diverged: {run_id}: ")
    assert muon("pretrain", run_yaml, *too_fast).err.startswith(f"{run_id} is diverged already")


def test_frozen_momentum_of_a_run_is_flagged_at_step_20_and_where_people_look(
    tmp_path: Path, small: dict[str, Any], muon: Muon
) -> None:
    """As_seed as first written, at the default period of tracking."""
    config = small | {"steps": 20, "optimizer": {"name": "orthonoise", "mode": "as_seed"}, "tracking": {}}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    trained = muon("pretrain", "run.yaml")
    flag = re.search(r"^flagged: (frozen momentum: \d+ of 12 matrices repeat their .* at step 20)$", trained.err, re.M)
    assert flag, trained.err
    (row,) = open_store(tmp_path / "results").runs.collect().to_dicts()
    assert (row["status"], row["health"]) == ("done", flag[1])
    assert "frozen momentum" in muon("status").out
    assert flag[1] in muon("status", row["run_id"]).out
    assert "frozen" in muon("runs", "ls").out
    assert flag[1] in muon("runs", "show", row["run_id"]).out


def test_pretrain_that_is_overtaken_stops_in_one_line(
    muon: Muon, run_yaml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "a newer attempt has taken over, so this one stops"
    monkeypatch.setattr("muon_core.train.train", lambda *_, **__: Outcome("r", "stopped", 3, None, reason))
    stopped = muon("pretrain", run_yaml)
    assert stopped.code == 3
    assert stopped.err.splitlines()[-2].startswith("stopped: muon-s42-")
    assert stopped.err.splitlines()[-2].endswith(f": {reason}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_run_and_records_it_as_stopped(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    endless = small | {"steps": 1_000_000, "tracking": {"eval_every": 1, "track_every": 1_000_000}}
    (tmp_path / "run.yaml").write_text(json.dumps(endless))
    monkeypatch.chdir(tmp_path)
    command = Forked("pretrain", "run.yaml", store=tmp_path / "st")
    command.wait_for("\nstep 2/")
    command.send_signal(number)
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "muon: interrupted; what is finished is kept, the same command continues"
    assert "Traceback" not in stderr
    run = open_store(tmp_path / "st").runs.collect().row(0, named=True)
    assert run["status"] == "stopped"
    (saved,) = (tmp_path / "st/checkpoints").glob("*/latest/*.pt")
    assert int(saved.name.split(".")[0]) == run["steps"]  # nothing is trained again


# ---- reading


def fake_runs() -> list[FakeRun]:
    config = {"config_json": '{"steps": 200}'}
    error = 'Traceback (most recent call last):\n  File "train.py"\nRuntimeError: ' + "x" * 200
    return [
        FakeRun("muon", 1, {0: 6.9, 200: 3.5}, role="baseline", facts=config | {"steps": 200}),
        FakeRun("adamw", 1, {0: 6.9, 40: 4.25}, status=None, facts=config),
        FakeRun("orthonoise", 1, {}, status="failed", facts=config | {"error": error}, with_layers=False),
    ]


def test_status_shows_every_run_of_a_sweep(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "results", fake_runs(), unstarted=1)
    shown = muon("status", "demo")
    assert shown.code == 0
    header, *rows = [line.split() for line in shown.out.splitlines()]
    assert header == ["status", "run", "step", "val", "loss", "wall", "s", "attempts", "trained", "by", "trouble"]
    assert [row[:2] for row in rows] == [
        ["done", "muon-s1-0badcafe"],
        ["running", "adamw-s1-0badcafe"],
        ["failed", "orthonoise-s1-0badcafe"],
        ["planned", "orthonoise-s9000-0badcafe"],
    ]
    assert rows[0][2:] == ["200/200", "3.5000", "20", "1"]
    assert rows[1][2:5] == ["40/200", "4.2500", "1"]  # from its rows: it has no end record yet
    assert rows[1][5:9] == [str(os.getpid()), "on", socket.gethostname() + ",", "seen"]
    assert rows[1][10:] == ["s", "ago"]
    assert int(rows[1][9]) < 60
    assert len(rows[2][-1]) == 80 - len("RuntimeError: ")
    assert rows[2][-1].endswith("…")
    assert rows[3][2:] == []
    assert shown.err.splitlines() == [
        "demo: 1 running, 1 done, 1 failed, 1 planned; ETA 0:36; 0 USD spent",
        "best so far: muon, val_loss 3.5000 (1 of 1 run done)",
        f"last failure: orthonoise-s1-0badcafe: RuntimeError: {'x' * 200}",
        "next: muon status demo --watch",
    ]


def test_status_json_holds_what_the_table_shows_and_the_traceback(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "results", fake_runs(), unstarted=1)
    shown = muon("status", "demo", "--json")
    assert shown.err == ""
    done, running, failed, planned = json.loads(shown.out)
    assert (done["step"], done["steps"], done["val_loss"], done["wall_s"]) == (200, 200, 3.5, 20.0)
    assert (running["status"], running["step"], running["val_loss"], running["wall_s"]) == ("running", 40, 4.25, None)
    assert failed["error"].startswith("Traceback")
    assert (planned["status"], planned["steps"], planned["step"]) == ("planned", None, None)
    assert (running["host"], running["pid"]) == (socket.gethostname(), os.getpid())
    assert 0 <= running["silent_s"] < 60
    assert (done["silent_s"], planned["host"]) == (None, None)


def test_status_of_one_run_and_of_the_whole_store(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "results", fake_runs(), unstarted=1)
    (one,) = json.loads(muon("status", "muon-s1-0badcafe", "--json").out)
    assert (one["run_id"], one["status"]) == ("muon-s1-0badcafe", "done")
    everything = json.loads(muon("status", "--json").out)
    assert [run["status"] for run in everything] == ["running", "done", "failed"]  # by name; planned ones have no row
    assert muon("status", "orthonoise-s1-0badcafe").out.endswith(f"RuntimeError: {'x' * 200}\n")


def test_status_takes_the_beginning_of_a_run(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "results", fake_runs())
    (one,) = json.loads(muon("status", "muon-s", "--json").out)
    assert one["run_id"] == "muon-s1-0badcafe"
    assert muon("status", "ortho").out.endswith(f"RuntimeError: {'x' * 200}\n")
    write_store(tmp_path / "results", [FakeRun("muon", 11, {0: 6.9})], sweep="other")
    several = muon("status", "muon-s1")
    assert (several.code, several.err) == (
        2, "muon: 2 runs begin with 'muon-s1': muon-s1-0badcafe, muon-s11-0badcafe; give more of the name\n"
    )  # fmt: skip


def test_status_says_what_is_next_on_the_same_store(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "my runs", [run for run in fake_runs() if run.status != "failed"])
    onwards = {
        (): "muon status --watch",
        ("demo",): "muon status demo --watch",
        ("adamw",): "muon status adamw --watch",
        ("muon",): "muon runs show muon-s1-0badcafe",
    }
    for arguments, command in onwards.items():
        shown = muon("status", *arguments, "--store", "my runs")
        assert shown.err.splitlines()[-1] == f"next: {command} --store 'my runs'"


def test_status_shows_a_run_that_two_blocks_share_once(muon: Muon, tmp_path: Path) -> None:
    (run,) = fake_runs()[:1]
    storage = write_store(tmp_path / "results", [run])
    record = json.loads(storage.get("sweeps/demo/00001.aa.json"))
    record["runs"] += [run | {"block": "other"} for run in record["runs"]]
    storage.put("sweeps/demo/00002.aa.json", json.dumps(record).encode())
    assert muon("status", "demo").err == (
        "demo: 1 done; 0 USD spent\nbest so far: muon: muon, val_loss 3.5000 (1 of 1 run done)\n"
        "next: muon runs show muon-s1-0badcafe\n"
    )


def test_version_names_what_decides_a_result(muon: Muon) -> None:
    import polars
    import torch

    versions = json.loads(muon("version", "--json").out)
    assert versions["torch"] == torch.__version__
    assert versions["polars"] == polars.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert muon("--version").out == muon("version").out
    assert muon("version").out.splitlines() == [f"{name} {version}" for name, version in versions.items()]


def test_schema_describes_the_sweep_file(muon: Muon) -> None:
    schema = json.loads(muon("schema").out)
    assert {"version", "name", "seeds", "blocks"} <= set(schema["else"]["required"])
    assert schema["if"] == {"required": ["extends"]}
    assert schema["additionalProperties"] is False
    assert "orthonoise" in schema["$defs"]["block"]["properties"]["optimizer"]["anyOf"][0]["enum"]


def test_report_says_in_a_pipe_what_took_long(muon: Muon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "results", fake_runs()[:1])
    few = ("--metric", "effective_rank", "--projection", "q")
    monkeypatch.setattr("ray_jobs.cli.report.LONG_S", float("inf"))
    quiet = muon("report", "demo", "-o", "page", *few)
    monkeypatch.setattr("ray_jobs.cli.report.LONG_S", -1.0)
    done = muon("report", "demo", "-o", "page", *few)
    assert done.out == quiet.out
    assert quiet.err == "next: muon runs ls --sweep demo\n"
    parts = [line.partition(", ")[0] for line in done.err.splitlines()]
    assert parts[:3] == ["report: numbers", "report: first figures", "report: arms (1 of 21)"]
    assert parts[-2:] == ["report: page", "next: muon runs ls --sweep demo"]


def test_report_says_where_the_page_is(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "results", fake_runs()[:1])
    done = muon("report", "demo", "-o", "page")
    assert done.code == 0
    assert done.out.startswith("demo: ")
    assert done.out.endswith("\nreport: page/index.html\n")
    assert done.err.splitlines()[-1] == "next: muon runs ls --sweep demo"
    assert (tmp_path / "page" / "index.html").exists()


def test_a_report_of_one_run_prints_what_is_known_of_it(muon: Muon, tmp_path: Path) -> None:
    (run, *_) = fake_runs()
    write_store(tmp_path / "results", fake_runs())
    done = muon("report", run.run_id, "-o", "page", "--metric", "effective_rank", "--projection", "q")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{run.run_id}\n")
    assert done.err.splitlines()[-1] == f"next: muon runs show {run.run_id}"
    page = (tmp_path / "page" / "index.html").read_text()
    assert "in a single run, and there is no other arm to compare it with." in page
    assert "None: it is a run on its own." in page


def test_a_report_of_what_there_is_not_is_refused(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "results", fake_runs()[:1])
    assert "no run has seed 7; the seeds are " in muon("report", "demo", "--seed", "7").err
    assert "unknown projection 'x'; choose of q, k, v, o, up, down" in muon("report", "demo", "--projection", "x").err
    assert not (tmp_path / "report").exists()


def test_seeds_that_reached_nothing_are_an_error_of_the_report(muon: Muon, tmp_path: Path) -> None:
    runs = fake_runs()[:2]
    for run in runs:
        run.optimizer, run.facts["init_hash"] = "muon", "same"
        run.facts["config_json"] = json.dumps({"seed": run.seed, "seeds": {}})
    runs[1].seed = runs[0].seed + 1
    write_store(tmp_path / "results", runs)
    done = muon("report", "demo", "-o", "page", "--metric", "effective_rank", "--projection", "q")
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith("error: seeds ")
    assert "have the same initial weights" in done.err


# ---- sweep run, up to Ray


def sweep_of_one(tmp_path: Path, corpus: str) -> str:
    (tmp_path / "sweep.yaml").write_text(
        "version: 1\nname: one\nseeds: [1]\n"
        f"constants: {{data.corpus: {corpus}, model.vocab_size: 512, steps: 8}}\n"
        "blocks: [{name: b, role: baseline, optimizer: muon}]\n"
    )
    return "sweep.yaml"


def finish(store: Path, spec: str, muon: Muon, status: str) -> str:
    """Put an end record of the sweep's only run into the store."""
    (run,) = json.loads(muon("sweep", "plan", spec, "--json").out)["runs"]
    fake = FakeRun("muon", 1, {0: 6.9, 8: 5.0}, status, facts={"run_id": run["run_id"], "error": "a\nValueError: b"})
    fake.__class__ = type("Named", (FakeRun,), {"run_id": run["run_id"]})
    write_store(store, [fake], sweep="other")
    return str(run["run_id"])


def test_sweep_run_with_nothing_left_prints_the_answer_and_what_is_next(
    muon: Muon, tmp_path: Path, corpus: Path
) -> None:
    spec = sweep_of_one(tmp_path, str(corpus))
    finish(tmp_path / "results", spec, muon, "done")
    done = muon("sweep", "run", spec)
    assert done.code == 0, done.err
    assert "one: 1 run (1 done), 0 to train" in done.err
    assert "val_loss" in done.out
    assert done.err.splitlines()[-1] == "next: muon report one -o report"


def test_sweep_plan_says_what_is_next_on_the_same_store(muon: Muon, tmp_path: Path, corpus: Path) -> None:
    spec = sweep_of_one(tmp_path, str(corpus))

    def after_plan(*options: str) -> str:
        done = muon("sweep", "plan", spec, *options)
        assert done.code == 0, done.err
        return done.err

    assert after_plan() == f"next: muon sweep run {spec}\n"
    assert after_plan("--store", "my runs") == f"next: muon sweep run {spec} --store 'my runs'\n"
    assert after_plan("--json") == ""
    finish(tmp_path / "failed", spec, muon, "failed")
    again = f"muon sweep run {spec} --retry failed --store failed\n"
    report = "next: muon report one -o report --store failed"
    assert after_plan("--store", "failed") == f"{report}, or to train the failed runs again {again}"
    assert after_plan("--store", "failed", "--retry", "failed") == f"next: {again}"
    finish(tmp_path / "done", spec, muon, "done")
    assert after_plan("--store", "done") == "next: muon report one -o report --store done\n"


def test_sweep_plan_takes_the_deviation_between_seeds(muon: Muon) -> None:
    (power,) = json.loads(muon("sweep", "plan", DEMO, "--sd", "0.01", "--json").out)["power"]
    assert (power["sd"], power["sd_source"], power["comparisons"]) == (0.01, "given", 3)
    refused = muon("sweep", "plan", DEMO, "--sd", "nan")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "must be positive and finite, got nan" in refused.err


def test_sweep_run_that_has_failed_runs_ends_with_3(muon: Muon, tmp_path: Path, corpus: Path) -> None:
    spec = sweep_of_one(tmp_path, str(corpus))
    run_id = finish(tmp_path / "results", spec, muon, "failed")
    done = muon("sweep", "run", spec)
    assert done.code == 3
    assert done.err.splitlines()[-3:] == [
        f"failed: {run_id}: ValueError: b",
        "1 of 1 run failed",
        "next: muon failures one, then muon sweep run sweep.yaml --retry failed",
    ]


def test_sweep_run_asks_before_it_uses_a_cluster(
    muon: Muon, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = sweep_of_one(tmp_path, str(corpus))
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    declined = muon("sweep", "run", spec, "--address", "127.0.0.1:6379")
    assert declined.code == 2
    assert "train 1 run on the cluster at 127.0.0.1:6379? [y/N]" in declined.err
    assert declined.err.endswith("muon: not confirmed, nothing was done; --yes skips the question\n")
    assert not list((tmp_path / "results").rglob("*.json"))


# ---- exit codes and streams


def test_letters_the_terminal_lacks_do_not_cost_the_answer(tmp_path: Path) -> None:
    write_store(tmp_path / "results", [FakeRun("muon", 1, {0: 6.9}, facts={"error": "caf\u00e9 \u2212 1"})])
    done = subprocess.run(
        [MUON, "query", "SELECT error FROM runs"],
        capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"error\ncaf\xe9 ? 1\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["version"], ["query", "SHOW TABLES"], ["--help"]], ids=" ".join)
def test_an_answer_that_finds_no_room_is_one_line(tmp_path: Path, arguments: list[str], unbuffered: str) -> None:
    write_store(tmp_path / "results", [FakeRun("muon", 1, {0: 6.9})])
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [MUON, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
        )
    assert (done.returncode, done.stderr) == (
        1,
        "muon: cannot write: No space left on device; free space, or write elsewhere\n",
    )


def test_an_oserror_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ray_jobs.cli.schema.json_schema", fail)
    with pytest.raises(OSError, match="Input"):
        main(["schema"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\n lines"), 2, "muon: two lines"),
        (StoreUnavailable("store x: no answer"), 7, "muon: store x: no answer"),
        (ConnectionError("refused"), 7, "muon: cannot reach Ray: refused"),
        (KeyboardInterrupt(), 130, "muon: interrupted; what is finished is kept, the same command continues"),
    ],
)
def test_expected_errors_have_their_exit_code_and_one_line(
    muon: Muon, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("ray_jobs.cli.schema.json_schema", fail)
    ended = muon("schema")
    assert (ended.code, ended.out, ended.err.strip()) == (code, "", line)


def test_an_internal_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("ours")

    monkeypatch.setattr("ray_jobs.cli.schema.json_schema", fail)
    with pytest.raises(KeyError):
        main(["schema"])


@pytest.mark.parametrize("encoding", ["", "ascii", "latin-1"])
def test_names_of_files_are_utf8_in_any_locale(tmp_path: Path, encoding: str) -> None:
    """Python takes them for ASCII in this one, Polars and Ray for UTF-8 in all."""
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}
    (tmp_path / "für 結果").mkdir()
    done = subprocess.run(
        [MUON, "query", "SHOW TABLES", "--store", "für 結果"], capture_output=True, cwd=tmp_path,
        env=os.environ | locale,
    )  # fmt: skip
    assert done.returncode == 2
    shown = done.stderr.decode(encoding if encoding == "latin-1" else "utf-8")  # click lets no terminal be ASCII
    assert f"für {'??' if encoding == 'latin-1' else '結果'} is no results store" in shown


@pytest.mark.parametrize("place", ["argument", "variable"])
def test_a_name_that_is_not_utf8_is_refused_in_one_line(
    muon: Muon, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name = os.fsdecode(b"st-\xff")
    if place == "variable":
        monkeypatch.setenv("MUON_STORE", name)
    refused = muon("status", *(["--store", name] if place == "argument" else []))
    assert (refused.code, refused.err) == (2, "muon: 'st-\\udcff' is not UTF-8; rename the file or folder\n")


def test_log_level_debug_shows_where_an_error_was_raised(tmp_path: Path) -> None:
    done = subprocess.run(
        [MUON, "pretrain", "--seed", "-1", "--dry-run"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"MUON_LOG_LEVEL": "debug"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "muon: seed must be at least 0, got -1"


@pytest.mark.parametrize("arguments", [[], ["sweep"]])
def test_no_command_shows_the_help_with_its_line_breaks(muon: Muon, arguments: list[str]) -> None:
    asked, unasked = muon(*arguments, "--help"), muon(*arguments)
    assert (asked.code, unasked.code) == (0, 2)
    assert asked.out.strip() == unasked.err.strip()


# ---- what the terminal shows


def told(step: int, val_loss: float | None, train_loss: float | None = 5.5) -> Progress:
    speed = None if step == 0 else 12_345.6
    return Progress("muon-s1-0badcafe", step, 10, None if step == 0 else train_loss, val_loss, 2048 * step, speed, 1.0)


def test_run_progress_off_a_terminal_is_a_line_an_evaluation_and_the_last_step() -> None:
    text = io.StringIO()
    with RunProgress(Console(file=text, width=40)) as progress:
        steps = [(0, 6.9), (1, 6.9), (2, 6.9), (5, 6.1), (6, 6.1), (10, 6.1)]
        assert all(progress(told(step, loss)) for step, loss in steps)
    assert text.getvalue().splitlines() == [
        "step 0/10  0 tokens  val 6.9000",
        "step 5/10  10.2k tokens  train 5.5000  val 6.1000  12,346 tokens/s",
        "step 10/10  20.5k tokens  train 5.5000  val 6.1000  12,346 tokens/s",
    ]


def test_run_progress_on_a_terminal_is_one_live_line_with_an_eta() -> None:
    text = io.StringIO()
    with RunProgress(Console(file=text, width=120, force_terminal=True, color_system=None)) as progress:
        progress(told(0, 6.9))
        progress(told(5, 6.1))
    shown = text.getvalue()
    assert "5/10" in shown
    assert "train 5.5000  val 6.1000  12,346 tokens/s ETA" in shown
    assert shown.count("\n") <= 1  # rewritten in place, and cleared at the end


def test_display_off_a_terminal_is_a_line_an_event() -> None:
    text = io.StringIO()
    run = RunState("muon-s1-0badcafe", slot="a", status="running", starts=1)
    with Display(2, Console(file=text, width=40)) as display:
        display.update([run])
        display.update([run])
        run.starts, run.failures = 2, ["infrastructure"]
        display.update([run])
        run.status, run.ended_at, run.progress = "done", 1.0, told(10, 6.1)
        other = RunState("adamw-s1-0badcafe", slot="a", status="failed", starts=1, ended_at=2.0)
        other.error = "Traceback (most recent call last):\n  File\nValueError: [red] boom\n"
        display.update([run, other])
    first, *events = text.getvalue().splitlines()
    assert first == "starting Ray for 2 runs ..."
    assert [line.split(maxsplit=1)[1] for line in events] == [
        "0/2  start muon-s1-0badcafe",
        "0/2  start muon-s1-0badcafe again (a worker died, start 2)",
        "1/2  done     muon-s1-0badcafe  val loss 6.1000",
        "2/2  failed   adamw-s1-0badcafe  ValueError: [red] boom",
    ]


def test_display_on_a_terminal_is_a_panel_of_at_most_15_lines() -> None:
    text = io.StringIO()
    runs = [
        RunState(f"muon-s{n}-0badcafe", "a", "running", 1, began_at=1.0, first_step_at=1.0, progress=told(5, 6.1))
        for n in range(40)
    ]
    console = Console(file=text, width=120, height=50, force_terminal=True, color_system=None)
    display = Display(50, console)
    display.update(runs)
    with console.capture() as captured:
        console.print(display._panel())
    panel = captured.get().splitlines()
    assert len(panel) <= 15
    assert re.match(r"training  0:00  ETA \d+:\d\d:\d\d  40 running, 10 planned$", panel[0])
    assert panel[-1] == "and 32 more"
