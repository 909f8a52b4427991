"""Laws of sweep files: what they expand to, and that growing one never changes the runs it had."""

import itertools
import json
from typing import Any

import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from muon_core.config.optimizers import OrthoNoiseConfig
from muon_core.config.run import RunConfig
from search_spaces.errors import SpecError
from search_spaces.expand import expand
from search_spaces.explain import as_yaml
from search_spaces.spec import SweepSpec, parse_spec
from search_spaces.strict_yaml import parse
from search_spaces.write_yaml import as_sweep_yaml

ALPHAS = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=4, unique=True)
ANNEALS = st.lists(st.sampled_from(["none", "exponential", "linear"]), min_size=1, unique=True)
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True)
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXT, children, max_size=4),
    max_leaves=20,
)


def sweep(seeds: list[int], alphas: list[float], anneals: list[str], **more: Any) -> SweepSpec:
    noisy = {"name": "noisy", "optimizer": "orthonoise", "grid": {"alpha": alphas, "anneal": anneals}} | more
    base = {"name": "base", "role": "baseline", "optimizer": "muon"}
    return SweepSpec.model_validate({"version": 1, "name": "law", "seeds": seeds, "blocks": [base, noisy]})


def ids(spec: SweepSpec) -> list[str]:
    return [run.run_id for run in expand(spec)]


@settings(deadline=None)
@given(SEEDS, ALPHAS, ANNEALS)
def test_runs_are_the_product_of_seeds_and_cells(seeds: list[int], alphas: list[float], anneals: list[str]) -> None:
    expected: list[RunConfig] = []
    for seed in seeds:
        expected.append(RunConfig(seed=seed))
        for alpha, anneal in itertools.product(alphas, anneals):
            optimizer = OrthoNoiseConfig.model_validate({"alpha": alpha, "anneal": anneal})
            expected.append(RunConfig(seed=seed, optimizer=optimizer))
    assert [run.config for run in expand(sweep(seeds, alphas, anneals))] == expected


@settings(deadline=None)
@given(SEEDS, ALPHAS, ANNEALS, st.data())
def test_growing_a_sweep_keeps_its_runs(
    seeds: list[int], alphas: list[float], anneals: list[str], data: st.DataObject
) -> None:
    fewer_seeds = data.draw(st.lists(st.sampled_from(seeds), min_size=1, unique=True))
    fewer_alphas = data.draw(st.lists(st.sampled_from(alphas), min_size=1, unique=True))
    small, large = sweep(fewer_seeds, fewer_alphas, anneals), sweep(seeds, alphas, anneals)
    assert set(ids(small)) <= set(ids(large))


@settings(deadline=None)
@given(SEEDS, ALPHAS, ANNEALS, st.data())
def test_skip_removes_exactly_the_cells_it_describes(
    seeds: list[int], alphas: list[float], anneals: list[str], data: st.DataObject
) -> None:
    alpha, anneal = data.draw(st.sampled_from(alphas)), data.draw(st.sampled_from(anneals))
    assume(len(alphas) * len(anneals) > 1)  # skipping the only cell is refused
    left = ids(sweep(seeds, alphas, anneals, skip=[{"alpha": alpha, "anneal": anneal}]))
    gone = {RunConfig(seed=s, optimizer=OrthoNoiseConfig(alpha=alpha, anneal=anneal)).run_id for s in seeds}
    assert left == [run for run in ids(sweep(seeds, alphas, anneals)) if run not in gone]


@settings(deadline=None)
@given(SEEDS, ALPHAS, ANNEALS)
def test_a_run_two_blocks_share_is_run_once(seeds: list[int], alphas: list[float], anneals: list[str]) -> None:
    spec = sweep(seeds, alphas, anneals)
    twice = spec.replace(blocks=[*spec.blocks, spec.blocks[1].replace(name="again")])
    assert ids(twice) == ids(spec)
    assert all(len(run.members) == (1 if run.block == "base" else 2) for run in expand(twice))


