"""The sweep file's schema: what a good file becomes, and the one line each fault gives."""

import subprocess
import sys
from pathlib import Path

import pytest

from muon_core.config.optimizers import OPTIMIZERS
from search_spaces.errors import SpecError
from search_spaces.limits import Retries
from search_spaces.spec import Metrics, Resources, SweepSpec, load_spec, parse_spec
from search_spaces.values import distinct

GOOD = """\
version: 1
name: hunt
question: Does noise help?
seeds: [42, 137]
constants: {steps: 50}
blocks:
  - name: base
    role: baseline
    optimizer: muon
  - name: rank
    optimizer: orthonoise
    grid: {alpha: [1e-3, 5e-2]}
"""
STEPS = "constants: {steps: 50}"
NEEDS = "a sweep file has at least version, name, seeds and blocks; README.md shows one"
UNNAMEABLE = "cannot name a run or sweep: use letters, digits, '.', '_' and '-', a letter or digit first"


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert str(caught.value) == "\n".join(caught.value.lines)
    return list(caught.value.lines)


def test_parse_spec_fills_in_defaults() -> None:
    spec = parse_spec(GOOD)
    assert spec.preset == "tiny"
    assert spec.seeds == [42, 137]
    assert [block.role for block in spec.blocks] == ["baseline", "candidate"]
    assert spec.blocks[1].grid == {"alpha": [0.001, 0.05]}
    assert spec.metrics == Metrics(primary="val_loss", goal="min", at="final")
    assert spec.resources == Resources(workers=1, gpus_per_worker=0, cpus_per_worker=1, max_concurrent="auto")
    assert spec.retries == Retries(infrastructure=3)


def test_values_are_compared_by_what_they_hash_to_and_not_with_each_other() -> None:
    """A list of a million is answered as soon as it is read; pairs would take a day."""

    class Counted(int):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    values = [Counted(number) for number in range(10_000)]
    assert distinct(values) is values
    assert Counted.compared < len(values)


def test_spec_survives_its_own_json() -> None:
    spec = parse_spec(GOOD)
    assert SweepSpec.model_validate_json(spec.model_dump_json()).model_dump() == spec.model_dump()


