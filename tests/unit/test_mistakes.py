"""Mistakes that newcomers make in a sweep file: the line each is answered with, and whether `muon schema` sees it."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.schema import schema_refuses

from search_spaces.errors import SpecError
from search_spaces.expand import expand
from search_spaces.spec import load_spec, parse_spec

GOOD = """\
version: 1
name: hunt
question: Does noise help?
preset: tiny
seeds: [1, 2]
constants: {steps: 20, ns_dtype: fp32}
blocks:
  - name: base
    role: baseline
    optimizer: muon
  - name: noise
    optimizer: orthonoise
    grid: {alpha: [0.01, 0.05], rank_threshold: [0.5, 1.0]}
"""

# What a schema cannot know of a file it can read, and why.
ARITHMETIC = "a rule that computes with two fields"
WRITING = "JSON has one number 100, however it is written"
COUNT = "a product of lengths"
ELSEWHERE = "a rule that joins two places of the file"
MACHINE = "a fact that is not in the file"

# (what of the good file is replaced, by what, the answer, why a schema cannot see it: None if it can)
MISTAKES: list[tuple[str, str, str, str | None]] = [
    # optimizers and their parameters
    ("optimizer: orthonoise", "optimizer: adam",
     "12: blocks[noise]: optimizer 'adam' is unknown. Did you mean 'adamw'?", None),
    ("optimizer: muon", "optimizer: MUON", "10: blocks[base]: optimizer 'MUON' is unknown. Did you mean 'muon'?", None),
    ("optimizer: muon", "optimizer: rmsprop",
     "10: blocks[base]: optimizer 'rmsprop' is unknown; known: adamw, lion, soap, sgd, muon, orthonoise, isotropic, "
     "damped, nolah, normuon, adamuon", None),
    ("rank_threshold", "rank_treshold",
     "13: blocks[noise]: unknown parameter 'rank_treshold'. Did you mean 'rank_threshold'?", None),
    ("steps: 20", "eval_every: 5", "6: constants: unknown parameter 'eval_every'. Did you mean 'tracking.eval_every'?",
     None),
    ("question:", "hypothesis:", "3: unknown field 'hypothesis'. Did you mean 'question'?", None),
    ("    grid: {alpha", "    axes: {alpha", "13: blocks[noise]: unknown field 'axes'. Did you mean 'grid'?", None),
    ("steps: 20", "epochs: 5", "6: constants: unknown parameter 'epochs'. Did you mean 'steps'?", None),
    ("optimizer: muon", "optimizer: muon\n    set: {alpha: 0.1}",
     "11: blocks[base]: 'alpha' is no parameter of muon, only of orthonoise, isotropic, damped; remove it "
     "or change the optimizer", None),
    ("steps: 20", "gate: tanh",
     "6: constants: 'gate' is no parameter of muon or orthonoise, only of nolah; remove it or change the "
     "optimizer", None),
    ("steps: 20", "model: {num_layers: 2, d_ff: 64}",
     "6: constants: 'model' is a group of parameters; write each with a dot: model.num_layers: 2, "
     "model.d_ff: 64", None),
    ("rank_threshold: [0.5, 1.0]", "seed: [1, 2]",
     "13: blocks[noise]: 'seed' cannot be set here; list seeds under `seeds`", None),
    ("rank_threshold: [0.5, 1.0]", "optimizer: [muon]",
     "13: blocks[noise]: a block has one optimizer, given beside its name; write a block for each", None),
    # values
    ("steps: 20", "lr: -0.02", "6: constants: lr must be greater than 0, got -0.02", None),
    ("steps: 20", 'lr: "0.02"', "6: constants: lr must be a number, got '0.02'; remove the quotes: 0.02", None),
    ("steps: 20", "lr: 0,02",
     "6: 02 stands alone after a comma; write `name: value`, and 0.02 with a point", "no YAML"),
    ("steps: 20", "steps: 20.5", "6: constants: steps must be a whole number, got 20.5; round it", None),
    ("steps: 20", "steps: 1e2", "6: constants: steps must be a whole number, got 100.0; write 100", WRITING),
    ("steps: 20", "steps: 0", "6: constants: steps must be greater than 0, got 0", None),
    ("steps: 20", "steps: 1_000", "6: constants: steps must be a whole number, got '1_000'; write 1000", None),
    ("steps: 20", "steps:", "6: constants: steps must be a whole number, got null; give a value, or remove the line",
     None),
    ("steps: 20", "steps:20", "6: write a space after the colon: steps: 20", "no file with a name and its value in it"),
    ("steps: 20", "nesterov: no", "6: constants: nesterov must be true or false, got 'no'; write false", None),
    ("steps: 20", "nesterov: 'true'",
     "6: constants: nesterov must be true or false, got 'true'; remove the quotes: true", None),
    ("ns_dtype: fp32", "ns_dtype: float32",
     "6: constants: ns_dtype must be 'bf16' or 'fp32', got 'float32'. Did you mean 'fp32'?", None),
    ("steps: 20", "model.dropout: 1.5", "6: constants: model.dropout must be less than 1, got 1.5", None),
    ("steps: 20", "data.corpus: 5", "6: constants: data.corpus must be text, got 5; put it in quotes: '5'", None),
    ("steps: 20", "adam_betas: [0.9]", "6: constants: adam_betas has too few values, got [0.9]", None),
    ("steps: 20", "adam_betas: [0.9, 0.95, 0.99]",
     "6: constants: adam_betas must have 2 values, got [0.9, 0.95, 0.99]", None),
    ("steps: 20", "adam_betas: 0.9", "6: constants: adam_betas must be a list, got 0.9; write [0.9]", None),
    ("steps: 20", "lr: .inf", "6: constants: lr must be a finite number, got .inf", "JSON has no infinity"),
    ("steps: 20", "model.num_heads: 3",
     "6: constants: num_heads 3 must divide half of d_model 64, for heads of an even size (RoPE turns pairs); choose a "
     "divisor of 32", ARITHMETIC),
    ("steps: 20", "batch_size: 15, micro_batches: 2",
     "6: constants: batch_size 15 must be a multiple of micro_batches 2", ARITHMETIC),
    ("steps: 20", "decay: none, weight_decay: 0.1",
     "6: constants: weight_decay 0.1 under decay none; set decay to decoupled, or remove it", ELSEWHERE),
    ("steps: 20", "data.corpus: books",
     "6: constants: corpus '{here}/books': does not exist; give 'stdlib', a text file, a folder of "
     "text files or a data set of `muon data prepare`", MACHINE),
    # lists
    ("[1, 2]", '"1, 2"', "5: seeds: must be a list, got '1, 2'; write [1, 2]", None),
    ("[1, 2]", "1 2", "5: seeds: must be a list, got '1 2'; write [1, 2]", None),
    ("[1, 2]", "'[1, 2]'", "5: seeds: must be a list, got '[1, 2]'; remove the quotes: [1, 2]", None),
    ("[1, 2]", "(1, 2)", "5: seeds: must be a list, got '(1, 2)'; write [1, 2]", None),
    ("[1, 2]", "3", "5: seeds: must be a list, got 3; write [3], or for 3 seeds [0, 1, 2]", None),
    ("[1, 2]", "\n  -1\n  -2", "5: seeds: must be a list, got '-1 -2'; write a space after each dash: - 1", None),
    ("[1, 2]", "[1 2]", "5: seeds[0]: must be a whole number, got '1 2'; put commas between: 1, 2", None),
    ("[1, 2]", "range(5)",
     "5: seeds: must be a list, got 'range(5)'; a file holds values, no code: list each, such as [0, 1, 2]", None),
    ("[1, 2]", "{from: 1, to: 3}",
     "5: seeds: must be a list, got {from: 1, to: 3}; write seeds: [42, 137, 256]", None),
    ("[1, 2]", "[]", "5: seeds: must not be empty; give at least one value", None),
    ("[1, 2]", "[-1, 2]", "5: seeds[0]: must be at least 0, got -1", None),
    ("[1, 2]", "[1, 1]", "5: seeds[1]: is 1 a second time; list each value once", None),
    ("[1, 2]", "[true, 2]", "5: seeds[0]: must be a whole number, got true", None),
    ("[0.01, 0.05]", "[]", "13: blocks[noise]: grid.alpha must not be empty; give at least one value", None),
    ("[0.01, 0.05]", "[0.01, 0.01]",
     "13: blocks[noise]: grid.alpha[1] is 0.01 a second time; list each value once", None),
    ("[0.01, 0.05]", "0.01", "13: blocks[noise]: grid.alpha must be a list, got 0.01; write [0.01]", None),
    ("[0.01, 0.05]", "{values: [0.01, 0.05]}",
     "13: blocks[noise]: grid.alpha must be a list, got {values: [0.01, 0.05]}; write the list alone, under a block's "
     "grid: [0.01, 0.05]", None),
    ("[0.01, 0.05]", "{min: 0, max: 1}",
     "13: blocks[noise]: grid.alpha must be a list, got {min: 0, max: 1}; values are not drawn from ranges; "
     "list those to "
     "try under a block's grid: [0.01, 0.02]", None),
    ("{alpha: [0.01, 0.05], rank_threshold: [0.5, 1.0]}", "[alpha, 0.01]",
     "13: blocks[noise]: grid must be a mapping, got [alpha, 0.01]; write grid: {lr: [0.01, 0.02]}", None),
    ("grid:", "set: {lr: [0.01, 0.02]}\n    grid:",
     "13: blocks[noise]: lr must be a number, got [0.01, 0.02]; a list is one value here: to try each, put it under "
     "`grid`", None),
    ("grid:", "zip: {lr: [1, 2], momentum: [0.9]}\n    grid:",
     "13: blocks[noise]: zip lists must have one length, got lr 2, momentum 1", COUNT),
    ("grid:", "skip: [{alpha: 0.02}]\n    grid:",
     "13: blocks[noise]: skip {alpha: 0.02} matches no cell; give values as they stand on the axes", ELSEWHERE),
    ("[0.01, 0.05]", f"{[*range(1, 2502)]}",
     "13: blocks[noise]: spans 10,004 runs, more than the 10,000 a sweep may have; split it, or thin the "
     "axes out", COUNT),
    # fields
    ("    grid:", "    lr: 0.02\n    grid:",
     "13: blocks[noise]: 'lr' is a parameter; put it under set: `set: {lr: 0.02}`", None),
    ("    grid:", "    lr: [0.01, 0.02]\n    grid:",
     "13: blocks[noise]: 'lr' is a parameter; put it under grid: `grid: {lr: [0.01, 0.02]}`", None),
    ("    grid:", "    adam_betas: [0.9, 0.99]\n    grid:",
     "13: blocks[noise]: 'adam_betas' is a parameter; put it under set: `set: {adam_betas: [0.9, 0.99]}`", None),
    ("    grid:", "    seeds: [1]\n    grid:",
     "13: blocks[noise]: 'seeds' is a field of the sweep; move it to the top of the file", None),
    ("preset: tiny", "steps: 20", "4: 'steps' is a parameter; put it under constants: `constants: {steps: 20}`", None),
    ("preset: tiny", "lr: [1, 2]",
     "4: 'lr' is a parameter; put it under grid of a block: `grid: {lr: [1, 2]}`", None),
    ("preset: tiny", "model: {d_ff: 2}",
     "4: 'model' is a parameter; put it under constants: `constants: {model.d_ff: 2}`", None),
    ("preset: tiny", "optimizer: muon", "4: 'optimizer' is a field of a block; move it into one under `blocks`", None),
    ("preset: tiny", "callbacks: {patience: 3}",
     "4: unknown field 'callbacks'; remove it; docs/parameters.md lists them", None),
    ("preset: tiny", "prepare: books",
     "4: prepare: must be the command that makes the data set, such as muon data prepare books -o sets/books, "
     "got 'books'",
     None),
    ("preset: tiny", "preset: small", "4: preset: 'small' is unknown; known: tiny, 88m, 350m, 1b", None),
    ("preset: tiny", "preset: Tiny", "4: preset: 'Tiny' is unknown. Did you mean 'tiny'?", None),
    ("version: 1", "version: 2", "1: version: must be 1, got 2; write 1", None),
    ("version: 1", 'version: "1"', "1: version: must be 1, got '1'; remove the quotes: 1", None),
    ("seeds: [1, 2]\n", "", "1: field 'seeds' is missing; add `seeds: [42, 137, 256]`", None),
    ("name: hunt", "name: my sweep",
     "2: name: 'my sweep' cannot name a run or sweep: use letters, digits, '.', '_' and '-', a letter or digit first; "
     "write my-sweep", None),
    ("name: hunt", "name: ../../etc",
     "2: name: '../../etc' cannot name a run or sweep: use letters, digits, '.', '_' and '-', a letter or digit first; "
     "write etc", None),
    ("preset: tiny", "metrics: {primary: accuracy}",
     "4: metrics: primary must be 'val_loss' or 'val_accuracy', got 'accuracy'. Did you mean 'val_accuracy'?", None),
    ("preset: tiny", "metrics: {primary: val_accuracy, goal: min}",
     "4: metrics: goal must be 'max' for val_accuracy, got 'min'", None),
    ("preset: tiny", "resources: {workers: 3}",
     "4: resources: batch_size 16 in 1 micro-batches does not divide over 3 workers; choose numbers of "
     "which each divides the next", ARITHMETIC),
    # blocks
    ("    role: baseline\n", "", "7: blocks: no block is the baseline; give one of them `role: baseline`", None),
    ("name: noise", "name: noise\n    role: baseline",
     "12: blocks[noise]: role cannot be baseline: blocks[base] is; make one of them candidate or control", None),
    ("role: baseline", "role: basline",
     "9: blocks[base]: role must be 'baseline', 'candidate' or 'control', got 'basline'. Did you mean "
     "'baseline'?", None),
    ("optimizer: muon", "optimizer: muon\n    grid: {lr: [0.01, 0.02]}",
     "11: blocks[base]: the baseline must be one cell, got 2; move its axes to a candidate block", None),
    ("name: noise", "name: base",
     "11: blocks[base]: name is taken: an earlier block is 'base' too; choose another", ELSEWHERE),
    # YAML
    ("    role", "   role",
     "9: `role` begins in column 4, but `name` of line 8 in column 5; names that belong together begin in one column",
     "no YAML"),
    ("preset: tiny", "preset:tiny", "4: write a space after the colon: preset: tiny", "no YAML"),
    ("Does noise", "Noise: does it",
     "3: a text that holds a colon goes in quotes: question: 'Noise: does it help?'", "no YAML"),
    ("preset: tiny", "preset: tiny\npreset: 88m",
     "5: 'preset' is given in line 4 already; keep one of them", "no YAML"),
    ("    role", "\trole", "9: a tab stands in column 1; replace it by spaces", "no YAML"),
    ("[1, 2]", "[1, 2", "5: the [ in column 8 is not closed; add ]", "no YAML"),
    ("[1, 2]", "&s [1, 2]\nmore: *s",
     "6: anchors and aliases (&name, *name) are not read; write the value out", "no YAML of ours"),
]  # fmt: skip

IDS = [new.strip().partition("\n")[0][:40] or f"without {old.strip()}" for old, new, *_ in MISTAKES]


def answers(text: str, folder: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        expand(parse_spec(text, folder=folder))
    return list(caught.value.lines)


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_the_good_file_is_good() -> None:
    assert len(expand(parse_spec(GOOD))) == 10
    assert not schema_refuses(GOOD)


@pytest.mark.parametrize(("old", "new", "message", "unseen"), MISTAKES, ids=IDS)
def test_a_mistake_is_answered_by_where_it_is_and_what_to_do(
    old: str, new: str, message: str, unseen: str | None, tmp_path: Path
) -> None:
    wanted = f"sweep.yaml:{message.replace('{here}', str(tmp_path))}"
    assert answers(replaced(old, new), tmp_path) == [wanted]


@pytest.mark.parametrize(("old", "new", "message", "unseen"), MISTAKES, ids=IDS)
def test_the_schema_refuses_what_a_schema_can_see(old: str, new: str, message: str, unseen: str | None) -> None:
    assert schema_refuses(replaced(old, new)) == (unseen is None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("preset: tiny", "metrics: {primary: val_accuracy}"),
        ("steps: 20", "steps: 20, alpha: 0.5"),  # the axis wins, and muon has none
        ("steps: 20", "steps: 20, tracking.eval_every: 500"),
        ("ns_dtype: fp32", "optimizer.ns_dtype: fp32"),
        ("optimizer: muon", "optimizer: muon\n    grid: {lr: [0.01, 0.02]}\n    skip: [{lr: 0.01}]"),
        ("preset: tiny", "resources: {gpus_per_worker: 0.5, max_concurrent: 3}"),
        ("steps: 20", "steps: 20, tracking.spectra_every: null, checkpoint.milestones: [1000]"),
    ],
)
def test_what_is_legal_passes_the_schema_too(old: str, new: str) -> None:
    text = replaced(old, new)
    assert expand(parse_spec(text))
    assert not schema_refuses(text)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_named(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(GOOD.replace("help", "größer").encode(encoding))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert (
        str(caught.value).removeprefix(f"{path}:")
        == {
            "utf-16": "1: the file is UTF-16, or no text; save it as UTF-8",
            "latin-1": "3: not UTF-8 (byte 0xf6, 'ö' in Latin-1); save the file as UTF-8",
        }[encoding]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "method: grid\nmetric: {name: val_loss}\nparameters:\n  lr: {values: [0.01, 0.02]}\n",
            "this is no sweep file but one of W&B: version, name, seeds and blocks are missing; values to "
            "try go under ",
        ),
        (
            "config:\n  lr: {grid_search: [0.01]}\n",
            "this is no sweep file: version, name, seeds and blocks are missing; ",
        ),
        (
            "steps: 20\nmodel: {d_ff: 64}\noptimizer: muon\n",
            "these are parameters of one run; `muon pretrain sweep.yaml` trains it, a sweep has blocks and seeds",
        ),
        ("", "the file is empty; a sweep file has at least version, name, seeds and blocks; README.md shows one"),
    ],
)
def test_a_file_of_another_kind_is_answered_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (line,) = answers(text, tmp_path)
    assert line.startswith(f"sweep.yaml:1: {message}")


def test_every_answer_is_one_short_line_in_plain_words() -> None:
    told: list[Any] = [message for _, _, message, _ in MISTAKES]
    assert [message for message in told if len(message) > 200] == []
    jargon = r"scalar|mapping values|block end|stream|NoneType|\bNone\b|True|False|Input should"
    assert [message for message in told if re.search(jargon, message)] == []
