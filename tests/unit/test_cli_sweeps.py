"""`muon sweep ls` and `muon sweep show`: what the store remembers of sweeps, and a file that gives the same runs."""

import json
from pathlib import Path

import pytest
import test_cli
from support.analysis_fixtures import demo_runs, write_store
from test_cli import Muon

from muon_core.store.folder import Folder
from muon_core.store.sweeps import SweepRecord, SweepRun, write_sweep
from ray_jobs.sweep_plan import sweep_record
from search_spaces.plan import plan
from search_spaces.spec import load_spec

muon = test_cli.muon
SPEC = """\
version: 1
name: hunt
question: 'Is it so: "off", or on?'
seeds: [3, 1]
constants: {steps: 50, data.corpus: words.txt}
blocks:
  - {name: base, role: baseline, optimizer: adamw, set: {lr: 1e-3, adam_betas: [0.9, 0.95]}}
  - name: noise
    optimizer: orthonoise
    grid: {alpha: [1e-2, 5e-2], anneal: [none, exponential], data.corpus: [words.txt, stdlib]}
    skip: [{alpha: 1e-2, data.corpus: words.txt}]
resources: {max_concurrent: 2}
"""


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    """One sweep of a file beside a corpus of its own, in a folder of their own; twelve runs and an imported one."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "words.txt").write_text("Some words of my own.\n" * 50)
    (folder / "hunt.yaml").write_text(SPEC)
    storage = write_store(tmp_path / "results", demo_runs(), unstarted=1)
    write_sweep(storage, sweep_record(plan(load_spec(str(folder / "hunt.yaml")), {})))
    run = SweepRun(run_id="muon-s42-0badcafe", block="b", role="baseline", arm="muon")
    write_sweep(storage, SweepRecord(sweep="old", spec={"imported": True}, runs=(run,)))
    return storage


def test_show_gives_a_file_back_that_plans_the_same_runs_from_any_folder(muon: Muon, store: Folder) -> None:
    shown = muon("sweep", "show", "hunt")
    assert shown.code == 0, shown.err
    assert shown.err == "next: muon status hunt\n"
    Path("again.yaml").write_text(shown.out)
    first = muon("sweep", "plan", "elsewhere/hunt.yaml", "--json")
    again = muon("sweep", "plan", "again.yaml", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out) == json.loads(first.out)
    assert len(json.loads(again.out)["runs"]) == 2 * (1 + 6)
    assert "resources:" in shown.out
    assert "retries" not in shown.out  # what has its default is left out


def test_show_json_has_the_record(muon: Muon, store: Folder) -> None:
    told = json.loads(muon("sweep", "show", "hunt", "--json").out)
    assert told["spec"]["seeds"] == [3, 1]
    assert {run["block"] for run in told["runs"]} == {"base", "noise"}
    assert (told["imported"], len(told["runs"])) == (False, 14)
    old = json.loads(muon("sweep", "show", "old", "--json").out)
    assert (old["imported"], old["spec"], old["runs"][0]["run_id"]) == (True, None, "muon-s42-0badcafe")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hunnt", "no sweep 'hunnt' in {store}; it holds: demo, hunt, old"),
        ("old", "sweep 'old' was imported, it has no file; `muon status old` lists its runs"),
        ("demo", "the file of sweep 'demo' is of a release with other fields (seeds: Field required); "
                 "`muon sweep show demo --json` has it as it was"),
    ],
)  # fmt: skip
def test_a_sweep_without_a_file_is_one_line(muon: Muon, store: Folder, name: str, message: str) -> None:
    refused = muon("sweep", "show", name)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"muon: {message.format(store=store.url)}\n"


def test_ls_lists_sweeps_with_their_runs_by_status(muon: Muon, store: Folder) -> None:
    listed = muon("sweep", "ls")
    assert listed.code == 0
    assert listed.err == "next: muon sweep show demo\n"
    header, *rows = [line.split("  ") for line in listed.out.splitlines()]
    assert header[0] == "sweep"
    assert [row[0] for row in rows] == ["demo", "hunt", "old"]
    assert "10 done, 1 diverged, 1 failed, 1 planned" in listed.out
    assert rows[2][-1] == "(imported)"
    told = {sweep["sweep"]: sweep for sweep in json.loads(muon("sweep", "ls", "--json").out)}
    assert told["demo"]["statuses"] == {"diverged": 1, "done": 10, "failed": 1, "planned": 1}
    assert (told["hunt"]["runs"], told["hunt"]["statuses"]) == (14, {"planned": 14})
    assert told["hunt"]["question"] == 'Is it so: "off", or on?'
    assert told["old"]["imported"]


def test_ls_of_a_store_without_sweeps_lists_none(muon: Muon, tmp_path: Path) -> None:
    storage = write_store(tmp_path / "results", demo_runs())
    storage.delete([key for key, _ in storage.list("sweeps/")])
    listed = muon("sweep", "ls")
    assert (listed.code, listed.err) == (0, "next: muon runs ls\n")
    assert json.loads(muon("sweep", "ls", "--json").out) == []
