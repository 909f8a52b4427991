"""The sweep files of docs/reproduce.md: at full size planned without their data or a GPU, and run as small twins."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.prepared import small_set

from analysis.store import open_store
from muon_core.config.memory import gib, memory
from muon_core.config.run import RunConfig
from muon_core.config.sizes import num_parameters
from muon_core.gpus import GPUS
from muon_core.store.folder import Folder
from ray_jobs.cli.main import main
from ray_jobs.cli.presets import facts, hours_text, usd_text
from ray_jobs.prices import load_prices
from search_spaces.expand import PlannedRun, expand
from search_spaces.spec import load_spec

pytestmark = [
    pytest.mark.slow,
    # the published runs clip the gradients of Muon too
    pytest.mark.filterwarnings("ignore:clipping all at norm 1 under (muon|orthonoise|isotropic):UserWarning"),
]
FOLDER = Path(__file__).parents[2] / "search_spaces"
TEXT = FOLDER.parent / "docs" / "reproduce.md"
RUNS = {"dry_run": 1, "muon_vs_adamw": 6, "orthonoise_sanity": 8, "signal_hunt": 30, "validation_1b": 9}


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a `muon` command."""
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def planned(name: str) -> list[PlannedRun]:
    return expand(load_spec(FOLDER / f"{name}.yaml"))


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray_jobs.machine.count_gpus", lambda *_: 0)


@pytest.mark.parametrize("name", RUNS)
def test_a_plan_at_full_size_needs_neither_data_nor_gpu_and_says_what_is_missing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FOLDER, tmp_path / "search_spaces", ignore=shutil.ignore_patterns("*.py"))  # no data set beside it
    path, store = str(tmp_path / "search_spaces" / f"{name}.yaml"), str(tmp_path / "store")
    code, out, err = called(capsys, "sweep", "plan", path, "--store", store)
    assert code == 0, err
    (missing,) = [line for line in out.splitlines() if line.startswith("missing: ")]
    corpus = tmp_path / "sets" / "cosmopedia"
    told = f"missing: {corpus} is not there, so nothing can be run; make it with `muon data prepare "
    assert missing.startswith(told)
    assert "this machine has 0: run it on a cluster" in out
    assert err.startswith("next: muon data prepare ")
    plan = json.loads(called(capsys, "sweep", "plan", path, "--store", store, "--json")[1])
    assert plan["missing"] == missing.removeprefix("missing: ")
    assert len(plan["to_run"]) == RUNS[name]
    assert {run["config"]["data"]["corpus_sha256"] for run in plan["runs"]} == {None}
    assert not (tmp_path / "store").exists()
    nowhere = ("--address", "http://127.0.0.1:1", "--shared-folder")  # it is not asked
    for refused in (("run", path), ("submit", path, *nowhere)):
        answer = called(capsys, "sweep", *refused, "--store", store)
        assert answer == (2, "", f"muon: {path}: {plan['missing']}\n")


def test_without_a_command_that_makes_it_a_corpus_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"version: 1\nextends: {FOLDER / 'dry_run.yaml'}\nprepare: ''\nconstants: {{data.corpus: books}}\n")
    code, _, err = called(capsys, "sweep", "plan", str(path))
    assert code == 2
    assert err.endswith(
        "books': does not exist; give 'stdlib', a text file, a folder of text files or a data set of "
        "`muon data prepare`\n"
    )


def test_what_is_not_finished_is_missing_too_and_what_is_finished_is_planned_with_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, place = tmp_path / "sweep.yaml", tmp_path / "set"
    size = "steps: 1, batch_size: 1, data.seq_len: 16, data.validation_tokens: 64"
    path.write_text(
        "version: 1\nname: own\nseeds: [1]\nblocks: [{name: a, role: baseline, optimizer: muon}]\n"
        f"prepare: muon data prepare set.jsonl -o set\nconstants: {{data.corpus: set, {size}}}\n"
    )
    (place / ".preparing").mkdir(parents=True)
    plan = json.loads(called(capsys, "sweep", "plan", str(path), "--json")[1])
    assert plan["missing"].startswith(
        f"{place} is not there, so nothing can be run; make it with `muon data prepare set."
    )
    (place / ".preparing").rmdir()
    made = small_set(place)
    plan = json.loads(called(capsys, "sweep", "plan", str(path), "--json")[1])
    assert plan["missing"] is None
    assert plan["runs"][0]["config"]["data"]["corpus_sha256"] == made.content_hash
    path.write_text(path.read_text().replace("steps: 1,", "steps: 10000,"))
    code, _, err = called(capsys, "sweep", "plan", str(path))  # no longer a plan without data: it does not suffice
    assert code == 2
    assert "set allow_epochs: " in err


def test_the_comparison_is_the_published_setting() -> None:
    runs = [run.config for run in planned("muon_vs_adamw")]
    assert {(run.seed, run.optimizer.name) for run in runs} == {
        (seed, name) for seed in (42, 137, 256) for name in ("muon", "adamw")
    }
    for run in runs:
        model = run.model
        assert (model.num_layers, model.d_model, model.num_heads, model.num_kv_heads, model.d_ff) == (
            22, 512, 8, 4, 2048
        )  # fmt: skip
        assert (model.vocab_size, run.data.seq_len, run.tokens_per_step) == (49_152, 2_048, 16_384)
        assert num_parameters(model) == pytest.approx(88.6e6, rel=1e-3)
        assert run.steps * run.tokens_per_step == pytest.approx(1.7e9, rel=1e-5)
        assert (run.schedule.warmup_steps, run.schedule.cooldown) == (0, 0)
        optimizer = run.optimizer.model_dump()
        assert (optimizer["clipping"], optimizer["max_grad_norm"]) == ("all", 1.0)
        muon = optimizer["name"] == "muon"
        assert (optimizer["lr"], optimizer["weight_decay"]) == ((0.024, 0.0) if muon else (5e-4, 0.2))
        assert optimizer["embedding_lr"] == 5e-4


