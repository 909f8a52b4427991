"""Mistakes in gates, limits, samples and what extends another file: the one line each is answered with."""

from pathlib import Path

import pytest
from support.schema import schema_refuses

from ray_jobs.cli.main import main
from search_spaces.expand import expand
from search_spaces.spec import SweepSpec, parse_spec
from search_spaces.write_yaml import as_sweep_yaml

GOOD = """\
version: 1
name: hunt
seeds: [1, 2]
constants: {steps: 20}
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - {name: noise, optimizer: orthonoise, grid: {alpha: [0.01, 0.05]}}
  - name: drawn
    optimizer: isotropic
    sample: {n: 3, lr: "loguniform(1e-3, 1e-1)", anneal: "choice(none, linear)"}
gates:
  - {name: sane, kind: non_inferior, of: "*", margin: 5%}
  - {name: signal, kind: superior, of: block:noise, vs: baseline, min_effect: 1%}
  - {name: same, kind: equivalent, of: block:noise, vs: block:base, margin: 0.02}
budget: {usd: 105, per_run_usd: 8, on_exceed: stop}
retries: {preemption: unlimited, infrastructure: 3, program: 0}
breaker: {same_error: 3}
stop: [{when: nonfinite, action: fail}, {when: spike, action: drain}]
"""
EFFECT = "must be a share above 0 such as 5%, or a positive number in the metric's unit"
DISTRIBUTIONS = "write uniform(0, 0.1), loguniform(1e-3, 1e-1), randint(1, 8) or choice(0.9, 0.95)"

# What a schema cannot know of a file it can read, and why.
ELSEWHERE = "a rule that joins two places of the file"
DRAWN = "a rule about the values within a text"
NO_YAML = "no YAML"

