"""JSON Schema of the sweep file, for editors and validators.

What a block may set follows from its optimizer, so each has three definitions: `muon` holds the values of its
parameters, `muon.axes` the lists of them that stand under `grid` and `zip`, `muon.names` which names there are; `run`
and `run.axes` hold what all runs have, `by_reference` what all have whose optimizer is a class that no schema knows. A
schema sees a value, not how it was written nor what it becomes with others: that 100.0 is no whole number, that two
fields contradict each other or that too many runs are spanned, it cannot say; `muon sweep plan` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muon_core.config.base import Config
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.reference import ReferenceConfig
from search_spaces.blocks import Block
from search_spaces.early_stopping import EarlyStopping
from search_spaces.fields import (
    UNSTATED,
    Field,
    describe_default,
    describe_range,
    describe_type,
    fields,
    is_choice,
    optimizer_fields,
    owners,
    reference_fields,
    run_fields,
)
from search_spaces.gates import Gate
from search_spaces.limits import Breaker, Budget, Retries, Stop
from search_spaces.parameters import parameters
from search_spaces.sampling import DISTRIBUTION, PATTERN, Sample
from search_spaces.spec import Metrics, Resources, SweepSpec

Schema = dict[str, Any]
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> Schema:
    """The schema, in plain JSON values."""
    definitions: Schema = {"run": _values(run_fields(), "Parameters of every run.")}
    for name, model in OPTIMIZERS.items():
        definitions[name] = _own_values(name, definitions, " ".join((model.__doc__ or "").split()))
    for name in ("run", *OPTIMIZERS):
        definitions[f"{name}.axes"] = _axes(name, definitions[name]["properties"])
    definitions["by_reference"] = _by_reference()
    for name in OPTIMIZERS:
        names = (*definitions["run"]["properties"], *definitions[name]["properties"])
        definitions[f"{name}.names"] = {"properties": dict.fromkeys(names, True), "additionalProperties": False}
    definitions |= {
        "constants": _constants(),
        "distribution": {"description": DISTRIBUTION, "type": "string", "pattern": PATTERN},
        "sample": _sample(),
        "block": _block(),
        "metrics": _metrics(),
        "gate": _gate(),
        "budget": _object(Budget),
        "resources": _object(Resources),
        "retries": _object(Retries),
        "breaker": _object(Breaker),
        "stop": _object(Stop),
        "early_stopping": _object(EarlyStopping),
    }
    sweep = _object(
        SweepSpec,
        seeds=fields(SweepSpec)["seeds"].values | {"uniqueItems": True},
        blocks={"type": "array", "minItems": 1, "items": _ref("block")},
        gates={"type": "array", "items": _ref("gate")},
        budget=_or_null(_ref("budget")),
        early_stopping=_or_null(_ref("early_stopping")),
        stop={"type": "array", "items": _ref("stop")},
        **{name: _ref(name) for name in ("constants", "metrics", "resources", "retries", "breaker")},
    )
    required = sweep.pop("required")
    return {
        "$schema": _DIALECT,
        **sweep,
        "if": {"required": ["extends"]},
        "else": {"required": required, **_complete()},
        "allOf": [_constants_exist(definitions["constants"]["properties"])],
        "$defs": definitions,
    }


def _complete() -> Schema:
    """What is there in a file as a whole, but may be missing from one that extends another."""
    baseline = {"properties": {"role": {"const": "baseline"}}, "required": ["role"]}
    nothing = {"propertyNames": {"enum": [*Sample.model_fields]}}
    drawn = {"if": {"type": "object"}, "then": {"required": ["n"], "not": nothing}}
    block = {"required": ["name", "optimizer"], "properties": {"sample": drawn}}
    limits = [{"properties": {name: {"type": "number"}}, "required": [name]} for name in ("usd", "per_run_usd")]
    return {
        "properties": {
            "blocks": {"items": block, "contains": baseline, "minContains": 1, "maxContains": 1},
            "budget": _or_null({"anyOf": limits}),
        },
        "allOf": _constants_fit(),
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(*path: str) -> Schema:
    return {"$ref": "/".join(["#/$defs", *path])}


def _object(model: type[Config], **refined: Schema) -> Schema:
    """A mapping with the fields of `model` and no others; `refined` says more of a field's values."""
    known = fields(model)
    schema = {
        "description": " ".join((model.__doc__ or "").split()),
        "type": "object",
        "properties": {name: _described(field, refined.get(name, field.values)) for name, field in known.items()},
        "additionalProperties": False,
    }
    required = [name for name, field in known.items() if field.required]
    return schema | {"required": required} if required else schema