def shape(name: str) -> list[tuple[Any, ...]]:
    """What a sweep asks, but for its size."""
    asked = ("name", "alpha", "anneal", "rank_threshold", "weight_decay", "profile", "attention_blocks")
    return [
        (run.members, run.config.seed, *(run.config.optimizer.model_dump().get(field) for field in asked))
        for run in planned(name)
    ]


@pytest.mark.parametrize("name", RUNS)
def test_a_twin_has_the_same_blocks_arms_and_seeds(name: str) -> None:
    assert shape(f"cpu/{name}") == shape(name)
    small, large = (load_spec(FOLDER / f"{path}.yaml") for path in (f"cpu/{name}", name))
    assert small.name == f"{large.name}-cpu"
    assert small.gates == large.gates
    assert small.resources.gpus_per_worker == 0


@pytest.mark.parametrize("name", [name for name in RUNS if name != "dry_run"])
def test_a_twin_runs_to_its_answer(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store = str(FOLDER / "cpu" / f"{name}.yaml"), str(tmp_path)
    code, out, err = called(capsys, "sweep", "run", path, "--in-process", "--store", store)
    assert code == 0, err
    assert f"{RUNS[name]} done" in out
    runs = open_store(tmp_path).runs.collect()
    assert runs["status"].to_list() == ["done"] * RUNS[name]
    if name == "orthonoise_sanity":  # noise of size 0 is Muon, bit for bit
        ends = dict(runs.select("run_id", "final_val_loss").iter_rows())
        final = {(run.block, run.config.seed): ends[run.run_id] for run in planned(f"cpu/{name}")}
        for seed in (42, 137):
            assert final["no-noise", seed] == final["muon", seed]
            assert final["noise", seed] != final["muon", seed] != final["isotropic", seed]


def test_the_dry_run_has_its_steps_checkpoints_tables_and_a_falling_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = str(FOLDER / "cpu" / "dry_run.yaml"), str(tmp_path)
    code, _, err = called(capsys, "sweep", "run", path, "--in-process", "--store", store)
    assert code == 0, err
    (run,) = planned("cpu/dry_run")
    view, config = open_store(tmp_path), run.config
    end = view.runs.collect().row(0, named=True)
    assert (end["status"], end["steps"], config.tokens_per_step) == ("done", 61, 16_384)
    names = {key.split("/")[2] for key, _ in Folder(tmp_path).list(f"checkpoints/{run.run_id}/")}
    assert {name for name in names if name.startswith("step_")} == {"step_31_0.5M_tokens", "step_61_1M_tokens"}
    layers = view.table("layers").collect()
    steps = [*range(0, 61, 5), 31, 61]
    assert sorted(layers["step"].unique()) == sorted(steps)
    assert layers.height == len(steps) * config.model.num_layers * 6
    loss = view.table("val").sort("step").collect()
    assert loss["step"].to_list() == [*range(0, 61, 5), 61]
    early, late = loss.filter(pl.col("step") <= 30)["val_loss"].to_list(), loss["val_loss"][-1]
    assert early == sorted(early, reverse=True)
    assert late < early[-1] < early[0] - 2
    assert view.table("train").collect().height == 61


def test_a_milestone_is_kept_where_it_is_reached_and_where_a_budget_in_tokens_ends() -> None:
    run = RunConfig.model_validate({"steps": 61, "batch_size": 128, "checkpoint": {"milestones": [500_000, 1_000_000]}})
    assert {step: found for step in range(62) if (found := run.milestone(step))} == {31: 500_000, 61: 1_000_000}
    longer = run.replace(steps=70)
    assert {step: found for step in range(71) if (found := longer.milestone(step))} == {31: 500_000, 62: 1_000_000}
    beyond = run.replace(checkpoint={"milestones": [61 * 16_384 + 8_192]})  # half a step: neither step is nearer
    assert all(beyond.milestone(step) is None for step in range(62))


@pytest.mark.parametrize("name", RUNS)
def test_what_the_text_says_of_its_size_and_price_is_what_presets_compute(name: str) -> None:
    runs, prices = [run.config for run in planned(name)], load_prices()
    tokens = runs[0].steps * runs[0].tokens_per_step
    found = [facts("", run, tokens, "h100", 0.35, prices) for run in runs]
    hours, usd = (sum(one[part] for one in found) for part in ("hours", "usd"))
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", TEXT.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[:2] == [f"{len(runs)} x {runs[0].steps:,}", f"{len(runs) * tokens / 1e6:,.0f} M"]
    assert cells[-2:] == [hours_text(hours), usd_text(usd)]
    assert all(one["fits"] for one in found)


def test_a_billion_weights_fit_each_gpu_whole_and_the_text_says_with_how_much_to_spare() -> None:
    (run, *_), workers = [run.config for run in planned("validation_1b")], 8
    assert load_spec(FOLDER / "validation_1b.yaml").resources.workers == workers
    whole, shares = (memory(run.replace(parallel=mode, compile=False), workers) for mode in ("ddp", "fsdp"))
    assert (run.parallel, run.compile) == ("ddp", True)
    assert whole.peak < GPUS["h100"].memory / 2
    text = " ".join(TEXT.read_text(encoding="utf-8").split())
    room = gib(GPUS["h100"].memory)
    assert f"{gib(whole.peak)} GiB of the {room} that 80 GB are" in text
    assert f"`parallel: fsdp` would need {gib(shares.peak)} GiB" in text