# (what of the good file is replaced, by what, the answer, why a schema cannot see it: None if it can)
MISTAKES: list[tuple[str, str, str, str | None]] = [
    # gates
    ("name: signal", "name: sane",
     "13: gates[sane]: name is taken: an earlier gate is 'sane' too; choose another", ELSEWHERE),
    ("kind: superior", "kind: better",
     "13: gates[signal]: kind must be 'non_inferior', 'superior' or 'equivalent', got 'better'", None),
    ("kind: superior", "kind: superiour",
     "13: gates[signal]: kind must be 'non_inferior', 'superior' or 'equivalent', got 'superiour'. Did you mean "
     "'superior'?", None),
    (", margin: 5%", "",
     "12: gates[sane]: non_inferior needs a margin, the difference that does not matter; add `margin: 5%`", None),
    ("min_effect: 1%", "margin: 1%",
     "13: gates[signal]: margin is for non_inferior and equivalent; under superior write min_effect: 1%", None),
    ("margin: 0.02", "min_effect: 0.02",
     "14: gates[same]: min_effect is for superior; under equivalent write margin: 0.02", None),
    ("margin: 5%", "margin: 5 %", f"12: gates[sane]: margin {EFFECT}, got '5 %'; write 5%", None),
    ("margin: 5%", "margin: '0.05'",
     f"12: gates[sane]: margin {EFFECT}, got '0.05'; remove the quotes: 0.05, or write 0.05%", None),
    ("margin: 5%", "margin: -0.1", f"12: gates[sane]: margin {EFFECT}, got -0.1", None),
    ("margin: 5%", "margin: 0%", f"12: gates[sane]: margin {EFFECT}, got '0%'", None),
    ("margin: 5%", "margins: 5%", "12: gates[sane]: unknown field 'margins'. Did you mean 'margin'?", None),
    ("block:noise, vs: baseline", "block:nois, vs: baseline",
     "13: gates[signal]: of: no block is called 'nois'. Did you mean 'noise'?", ELSEWHERE),
    ("vs: block:base", "vs: block:bsae",
     "14: gates[same]: vs: no block is called 'bsae'. Did you mean 'base'?", ELSEWHERE),
    ("block:noise, vs: baseline", "noise, vs: baseline",
     "13: gates[signal]: of must be \"*\" or block:NAME, got 'noise'; write block:noise", None),
    ("vs: block:base", "vs: '*'", "14: gates[same]: vs must be baseline or block:NAME, got '*'", None),
    ('of: "*"', "of: baseline",
     "12: gates[sane]: of the baseline is what others are compared with; name it under vs, and here \"*\" or a block",
     None),
    ('of: "*"', "of: block:base",
     "12: gates[sane]: of: base is what it is compared with, too; name another block", ELSEWHERE),
    ("vs: block:base", "vs: block:drawn",
     "14: gates[same]: vs: block 'drawn' has 3 cells, and a comparison needs one; give the cell meant a block of its "
     "own", ELSEWHERE),
    ('of: "*"', "of: *", "12: a text that begins with * goes in quotes", NO_YAML),
    ("  - {name: sane, kind: non_inferior, of: \"*\", margin: 5%}\n", "  - {kind: superior, of: block:noise}\n",
     "12: gates[0]: field 'name' is missing; add `name: sane`", None),
    # budget
    ("usd: 105, per_run_usd: 8, ", "", "15: budget: limits nothing; add `usd: 100` or `per_run_usd: 8`, or remove it",
     None),
    ("per_run_usd: 8", "per_run_usd: 200",
     "15: budget: per_run_usd 200 is more than the whole sweep may spend, usd 105; lower it", ELSEWHERE),
    ("usd: 105", "usd: 0", "15: budget: usd must be greater than 0, got 0", None),
    ("usd: 105", "usd: $105", "15: budget: usd must be a number, got '$105'; write 105", None),
    ("on_exceed: stop", "on_exceed: halt", "15: budget: on_exceed must be 'drain' or 'stop', got 'halt'", None),
    ("usd: 105", "max_usd: 105", "15: budget: unknown field 'max_usd'. Did you mean 'usd'?", None),
    ("{usd: 105, per_run_usd: 8, on_exceed: stop}", "105",
     "15: budget: must be a mapping, got 105; write budget: {usd: 100}", None),
    ("budget: {usd: 105, per_run_usd: 8, on_exceed: stop}", "usd: 105",
     "15: 'usd' is a field of budget: `budget: {usd: 105}`", None),
    # parameters of a run where none belong
    ("usd: 105", "lr: 0.1",
     "15: budget: 'lr' is a parameter; put it under constants: `constants: {lr: 0.1}`", None),
    ("usd: 105", "lr: [0.1, 0.2]",
     "15: budget: 'lr' is a parameter; put it under grid of a block: `grid: {lr: [0.1, 0.2]}`", None),
    ("breaker:", "lr: 0.1\nbreaker:", "17: 'lr' is a parameter; put it under constants: `constants: {lr: 0.1}`", None),
    ("optimizer: isotropic", "optimizer: isotropic\n    lr: 0.1",
     "10: blocks[drawn]: 'lr' is a parameter; put it under set: `set: {lr: 0.1}`", None),
    ("optimizer: isotropic", "optimizer: isotropic\n    gates: []",
     "10: blocks[drawn]: 'gates' is a field of the sweep; move it to the top of the file", None),
    # retries, breaker, stop
    ("preemption: unlimited", "preemption: forever",
     "16: retries: preemption must be 'unlimited' or be a whole number, got 'forever'", None),
    ("preemption: unlimited", "preemption: -1",
     "16: retries: preemption must be 'unlimited' or be at least 0, got -1", None),
    ("program: 0", "program: -1", "16: retries: program must be at least 0, got -1", None),
    ("same_error: 3", "same_error: 0",
     "17: breaker: same_error must be greater than 0, got 0; to switch it off write null", None),
    ("same_error: 3", "same_error: off",
     "17: breaker: same_error must be greater than 0, got off; to switch it off write null", None),
    ("same_error: 3", "same_errors: 3", "17: breaker: unknown field 'same_errors'. Did you mean 'same_error'?", None),
    ("breaker: {same_error: 3}", "same_error: 3",
     "17: 'same_error' is a field of breaker: `breaker: {same_error: 3}`", None),
    ("{when: spike", "{when: nonfinite",
     "18: stop[1]: when is taken: an earlier entry is 'nonfinite' too; choose another", ELSEWHERE),
    ("when: spike", "when: nan", "18: stop[1]: when must be 'nonfinite' or 'spike', got 'nan'", None),
    ("action: drain", "action: stop", "18: stop[1]: action must be 'fail' or 'drain', got 'stop'", None),
    ("[{when: nonfinite, action: fail}, {when: spike, action: drain}]", "{when: nonfinite, action: fail}",
     "18: stop: must be a list, got {when: nonfinite, action: fail}; write stop: [{when: nonfinite, action: fail}]",
     None),
    # sample
    ("n: 3, ", "", "10: blocks[drawn]: field 'n' is missing; add `n: 16`", None),
    ("n: 3", "n: 0", "10: blocks[drawn]: sample.n must be greater than 0, got 0", None),
    ('"loguniform(1e-3, 1e-1)"', "loguniform(1e-3, 1e-1)",
     "10: blocks[drawn]: sample.lr 'loguniform(1e-3' ends at its comma; put it in quotes: 'loguniform(1e-3, ...)'",
     None),
    ("loguniform(1e-3", "loguniforn(1e-3",
     "10: blocks[drawn]: sample.lr distribution 'loguniforn' is unknown. Did you mean 'loguniform'?", None),
    ("loguniform(1e-3", "loguniform(0",
     "10: blocks[drawn]: sample.lr loguniform takes two positive numbers, the lower first: loguniform(1e-3, 1e-1); "
     "got loguniform(0, 1e-1)", DRAWN),
    ('"loguniform(1e-3, 1e-1)"', "0.02",
     f"10: blocks[drawn]: sample.lr must be a distribution, got 0.02; {DISTRIBUTIONS}; one value for all goes under "
     "set", None),
    ('"loguniform(1e-3, 1e-1)"', "[0.02, 0.03]",
     "10: blocks[drawn]: sample.lr must be a distribution, got [0.02, 0.03]; write choice(0.02, 0.03), or list it "
     "under grid", None),
    ("loguniform(1e-3, 1e-1)", "log-uniform",
     f"10: blocks[drawn]: sample.lr must be a distribution, got 'log-uniform'; {DISTRIBUTIONS}", None),
    ("lr: ", "learning_rat: ",
     "10: blocks[drawn]: unknown parameter 'learning_rat'; docs/parameters.md lists them", None),
    ("lr: ", "gate: ", "10: blocks[drawn]: 'gate' is no parameter of isotropic, only of nolah; remove it or change the "
     "optimizer", None),
    ("    sample:", "    grid: {lr: [0.1]}\n    sample:",
     "11: blocks[drawn]: 'lr' is an axis of `grid` already; keep one of them", ELSEWHERE),
    ('lr: "loguniform(1e-3, 1e-1)", ', "",
     "10: blocks[drawn]: sample draws only 2 different cells, n is 3; lower n, or list the values under grid", DRAWN),
    ('lr: "loguniform(1e-3, 1e-1)"', 'lr: "uniform(-2, -1)"',
     "10: blocks[drawn]: lr must be greater than 0, got -1.547", DRAWN),
    ("n: 3", "n: 5001",
     "10: blocks[drawn]: spans 10,002 runs, more than the 10,000 a sweep may have; split it, or thin the axes out",
     "a product of lengths"),
    (', lr: "loguniform(1e-3, 1e-1)", anneal: "choice(none, linear)"', "",
     '10: blocks[drawn]: sample draws no parameter; add one, such as `lr: "loguniform(1e-3, 1e-1)"`', None),
    ("optimizer: muon}", 'optimizer: muon, sample: {n: 1, lr: "uniform(0, 1)"}}',
     "6: blocks[base]: sample is not for the baseline, which is one cell; give its values under set", None),
    # extends
    ("version: 1", "version: 1\nextends: 5", "2: extends: must be text, the path of another sweep file, got 5", None),
    ("version: 1", "version: 1\nextends: base.yaml",
     "2: extends: no file base.yaml; give its path as seen from the folder of this file", "a fact not in the file"),
    ("version: 1", "version: 1\nextends: sweep.yaml",
     "2: extends: goes round in a circle: sweep.yaml -> sweep.yaml; remove one of them", "a fact not in the file"),
]  # fmt: skip
IDS = [new.strip().partition("\n")[0][:40] or f"without {old.strip()}"[:40] for old, new, *_ in MISTAKES]


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_the_good_file_is_good_and_survives_being_stored_and_written() -> None:
    spec = parse_spec(GOOD)
    assert len(expand(spec)) == 12
    assert not schema_refuses(GOOD)
    assert SweepSpec.model_validate_json(spec.model_dump_json()).model_dump() == spec.model_dump()
    assert parse_spec(as_sweep_yaml(spec)).model_dump() == spec.model_dump()