def test_replace_keeps_the_file_for_messages() -> None:
    spec = parse_spec(GOOD, name="hunt.yaml")
    assert spec.replace(seeds=[1]).source is spec.source
    assert spec.replace(seeds=[1]).seeds == [1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # fields
        ("question:", "qestion:", "3: unknown field 'qestion'. Did you mean 'question'?"),
        ("    role:", "    rolle:", "8: blocks[base]: unknown field 'rolle'. Did you mean 'role'?"),
        (STEPS, "resources: {wokers: 1}", "5: resources: unknown field 'wokers'. Did you mean 'workers'?"),
        (STEPS, "arms: []", "5: unknown field 'arms'. Did you mean 'blocks'?"),
        (STEPS, "reports: []", "5: unknown field 'reports'; remove it; docs/parameters.md lists them"),
        (
            STEPS,
            "retries: {oom: 0}",
            "5: retries: unknown field 'oom'; remove it; known: preemption, infrastructure, program, hang_after_s",
        ),
        ("name: hunt\n", "", "1: field 'name' is missing; add `name: my-sweep`"),
        ("    optimizer: orthonoise\n", "", "10: blocks[rank]: field 'optimizer' is missing; add `optimizer: muon`"),
        # names
        ("name: hunt", "name: a b", f"2: name: 'a b' {UNNAMEABLE}; write a-b"),
        ("name: hunt", "name: ..", f"2: name: '..' {UNNAMEABLE}"),
        ("name: hunt", "name: 5", "2: name: must be text, got 5; put it in quotes: '5'"),
        ("name: hunt", f"name: {'x' * 101}", f"2: name: must have at most 100 characters, got '{'x' * 76}..."),
        (
            "name: rank",
            "name: base",
            "10: blocks[base]: name is taken: an earlier block is 'base' too; choose another",
        ),
        ("name: rank", "name: a/b", f"10: blocks[a/b]: name 'a/b' {UNNAMEABLE}; write a-b"),
        # values
        ("version: 1", "version: 2", "1: version: must be 1, got 2; write 1"),
        ("version: 1", "version: 1\npreset: tny", "2: preset: 'tny' is unknown. Did you mean 'tiny'?"),
        (
            "optimizer: muon",
            "optimizer: rmsprop",
            f"9: blocks[base]: optimizer 'rmsprop' is unknown; known: {', '.join(OPTIMIZERS)}",
        ),
        ("optimizer: muon", "optimizer: mun", "9: blocks[base]: optimizer 'mun' is unknown. Did you mean 'muon'?"),
        (
            "role: baseline",
            "role: basline",
            "8: blocks[base]: role must be 'baseline', 'candidate' or 'control', got 'basline'."
            " Did you mean 'baseline'?",
        ),
        (STEPS, "constants: [steps]", "5: constants: must be a mapping, got [steps]; write constants: {steps: 200}"),
        (STEPS, "constants:", "5: constants: must be a mapping, got null; give a value, or remove the line"),
        (STEPS, "metrics: {primary: val_loss, goal: max}", "5: metrics: goal must be 'min' for val_loss, got 'max'"),
        (
            STEPS,
            "metrics: {primary: train_loss}",
            "5: metrics: primary must be 'val_loss' or 'val_accuracy', got 'train_loss'. Did you mean 'val_loss'?",
        ),
        (STEPS, "resources: {workers: 0}", "5: resources: workers must be greater than 0, got 0"),
        (STEPS, "resources: {workers: 2.0}", "5: resources: workers must be a whole number, got 2.0; write 2"),
        (STEPS, "resources: {gpus_per_worker: -1}", "5: resources: gpus_per_worker must be at least 0, got -1"),
        (
            STEPS,
            "resources: {workers: 2, gpus_per_worker: 0.5}",
            "5: resources: gpus_per_worker 0.5 would put several of 2 workers on one GPU, which NCCL refuses; set it "
            "to 1, or workers: 1",
        ),
        (
            STEPS,
            "resources: {max_concurrent: many}",
            "5: resources: max_concurrent must be 'auto' or be a whole number, got 'many'",
        ),
        (
            STEPS,
            "resources: {max_concurrent: '4'}",
            "5: resources: max_concurrent must be 'auto' or be a whole number, got '4'; remove the quotes: 4",
        ),
        (
            STEPS,
            "resources: {max_concurrent: 0}",
            "5: resources: max_concurrent must be 'auto' or be greater than 0, got 0",
        ),
        (
            STEPS,
            "resources: {cpus_per_worker: .inf}",
            "5: resources: cpus_per_worker must be a finite number, got .inf",
        ),
        (
            STEPS,
            "retries: {infrastructure: unlimited}",
            "5: retries: infrastructure must be a whole number, got 'unlimited'",
        ),
        # seeds
        ("seeds: [42, 137]", "seeds: []", "4: seeds: must not be empty; give at least one value"),
        ("seeds: [42, 137]", "seeds: 42", "4: seeds: must be a list, got 42; write [42]"),
        ("seeds: [42, 137]", "seeds:\n- 42\n- 42", "6: seeds[1]: is 42 a second time; list each value once"),
        ("seeds: [42, 137]", "seeds: [42, '7']", "4: seeds[1]: must be a whole number, got '7'; remove the quotes: 7"),
        ("seeds: [42, 137]", "seeds: [4e1]", "4: seeds[0]: must be a whole number, got 40.0; write 40"),
        ("seeds: [42, 137]", "seeds: [1e308]", "4: seeds[0]: must be a whole number, got 1e+308"),
        ("seeds: [42, 137]", "seeds: [-1]", "4: seeds[0]: must be at least 0, got -1"),
        # blocks
        ("role: baseline", "role: control", "6: blocks: no block is the baseline; give one of them `role: baseline`"),
        (
            "optimizer: orthonoise",
            "optimizer: orthonoise\n    role: baseline",
            "12: blocks[rank]: role cannot be baseline: blocks[base] is; make one of them candidate or control",
        ),
        ("[1e-3, 5e-2]", "[]", "12: blocks[rank]: grid.alpha must not be empty; give at least one value"),
        ("[1e-3, 5e-2]", "1e-3", "12: blocks[rank]: grid.alpha must be a list, got 0.001; write [0.001]"),
        (
            "[1e-3, 5e-2]",
            "[1e-3, 0.001]",
            "12: blocks[rank]: grid.alpha[1] is 0.001 a second time; list each value once",
        ),
        (
            "grid: {alpha: [1e-3, 5e-2]}",
            "grid: {adam_betas: [[0.9, 0.95], [0.9, 0.99], [0.9, 0.95]]}",
            "12: blocks[rank]: grid.adam_betas[2] is [0.9, 0.95] a second time; list each value once",
        ),
        (
            "grid: {alpha: [1e-3, 5e-2]}",
            "zip: {alpha: [1, 2, 3], lr: [1, 2]}",
            "12: blocks[rank]: zip lists must have one length, got alpha 3, lr 2",
        ),
        (
            "grid: {alpha: [1e-3, 5e-2]}",
            "skip: [{}]",
            "12: blocks[rank]: skip[0] must not be empty; give at least one value",
        ),
        # syntax
        ("name: hunt", "name: hunt\nname: hunt", "3: 'name' is given in line 2 already; keep one of them"),
        ("[42, 137]", "[42, 137", "4: the [ in column 8 is not closed; add ]"),
    ],
)
def test_parse_spec_tells_the_fault_in_one_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert problems(GOOD.replace(old, new, 1)) == [f"sweep.yaml:{message}"]


