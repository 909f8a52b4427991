"""The JSON Schema of the sweep file: it says of every value what `muon` says, and editors show what it means."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.presets import PRESETS
from muon_core.store.keys import check_name
from search_spaces.fields import describe_range, describe_type, optimizer_fields, run_fields
from search_spaces.parameters import build, parameters
from search_spaces.schema import json_schema
from search_spaces.spec import SweepSpec
from search_spaces.strict_yaml import parse

ROOT = Path(__file__).parents[2]
SCHEMA = json_schema()
GROUPS = {"run": run_fields()} | {optimizer: optimizer_fields(optimizer) for optimizer in OPTIMIZERS}
# Of every type, at and beyond every bound that a parameter has.
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 256, 257, 2**63, -0.5, 0.0, 0.5, 1.0, 1.5, "", "x", "none", "0.5", [], [0.5],
    [0.5, 0.9], [0.5, 1.0], [0.5, "x"], [5, 7], [0], {}, {"a": 1},
]  # fmt: skip


def refuses(validator: Draft202012Validator, value: Any) -> bool:
    return not validator.is_valid(value)


def part(*path: str) -> Draft202012Validator:
    """Checks one part of the schema."""
    return Draft202012Validator({"$ref": "/".join(["#/$defs", *path]), "$defs": SCHEMA["$defs"]})


BLOCK = part("block")


def block(optimizer: str, **more: Any) -> dict[str, Any]:
    return {"name": "b", "optimizer": optimizer} | more


def fits_the_run(optimizer: str, name: str, value: Any) -> bool:
    """Whether a run can have the value, what other fields ask of it left out."""
    try:
        build({}, optimizer, {parameters(optimizer)[name]: value})
    except ValidationError as error:
        return {detail["type"] for detail in error.errors()} == {"value_error"}  # a rule that joins fields
    return True


def test_it_is_a_schema_of_plain_json() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA


@pytest.mark.parametrize("path", ["demo.yaml", "tuning.yaml"])
def test_the_files_that_come_along_pass(path: str) -> None:
    assert not refuses(Draft202012Validator(SCHEMA), parse((ROOT / "search_spaces" / path).read_text()).value)


@pytest.mark.parametrize("definition", GROUPS)
def test_it_takes_and_refuses_the_values_that_a_run_does(definition: str) -> None:
    optimizer = "muon" if definition == "run" else definition
    for name, field in GROUPS[definition].items():
        checked, constant = part(definition, "properties", name), part("constants", "properties", name)
        for value in VALUES:
            if "integer" in str(field.values) and isinstance(value, float) and value.is_integer():
                continue  # 1.0 is an integer in JSON
            fits = fits_the_run(optimizer, name, value)
            assert refuses(checked, value) != fits, (name, value)
            assert refuses(constant, value) != fits, (name, value)


@pytest.mark.parametrize("definition", GROUPS)
def test_a_block_checks_each_value_wherever_it_stands(definition: str) -> None:
    optimizer = "muon" if definition == "run" else definition
    for name, field in GROUPS[definition].items():
        value = field.default
        for key in (name,) if definition == "run" else (name, f"optimizer.{name}"):
            for where, right, wrong in [
                ("set", {key: value}, {key: {}}),
                ("grid", {key: [value]}, {key: [{}]}),
                ("zip", {key: [value]}, {key: [{}]}),
                ("skip", [{key: value}], [{key: {}}]),
            ]:
                assert not refuses(BLOCK, block(optimizer, **{where: right})), (key, where)
                assert refuses(BLOCK, block(optimizer, **{where: wrong})), (key, where)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_block_has_the_parameters_of_its_optimizer_and_no_others(optimizer: str) -> None:
    assert set(SCHEMA["$defs"][f"{optimizer}.names"]["properties"]) == set(parameters(optimizer)) - {"seed"}
    for name in {name for other in OPTIMIZERS for name in parameters(other)} - set(parameters(optimizer)):
        for field, entry in {"set": {name: 1}, "grid": {name: [1]}, "zip": {name: [1]}, "skip": [{name: 1}]}.items():
            assert refuses(BLOCK, block(optimizer, **{field: entry})), name


@pytest.mark.parametrize("optimizer", ["./my_opt.py:Mine", "package.module:Mine"])
def test_a_block_by_reference_takes_what_its_class_has(optimizer: str) -> None:
    """That is not known here; what all of them have is."""
    assert not refuses(BLOCK, block(optimizer, set={"betas": [0.9, 0.99], "takes": "all", "steps": 5, "beta": "x"}))
    assert not refuses(BLOCK, block(optimizer, grid={"beta": [0.9, 0.95]}))
    for wrong in (
        {"set": {"takes": "some"}},
        {"set": {"steps": "x"}},
        {"set": {"embedding_lr": 0}},
        {"grid": {"beta": 1}},
    ):
        assert refuses(BLOCK, block(optimizer, **wrong))
    sweep = {"version": 1, "name": "s", "seeds": [1], "constants": {"beta": 0.1}}
    for other, fits in ((optimizer, True), ("adamw", False)):
        blocks = [block("muon", role="baseline"), block(other)]
        assert refuses(Draft202012Validator(SCHEMA), sweep | {"blocks": blocks}) != fits


@pytest.mark.parametrize("optimizer", ["lyon", "./my_opt.py", "a b:C", "package:", ":Class", "./my_opt.py:a b"])
def test_what_is_no_reference_is_refused(optimizer: str) -> None:
    assert refuses(BLOCK, block(optimizer))


@pytest.mark.parametrize(("axis", "fits"), [([], False), (0.5, False), ([0.5, 0.5], False), ([0.5, 1], True)])
@pytest.mark.parametrize("field", ["grid", "zip"])
def test_an_axis_is_a_list_of_distinct_values(field: str, axis: Any, fits: bool) -> None:
    assert refuses(BLOCK, block("muon", **{field: {"lr": axis}})) != fits


def test_constants_are_what_some_optimizer_has() -> None:
    everything = {name for optimizer in OPTIMIZERS for name in parameters(optimizer)} - {"seed"}
    assert set(SCHEMA["$defs"]["constants"]["properties"]) == everything


@pytest.mark.parametrize("owner", ["orthonoise", "isotropic", "damped", "muon"])
def test_a_constant_of_an_optimizer_needs_a_block_that_has_it(owner: str) -> None:
    blocks = [block("adamw", role="baseline"), block(owner)]
    sweep = {"version": 1, "name": "s", "seeds": [1], "constants": {"optimizer.alpha": 0.1}, "blocks": blocks}
    assert refuses(Draft202012Validator(SCHEMA), sweep) == (owner == "muon")


@pytest.mark.parametrize(("roles", "fits"), [([], False), (["baseline"], True), (["baseline", "baseline"], False)])
def test_exactly_one_block_is_the_baseline(roles: list[str], fits: bool) -> None:
    blocks = [block("muon"), *(block("adamw", role=role) for role in roles)]
    sweep = {"version": 1, "name": "s", "seeds": [1], "blocks": blocks}
    assert refuses(Draft202012Validator(SCHEMA), sweep) != fits


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-1", "", "-a", ".a", "a b", "a/b", "ä", "a=1", "x" * 100])
def test_names_are_those_that_the_store_takes(name: str) -> None:
    try:
        check_name(name)
        fits = True
    except ValueError:
        fits = False
    assert refuses(BLOCK, block("muon") | {"name": name}) != fits
    assert refuses(BLOCK, block("muon") | {"name": "x" * 101})


def test_it_knows_the_choices_and_what_must_be_there() -> None:
    assert SCHEMA["properties"]["preset"]["enum"] == list(PRESETS)
    assert SCHEMA["$defs"]["block"]["properties"]["optimizer"]["anyOf"][0]["enum"] == list(OPTIMIZERS)
    assert SCHEMA["else"]["required"] == ["version", "name", "seeds", "blocks"]
    assert set(SCHEMA["properties"]) == set(SweepSpec.model_fields)
    assert "default" not in SCHEMA["$defs"]["metrics"]["properties"]["goal"]  # it follows from `primary`


@pytest.mark.parametrize("definition", GROUPS)
def test_editors_show_type_range_default_and_meaning(definition: str) -> None:
    for name in GROUPS[definition]:
        schema = SCHEMA["$defs"][definition]["properties"][name]
        while "$ref" in schema:
            _, _, owner, _, name = schema["$ref"].split("/")
            schema = SCHEMA["$defs"][owner]["properties"][name]
        meaning, _, summary = schema["description"].rpartition(" (")
        assert len(meaning) > 10, f"{name} has no docstring"
        assert f"default {json.dumps(schema['default'])}".replace('"', "") in summary
        assert (describe_range(schema) if "enum" in schema else describe_type(schema)) in summary


def test_an_axis_shows_what_its_values_mean() -> None:
    axes = SCHEMA["$defs"]["orthonoise.axes"]["properties"]
    assert axes["alpha"]["description"].startswith("Noise norm as a share of the momentum's norm")
    assert axes["alpha"]["description"].endswith("(number, >= 0; default 0.05)")
    assert axes["alpha"]["items"] == {"$ref": "#/$defs/orthonoise/properties/alpha"}
    assert axes["lr"] == {"$ref": "#/$defs/muon.axes/properties/lr"}


def test_a_constant_that_optimizers_have_otherwise_shows_each() -> None:
    lr = SCHEMA["$defs"]["constants"]["properties"]["lr"]
    assert "adamw, soap: Learning rate of the hidden matrices. (number, > 0; default 0.003)" in lr["description"]
    assert (
        "damped, nolah, normuon: Learning rate of the hidden matrices. (number, > 0; default 0.02)" in lr["description"]
    )
    assert "default" not in lr


@pytest.mark.parametrize(
    ("schema", "words", "bounds"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "whole number", "> 0"),
        ({"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1}, "number or null", ">= 0, < 1"),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}, "list of 2 numbers", ""),
        ({"type": "array", "items": {"type": "integer", "exclusiveMaximum": 2**63}}, "list of whole numbers", "< 2^63"),
        ({"type": "boolean"}, "true or false", ""),
        ({"enum": ["a", "none"], "type": "string"}, "text", "a, none"),
        ({"type": "object"}, "mapping", ""),
    ],
)
def test_types_and_ranges_in_words(schema: dict[str, Any], words: str, bounds: str) -> None:
    assert (describe_type(schema), describe_range(schema)) == (words, bounds)


def test_values_probe_every_bound() -> None:
    """A bound that no probe lies beyond could be missing from the schema unseen."""
    numbers = [value for value in VALUES if type(value) in (int, float)]
    for field in (field for fields in GROUPS.values() for field in fields.values()):
        for bound, beyond in {"minimum": -math.inf, "exclusiveMinimum": -math.inf, "maximum": math.inf}.items():
            if bound in field.values:
                limit = field.values[bound]
                assert any(min(beyond, limit) <= number <= max(beyond, limit) and number != limit for number in numbers)