@pytest.mark.parametrize(("old", "new", "message", "unseen"), MISTAKES, ids=IDS)
def test_a_mistake_is_one_line_and_exit_code_2(
    old: str,
    new: str,
    message: str,
    unseen: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(replaced(old, new))
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "plan", "sweep.yaml"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err) == (2, "", f"muon: sweep.yaml:{message}\n")


@pytest.mark.parametrize(("old", "new", "message", "unseen"), MISTAKES, ids=IDS)
def test_the_schema_refuses_what_a_schema_can_see(old: str, new: str, message: str, unseen: str | None) -> None:
    assert schema_refuses(replaced(old, new)) == (unseen is None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("margin: 5%", "margin: .5%"),
        ("kind: superior, of: block:noise, vs: baseline, min_effect: 1%", "kind: superior, of: block:noise"),
        ("usd: 105, per_run_usd: 8", "per_run_usd: 0.5"),
        ("preemption: unlimited", "preemption: 0"),
        ("same_error: 3", "same_error: null"),
        ("n: 3", "n: 3, seed: 7"),
        ("anneal: ", "optimizer.anneal: "),
    ],
)
def test_what_is_legal_passes_the_schema_too(old: str, new: str) -> None:
    assert expand(parse_spec(replaced(old, new)))
    assert not schema_refuses(replaced(old, new))