def test_parse_spec_tells_every_fault_in_the_order_of_the_file() -> None:
    faulty = (
        GOOD.replace("[42, 137]", "[]").replace("optimizer: muon", "optimizer: rmsprop").replace("name: hunt", "nam: x")
    )
    assert problems(faulty) == [
        "sweep.yaml:2: unknown field 'nam'. Did you mean 'name'?",
        "sweep.yaml:4: seeds: must not be empty; give at least one value",
        f"sweep.yaml:9: blocks[base]: optimizer 'rmsprop' is unknown; known: {', '.join(OPTIMIZERS)}",
    ]


def test_parse_spec_keeps_a_message_on_one_line() -> None:
    assert problems(GOOD + '"a\\nb": 1\n')[0].startswith("sweep.yaml:13: unknown field 'a\\nb'; remove it; docs")


def test_parse_spec_names_a_block_without_a_name_by_its_place() -> None:
    assert problems(GOOD.replace("name: rank\n    ", "")) == [
        "sweep.yaml:10: blocks[1]: field 'name' is missing; add `name: base`"
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_parse_spec_says_that_a_file_is_empty(text: str) -> None:
    assert problems(text) == [f"sweep.yaml:1: the file is empty; {NEEDS}"]


def test_parse_spec_refuses_what_is_no_mapping() -> None:
    assert problems("\n- a\n") == [f"sweep.yaml:2: this is no mapping of fields (`name: value`); {NEEDS}"]


def test_load_spec_reads_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "hunt.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_spec(path).source.folder == tmp_path


def test_load_spec_tells_what_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"version: 1\nquestion: caf\xe9\n")
    for path, message in [
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "cannot be read: Is a directory"),
    ]:
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        assert str(caught.value) == f"{path}: {message}"
    with pytest.raises(SpecError) as caught:
        load_spec(latin)
    assert str(caught.value) == f"{latin}:2: not UTF-8 (byte 0xe9, 'é' in Latin-1); save the file as UTF-8"


def test_planning_imports_no_training_code() -> None:
    code = "import sys, search_spaces.plan; print(*{'torch', 'ray', 'altair', 'scipy', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
