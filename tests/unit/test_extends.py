"""`extends`: what a file takes over, where its values are said to stand, and what is refused."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from search_spaces.errors import SpecError
from search_spaces.expand import expand
from search_spaces.schema import json_schema
from search_spaces.spec import load_spec
from search_spaces.strict_yaml import parse
from search_spaces.write_yaml import as_sweep_yaml

BASE = """\
version: 1
name: base
question: Of the base.
seeds: [1, 2, 3]
constants: {steps: 20, batch_size: 8}
blocks:
  - {name: muon, role: baseline, optimizer: muon}
  - name: noise
    optimizer: orthonoise
    set: {lr: 0.01, anneal: linear}
    grid: {alpha: [0.01, 0.05]}
gates: [{name: sane, kind: superior, of: block:noise}]
budget: {usd: 10}
"""
OVER = """\
extends: base.yaml
name: over
seeds: [7]
constants: {steps: 30}
blocks:
  - {name: adamw, optimizer: adamw}
  - {name: noise, set: {lr: 0.02}, grid: {alpha: [0.1]}}
budget: {per_run_usd: 1}
"""


def written(folder: Path, **texts: str) -> str:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{[*texts][-1]}.yaml")


def problems(path: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        expand(load_spec(path))
    folder = f"{Path(path).parent}/"
    return [line.replace(folder, "") for line in caught.value.lines]


def test_mappings_merge_blocks_merge_by_name_and_the_rest_is_replaced(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, base=BASE, over=OVER))
    assert (spec.name, spec.question, spec.seeds) == ("over", "Of the base.", [7])
    assert spec.constants == {"steps": 30, "batch_size": 8}
    assert [block.name for block in spec.blocks] == ["muon", "noise", "adamw"]
    noise = spec.blocks[1]
    assert (noise.optimizer, noise.set, noise.grid) == (
        "orthonoise",
        {"lr": 0.02, "anneal": "linear"},
        {"alpha": [0.1]},
    )
    assert spec.budget
    assert (spec.budget.usd, spec.budget.per_run_usd) == (10, 1)
    assert [gate.name for gate in spec.gates] == ["sane"]


def test_what_is_stored_is_whole(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, base=BASE, over=OVER))
    assert "extends" not in spec.model_dump(mode="json")
    assert "extends" not in as_sweep_yaml(spec)


def test_a_file_that_changes_nothing_has_the_same_runs(tmp_path: Path) -> None:
    base, over = load_spec(written(tmp_path, base=BASE)), load_spec(written(tmp_path, over="extends: base.yaml\n"))
    assert [run.run_id for run in expand(over)] == [run.run_id for run in expand(base)]


def test_a_chain_is_followed_and_paths_are_seen_from_the_file_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "far" / "corpus").mkdir(parents=True)
    (tmp_path / "far" / "corpus" / "a.txt").write_text("To be or not to be.")
    written(tmp_path / "far", base=BASE.replace("steps: 20", "steps: 20, data.corpus: corpus"), middle=OVER)
    spec = load_spec(written(tmp_path, top="extends: far/middle.yaml\nname: top\n"))
    assert (spec.name, spec.seeds) == ("top", [7])
    assert {run.config.data.corpus for run in expand(spec)} == {str(tmp_path / "far" / "corpus")}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 20, ", "steps: 20, lr: -1, ", "base.yaml:5: constants: lr must be greater than 0, got -1"),
        ("anneal: linear", "anneal: liner",
         "base.yaml:10: blocks[noise]: anneal must be 'none', 'exponential' or 'linear', got 'liner'. Did you mean "
         "'linear'?"),
        ("usd: 10", "usd: 0.5",
         "over.yaml:8: budget: per_run_usd 1 is more than the whole sweep may spend, usd 0.5; lower it"),
        ("of: block:noise", "of: block:nose", "base.yaml:12: gates[sane]: of: no block is called 'nose'. Did you mean "
         "'noise'?"),
        ("version: 1", "versoin: 1", "base.yaml:1: unknown field 'versoin'. Did you mean 'version'?"),
        ("seeds: [1", "seeds: [[1", "base.yaml:4: the [ in column 8 is not closed; add ]"),
        ("version: 1", "extends: over.yaml\nversion: 1",
         "base.yaml:1: extends: goes round in a circle: over.yaml -> base.yaml -> over.yaml; remove one of them"),
        ("version: 1", "extends: none.yaml\nversion: 1",
         "base.yaml:1: extends: no file none.yaml; give its path as seen from the folder of this file"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_file_it_is_in(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert problems(written(tmp_path, base=BASE.replace(old, new), over=OVER)) == [message]


def test_mistakes_of_both_files_are_told_together_those_of_the_file_itself_first(tmp_path: Path) -> None:
    base, over = BASE.replace("steps: 20", "stepps: 20"), OVER.replace("steps: 30", "alhpa: 30")
    assert problems(written(tmp_path, base=base, over=over)) == [
        "over.yaml:4: constants: unknown parameter 'alhpa'. Did you mean 'alpha'?",
        "base.yaml:5: constants: unknown parameter 'stepps'. Did you mean 'steps'?",
    ]


def test_editors_ask_a_file_that_extends_another_for_nothing_that_may_stand_there() -> None:
    schema = Draft202012Validator(json_schema())
    assert not [*schema.iter_errors(parse(OVER).value)]
    assert [*schema.iter_errors(parse(OVER.replace("extends: base.yaml\n", "")).value)]
    assert [*schema.iter_errors(parse(OVER.replace("steps: 30", "steps: -30")).value)]