def _described(field: Field, values: Schema) -> Schema:
    """The schema of a field: what editors show, and what its values are."""
    text = field.meaning if field.is_mapping else f"{field.meaning} ({_summary(field)})"
    schema = {"description": text, **values}
    if field.default is not UNSTATED and not field.is_mapping:
        schema["default"] = field.default
    return schema | {"examples": list(field.examples)} if field.examples else schema


def _summary(field: Field) -> str:
    """Type, range and default in words: not every editor shows them beside the description."""
    type_, range_, default = describe_type(field.values), describe_range(field.values), describe_default(field)
    kind = (
        f"one of {range_}"
        if is_choice(field.values) and "const" not in field.values
        else f"{type_}, {range_}"
        if range_
        else type_
    )
    return kind + ("; required" if field.required else f"; default {default}" if default else "")


def _values(known: Mapping[str, Field], about: str) -> Schema:
    return {
        "description": about,
        "properties": {name: _described(field, field.values) for name, field in known.items()},
    }


def _own_values(optimizer: str, definitions: Schema, about: str) -> Schema:
    """The parameters of an optimizer, by both names; those that an earlier one has alike refer to it."""
    schema = _values(optimizer_fields(optimizer), about)
    properties = schema["properties"]
    for name, own in properties.items():
        for other in OPTIMIZERS:
            if other in definitions and definitions[other]["properties"].get(name) == own:
                properties[name] = _ref(other, "properties", name)
                break
    for name in list(properties):
        properties[f"optimizer.{name}"] = _ref(optimizer, "properties", name)
    return schema


def _axes(name: str, values: Mapping[str, Any]) -> Schema:
    """The lists of values that stand under `grid` and `zip`."""
    return {"properties": {key: _axis(name, key, value) for key, value in values.items()}}


def _axis(name: str, key: str, value: Mapping[str, Any]) -> Schema:
    if "$ref" in value:
        _, _, owner, *path = value["$ref"].split("/")
        return _ref(f"{owner}.axes", *path)
    items = _ref(name, "properties", key)
    return {"description": value["description"], "type": "array", "minItems": 1, "uniqueItems": True, "items": items}


def _constants() -> Schema:
    """What any block may have; where optimizers differ in a default or a meaning, the description says both."""
    names: Schema = {name: _ref("run", "properties", name) for name in run_fields()}
    for name, having in owners().items():
        names[name] = names[f"optimizer.{name}"] = _shared(name, having)
    return {"type": "object", "properties": names}


def _constants_exist(names: Schema) -> Schema:
    """Which parameters a class by reference has, no schema knows."""
    return {
        "if": {"properties": {"blocks": {"contains": _IS_REFERENCE}}, "required": ["blocks"]},
        "else": {"properties": {"constants": {"propertyNames": {"enum": [*names]}}}},
    }


def _shared(name: str, having: tuple[str, ...]) -> Schema:
    first, *others = (optimizer_fields(optimizer)[name] for optimizer in having)
    if all(other == first for other in others):
        return _ref(having[0], "properties", name)
    assert all(other.values == first.values for other in others), name
    texts = [_described(field, {})["description"] for field in (first, *others)]
    by_text = {text: [by for by, own in zip(having, texts, strict=True) if own == text] for text in texts}
    return {"description": "\n\n".join(f"{', '.join(by)}: {text}" for text, by in by_text.items()), **first.values}


