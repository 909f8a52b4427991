"""`--only EXPR` of `sweep plan` and `sweep run`: which runs it chooses, and what a mistake in it is answered with."""

import json
from pathlib import Path

import pytest
import test_cli
from support.analysis_fixtures import FakeRun, write_store
from test_cli import Muon

from muon_core.store.folder import Folder
from muon_core.store.sweeps import read_sweep
from ray_jobs.only import narrow
from search_spaces.plan import Plan, plan
from search_spaces.spec import parse_spec

muon = test_cli.muon
TEXT = """\
version: 1
name: hunt
seeds: [1, 2]
constants: {steps: 50, data.seq_len: 64}
blocks:
  - {name: base, role: baseline, optimizer: adamw, set: {lr: 0.003}}
  - {name: noise, optimizer: orthonoise, grid: {alpha: [0.1, 0.2], anneal: [none, exponential]}}
  - {name: again, role: control, optimizer: orthonoise, set: {alpha: 0.1}}
"""


@pytest.fixture
def planned() -> Plan:
    """Of two seeds, five runs each: adamw, then alpha 0.1 and 0.2, each without and with an end."""
    whole = plan(parse_spec(TEXT), {})
    return plan(parse_spec(TEXT), {whole.runs[0].run_id: "done", whole.runs[1].run_id: "failed"})


@pytest.mark.parametrize(
    ("condition", "chosen"),
    [
        ("optimizer = 'orthonoise' and alpha > 0.15", [3, 4, 8, 9]),
        ("block = 'noise' AND seed = 2", [6, 7, 8, 9]),
        ("block = 'again'", [1, 6]),  # of a run in two blocks either counts
        ("role = 'control' or role = 'baseline'", [0, 1, 5, 6]),
        ("status = 'failed'", [1]),
        ("anneal = 'exponential' and seed = 1", [2, 4]),
        ("alpha is null", [0, 5]),
        ("optimizer.lr < 0.004", [0, 5]),
        ("lr < 0.004 and data.seq_len = 64 and data.corpus = 'stdlib'", [0, 5]),
        ("\"data.seq_len\" <> 64 or arm = 'adamw' or run_id = 'data.seq_len'", [0, 5]),
    ],
)
def test_a_condition_chooses_among_the_runs_of_a_plan(planned: Plan, condition: str, chosen: list[int]) -> None:
    everything = plan(parse_spec(TEXT), {})
    wanted = [everything.runs[index].run_id for index in chosen]
    starting = {run.run_id for run in planned.to_run}
    assert narrow(planned, condition).runs == planned.runs
    assert [run.run_id for run in narrow(planned, condition).to_run] == [name for name in wanted if name in starting]
    if "status" not in condition:
        assert [run.run_id for run in narrow(everything, condition).to_run] == wanted


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "seeds = 1",
            "no column 'seeds' (did you mean 'seed'?); the columns are runs: block, role, arm, arm_id, optimiz",
        ),
        ("data.seq = 1", "no column 'data.seq' (did you mean 'data.seq_len'?); the columns are runs: block, role, "),
        ("lr >", "Polars cannot answer this query: sql parser error: "),
        ("lr", "Polars cannot answer this query: filter predicate must be of type `Boolean`"),
        ("seed = 'one'", "Polars cannot answer this query: cannot compare string with numeric type"),
        ("seed = 3", ""),
    ],
)
def test_a_mistake_in_a_condition_is_one_line(
    muon: Muon, tmp_path: Path, condition: str, message: str
) -> None:  # fmt: skip
    (tmp_path / "hunt.yaml").write_text(TEXT)
    for command in ("plan", "run"):
        refused = muon("sweep", command, "hunt.yaml", "--only", condition)
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert refused.err.startswith(f"muon: --only {condition!r}{': ' if message else ''}{message}")
        if message:
            assert "status, run_id, embedding_lr" in refused.err
        else:
            assert refused.err.endswith(
                " chooses none of the 10 runs; `muon sweep plan --json` shows what they have\n"
            )  # fmt: skip
    assert not (tmp_path / "results" / "sweeps").exists()


def test_the_plan_shows_what_would_start_and_names_the_command(muon: Muon, tmp_path: Path) -> None:
    (tmp_path / "hunt.yaml").write_text(TEXT)
    shown = muon("sweep", "plan", "hunt.yaml", "--only", "seed = 1 and alpha > 0")
    assert "\nto run: 4 runs, " in shown.out
    assert shown.err == "next: muon sweep run hunt.yaml --only 'seed = 1 and alpha > 0'\n"
    told = json.loads(muon("sweep", "plan", "hunt.yaml", "--only", "seed = 1 and alpha > 0", "--json").out)
    assert len(told["runs"]) == 10
    assert told["to_run"] == [run["run_id"] for run in told["runs"] if run["to_run"]]
    assert {run["seed"] for run in told["runs"] if run["to_run"]} == {1}


def test_the_record_of_a_sweep_lists_the_runs_that_were_not_chosen(muon: Muon, tmp_path: Path) -> None:
    """The one that was chosen is done, so nothing is trained."""
    (tmp_path / "hunt.yaml").write_text(TEXT)
    runs = json.loads(muon("sweep", "plan", "hunt.yaml", "--json").out)["runs"]
    fake = FakeRun("adamw", 1, {0: 6.9})
    fake.__class__ = type("Named", (FakeRun,), {"run_id": runs[0]["run_id"]})
    write_store(tmp_path / "results", [fake], sweep="other")
    done = muon("sweep", "run", "hunt.yaml", "--only", "optimizer = 'adamw' and seed = 1")
    assert done.code == 0, done.err
    assert "10 runs (1 done, 9 planned), 0 to train" in done.err
    record = read_sweep(Folder(tmp_path / "results"), "hunt")
    assert record is not None
    assert {run.run_id for run in record.runs} == {run["run_id"] for run in runs}