@settings(deadline=None)
@given(JSON)
def test_every_json_text_is_read_as_json_reads_it(value: Any) -> None:
    read = parse(json.dumps(value)).value
    assert json.dumps(read) == json.dumps(value)  # 1, 1.0 and true are equal in Python, not here


FILE = """\
version: 1
name: law
question: "Does noise help?"
seeds: [1, 2]
constants: {steps: 50, adam_betas: [0.9, 0.95]}
blocks:
  - name: base
    role: baseline
    optimizer: muon
  - name: noise # more
    optimizer: orthonoise
    grid:
      alpha:
        - 1e-3
        - 0.05
    skip: [{alpha: 0.05}]
"""
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(FILE)), st.integers(0, 3), st.text("\t :[]{},'\"-#&*!>|%@`\\\n\u00a0?ab1", max_size=3)
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, max_examples=500)
@given(EDITS)
def test_whatever_a_slip_of_the_pen_makes_of_a_file_it_is_good_or_answered_by_lines_of_it(
    edits: list[tuple[int, int, str]],
) -> None:
    text = FILE
    for at, cut, letters in edits:
        text = text[:at] + letters + text[at + cut :]
    try:
        expand(parse_spec(text))
    except SpecError as error:
        for line in error.lines:
            number = int(line.removeprefix("sweep.yaml:").partition(":")[0])
            assert 1 <= number <= len(text.splitlines()) + 1
            assert line.isprintable()


WRITTEN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["none", "0.02", "off", "null", "true", "a b", "x/y.txt", "", "- a", "a: b", "[", "~", "#"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["lr", "a.b"]), children),
)


@settings(deadline=None)
@given(WRITTEN)
def test_a_message_shows_a_value_as_a_file_would_write_it(value: Any) -> None:
    assert json.dumps(parse(as_yaml(value)).value) == json.dumps(value)


# Texts that one reader of YAML or another would take for something else.
TRAPS = ["off", "on", "yes", "1e-3", "1_000", "0o7", ".5", "2020-01-01", "12:30:00", "=", "<<", "null", "~", "", " a "]
TRAPS += ["a\\b", "it's", '"', "a: b", "a #b", "- a", "&a", "*a", "!a", "%", "@"]
TRAPS += ["two\nlines\n", "\t", "\x07", "\x85", "😀"]
GIVEN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(TRAPS) | TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["on", "1"]), children),
    max_leaves=10,
)


@settings(deadline=None)
@given(SEEDS, ALPHAS, ANNEALS, GIVEN, TEXT | st.sampled_from(TRAPS))
def test_a_spec_survives_being_written_as_a_file(
    seeds: list[int], alphas: list[float], anneals: list[str], value: Any, question: str
) -> None:
    spec = sweep(seeds, alphas, anneals)
    assert ids(parse_spec(as_sweep_yaml(spec))) == ids(spec)
    odd = spec.replace(question=question, constants={"data.corpus": value, "lr": [value, value]})
    written = as_sweep_yaml(odd)
    assert parse_spec(written).model_dump() == odd.model_dump()
    assert repr(parse_spec(written).constants) == repr(odd.constants)  # 1, 1.0 and true are equal in Python
    assert yaml.safe_load(written).get("question", "") == question  # YAML 1.1 reads the same text


def test_what_is_written_has_no_defaults_and_the_order_of_the_schema() -> None:
    written = as_sweep_yaml(parse_spec(FILE))
    assert written == (
        "version: 1\n"
        "name: law\n"
        "question: Does noise help?\n"
        "seeds: [1, 2]\n"
        "constants:\n"
        "  steps: 50\n"
        "  adam_betas: [0.9, 0.95]\n"
        "blocks:\n"
        "- {name: base, role: baseline, optimizer: muon}\n"
        "- name: noise\n"
        "  optimizer: orthonoise\n"
        "  grid:\n"
        "    alpha: [0.001, 0.05]\n"
        "  skip:\n"
        "  - {alpha: 0.05}\n"
    )