def _block() -> Schema:
    """A block: what it may set follows from its optimizer."""
    lists = {"type": "array", "minItems": 1, "uniqueItems": True}
    block = _object(
        Block,
        set={"type": "object"},
        grid={"type": "object", "additionalProperties": lists},
        zip={"type": "object", "additionalProperties": lists},
        sample=_or_null(_ref("sample")),
        skip={"type": "array", "items": {"type": "object", "minProperties": 1}},
    )
    block["required"] = ["name"]  # all that one must have which goes over a block of the file that is extended
    by_name = map(_under, OPTIMIZERS)
    return block | {"allOf": [*by_name, _under_reference(), _baseline_is_one_cell(), _baseline_draws_nothing()]}


def _under(optimizer: str) -> Schema:
    names = _ref(f"{optimizer}.names")
    values = {"allOf": [_ref("run"), _ref(optimizer), names]}
    axes = {"allOf": [_ref("run.axes"), _ref(f"{optimizer}.axes"), names]}
    drawn = {"propertyNames": {"enum": [*{*Sample.model_fields, *parameters(optimizer)}]}}
    return {
        "if": {"properties": {"optimizer": {"const": optimizer}}, "required": ["optimizer"]},
        "then": {"properties": {"set": values, "grid": axes, "zip": axes, "sample": drawn, "skip": {"items": values}}},
    }


_IS_REFERENCE: Schema = {"properties": {"optimizer": {"pattern": ":"}}, "required": ["optimizer"]}


def _by_reference() -> Schema:
    """What a block has by any reference, by both names; the parameters of its class are not known here."""
    schema = _values(reference_fields(), " ".join((ReferenceConfig.__doc__ or "").split()))
    for name in list(schema["properties"]):
        schema["properties"][f"optimizer.{name}"] = _ref("by_reference", "properties", name)
    return schema


def _under_reference() -> Schema:
    values = {"allOf": [_ref("run"), _ref("by_reference")]}
    axes = _ref("run.axes")
    return {
        "if": _IS_REFERENCE,
        "then": {"properties": {"set": values, "grid": axes, "zip": axes, "skip": {"items": values}}},
    }


def _baseline_is_one_cell() -> Schema:
    """Cells that `skip` leaves out cannot be counted here."""
    single = {"additionalProperties": {"maxItems": 1}}
    return {
        "if": {"properties": {"role": {"const": "baseline"}, "skip": {"maxItems": 0}}, "required": ["role"]},
        "then": {"properties": {"grid": single, "zip": single}},
    }


def _baseline_draws_nothing() -> Schema:
    return {
        "if": {"properties": {"role": {"const": "baseline"}}, "required": ["role"]},
        "then": {"properties": {"sample": {"type": "null"}}},
    }


def _sample() -> Schema:
    """Which parameters there are follows from the optimizer."""
    sample = _object(Sample) | {"additionalProperties": _ref("distribution")}
    del sample["required"]
    return sample


def _gate() -> Schema:
    """Which of `margin` and `min_effect` it has follows from its kind."""
    absent, effect = {"type": "null"}, {"type": ["number", "string"]}
    return _object(Gate) | {
        "if": {"properties": {"kind": {"const": "superior"}}},
        "then": {"properties": {"margin": absent}},
        "else": {"properties": {"min_effect": absent, "margin": effect}, "required": ["margin"]},
    }


def _metrics() -> Schema:
    """The goal follows from what is measured."""
    accuracy = {
        "if": {"properties": {"primary": {"const": "val_accuracy"}}, "required": ["primary"]},
        "then": {"properties": {"goal": {"const": "max"}}},
    }
    loss = {
        "if": {"properties": {"primary": {"const": "val_loss"}}},
        "then": {"properties": {"goal": {"const": "min"}}},
    }
    return _object(Metrics) | {"allOf": [loss, accuracy]}


def _constants_fit() -> list[Schema]:
    """A constant of an optimizer needs a block that has it."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, having in owners().items():
        if len(having) < len(OPTIMIZERS):
            names.setdefault(having, []).extend((name, f"optimizer.{name}"))
    return [_needs(having, constants) for having, constants in names.items()]


def _needs(optimizers: tuple[str, ...], constants: list[str]) -> Schema:
    has = {"properties": {"optimizer": {"enum": [*optimizers]}}, "required": ["optimizer"]}
    return {
        "if": {"properties": {"blocks": {"contains": has}}},
        "else": {"properties": {"constants": {"properties": dict.fromkeys(constants, False)}}},
    }
