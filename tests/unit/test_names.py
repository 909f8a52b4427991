"""What arms are called: labels, and the fields that differ where labels repeat; in plans and in answers."""

from pathlib import Path

import pytest
from support.analysis_fixtures import FakeRun, write_store

from analysis.store import open_store
from analysis.summary import summarize
from muon_core.config.arm_names import Arm
from muon_core.config.arm_names import arm_names as name_arms
from muon_core.store.folder import Folder
from muon_core.store.sweeps import write_sweep
from ray_jobs.cli.plan_text import render_plan
from ray_jobs.money import money
from ray_jobs.sweep_plan import sweep_record
from search_spaces.expand import PlannedRun
from search_spaces.plan import Plan, plan
from search_spaces.spec import parse_spec

HEAD = """\
version: 1
name: hunt
seeds: [1, 2]
blocks:
  - {name: base, role: baseline, optimizer: BASE}
"""


def trained(run: PlannedRun, loss: float = 4.0) -> FakeRun:
    """What a store holds of `run` once it is done."""
    facts = {"arm": run.config.arm_label, "arm_id": run.config.arm_id}
    fake = FakeRun(run.config.optimizer.name, run.config.seed, {0: loss}, facts=facts)
    fake.__class__ = type("Named", (FakeRun,), {"run_id": run.run_id})
    return fake


def render(planned: Plan) -> str:
    return render_plan(planned, money(planned, Folder("nowhere")))


def planned(*blocks: str, base: str = "muon") -> Plan:
    return plan(parse_spec(HEAD.replace("BASE", base) + "".join(f"  - {{{block}}}\n" for block in blocks)), {})


def names(*blocks: str, base: str = "muon") -> list[str]:
    """Of the arms, in the order of the plan."""
    told = planned(*blocks, base=base)
    return [told.names[run.config.arm_id] for run in told.runs[: len(told.names)]]


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ("grid: {momentum: [0.9]}", "muon momentum=0.9"),
        ("grid: {nesterov: [false]}", "muon nesterov=false"),
        ("set: {momentum: 0.9, weight_decay: 0.1}", "muon momentum=0.9 weight_decay=0.1"),
        ("set: {adam_betas: [0.8, 0.9]}", "muon adam_betas=[0.8, 0.9]"),
        ("set: {model.d_model: 32}", "muon model.d_model=32"),
        ("set: {ns_dtype: fp32}", "muon ns_dtype=fp32"),
        ("set: {lr: 0.020000001}", "muon-lr0.02"),  # the label tells them apart, if only just
    ],
)
def test_an_arm_labelled_as_the_baseline_is_named_by_what_differs_from_it(block: str, name: str) -> None:
    assert names(f"name: other, optimizer: muon, {block}") == ["muon", name]


def test_arms_of_one_label_without_the_baseline_are_named_by_what_differs_among_them() -> None:
    grid = "name: m, optimizer: muon, set: {weight_decay: 0.1}, grid: {momentum: [0.9, 0.99]}"
    assert names(grid, base="adamw") == ["adamw", "muon momentum=0.9", "muon momentum=0.99"]


def test_arms_whose_labels_tell_them_apart_keep_them() -> None:
    noise = "name: noise, optimizer: orthonoise, grid: {alpha: [0.1, 0.2]}"
    assert names(noise) == ["muon", "orthonoise-a0.1", "orthonoise-a0.2"]


def test_names_of_arms_leave_their_identity_alone() -> None:
    told = planned("name: m, optimizer: muon, grid: {momentum: [0.9]}")
    for run in told.runs:
        assert run.run_id.startswith(f"muon-s{run.config.seed}-")
        assert run.config.arm_id.startswith("muon-")
    assert len(set(told.names)) == len(set(told.names.values())) == 2


def test_a_corpus_is_named_by_its_path_and_not_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Some words of my own.\n" * 50)
    assert names(f"name: m, optimizer: muon, set: {{data.corpus: {tmp_path / 'words.txt'}}}") == [
        "muon", f"muon data.corpus={tmp_path / 'words.txt'}"
    ]  # fmt: skip


def test_plan_and_answer_call_an_arm_alike(tmp_path: Path) -> None:
    told = planned("name: mom, optimizer: muon, grid: {momentum: [0.9, 0.99]}", "name: other, optimizer: adamw")
    storage = write_store(tmp_path, [trained(run) for run in told.runs[:6]])  # two have not started
    write_sweep(storage, sweep_record(told))
    answer = [arm.arm for arm in summarize(open_store(tmp_path).sweep("hunt")).arms]
    assert answer == ["muon", "muon momentum=0.9", "muon momentum=0.99", "adamw"]
    assert all(name in render(told) for name in answer)
    assert [run["arm"] for run in told.to_json()["runs"]] == answer * 2


def test_an_arm_that_two_blocks_share_has_its_block_in_its_name_and_the_others_have_not(tmp_path: Path) -> None:
    alike = "optimizer: muon, set: {momentum: 0.9}"
    told = planned(f"name: one, {alike}", f"name: two, role: control, {alike}")
    storage = write_store(tmp_path, [trained(run) for run in told.runs])
    write_sweep(storage, sweep_record(told))
    answer = [arm.arm for arm in summarize(open_store(tmp_path).sweep("hunt")).arms]
    assert answer == ["muon", "one: muon momentum=0.9", "two: muon momentum=0.9"]


def test_arms_whose_known_fields_are_equal_have_their_hash_in_their_names() -> None:
    arms = {"muon-11": Arm("muon", {"lr": "1"}), "muon-22": Arm("muon", {"lr": "1"}), "adamw-1": Arm("adamw", {})}
    assert name_arms(arms) == {"muon-11": "muon (muon-11)", "muon-22": "muon (muon-22)", "adamw-1": "adamw"}


def test_a_field_that_only_one_arm_has_tells_it_apart() -> None:
    arms = {"a": Arm("muon", {"lr": "1"}, is_baseline=True), "b": Arm("muon", {"lr": "1", "wd": "2"})}
    assert name_arms(arms) == {"a": "muon", "b": "muon wd=2"}
