"""The fields of configs as files name them: type, range, default and meaning, for the schema and the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from muon_core.config.base import Config
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.reference import ReferenceConfig
from muon_core.config.run import RunConfig
from search_spaces.explain import as_yaml
from search_spaces.parameters import GROUPS, parameters
from search_spaces.references import GIVEN

UNSTATED: Any = object()  # a default that is nothing to write down: none, or one that follows from other fields
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a config."""

    name: str
    values: dict[str, Any]
    """JSON Schema of its values: type and range."""
    meaning: str
    default: Any = UNSTATED
    """As JSON writes it."""
    required: bool = False
    examples: tuple[Any, ...] = ()

    def named(self, name: str) -> Field:
        """The same field under another name."""
        return replace(self, name=name)

    @property
    def is_mapping(self) -> bool:
        """Whether it holds further fields, or a list of such."""
        return "mapping" in describe_type(self.values)


@cache
def fields(model: type[Config]) -> dict[str, Field]:
    """The fields of a config by name."""
    described, meanings = model.model_json_schema()["properties"], model.meanings()
    return {name: _field(model, name, described[name], meanings.get(name, "")) for name in model.model_fields}


def _field(model: type[Config], name: str, schema: Mapping[str, Any], meaning: str) -> Field:
    info = model.model_fields[name]
    values = {key: value for key, value in schema.items() if key not in ("title", "description", "default", "examples")}
    return Field(
        name,
        _simplified(values),
        meaning,
        schema.get("default", UNSTATED),
        info.is_required(),
        tuple(info.examples or ()),
    )


def _simplified(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as one would write it by hand: `X or null` is X whose type is also null, a pair is a list of two."""
    kinds = schema.get("anyOf", [])
    if len(kinds) == 2 and kinds[1] == {"type": "null"}:
        one = {"enum": [kinds[0]["const"], None]} if "const" in kinds[0] else kinds[0]
        return one if "$ref" in one else {**one, "type": [kinds[0]["type"], "null"]}
    items = schema.get("prefixItems", [])
    if items and all(item == items[0] for item in items):
        return {name: value for name, value in schema.items() if name != "prefixItems"} | {"items": items[0]}
    return schema


@cache
def run_fields() -> dict[str, Field]:
    """The parameters that every run has, by the name that a sweep file gives them: `steps`, `model.d_model`.

    `seed` is not among them: a sweep lists its seeds.
    """
    shared = {name: path for name, path in parameters("muon").items() if path[0] != "optimizer" and name != "seed"}
    return {name: fields(_owner(path[0]))[path[-1]] for name, path in shared.items()}


def _owner(group: str) -> type[Config]:
    return GROUPS.get(group, RunConfig)


@cache
def optimizer_fields(optimizer: str) -> dict[str, Field]:
    """The parameters of an optimizer by their plain names; each has a dotted one too, `optimizer.lr`."""
    return {name: field for name, field in fields(OPTIMIZERS[optimizer]).items() if name != "name"}


@cache
def reference_fields() -> dict[str, Field]:
    """The parameters of every optimizer by reference, beside those of its class."""
    return {name: field for name, field in fields(ReferenceConfig).items() if name not in GIVEN}


@cache
def owners() -> dict[str, tuple[str, ...]]:
    """The optimizers that have each parameter of any optimizer."""
    names = dict.fromkeys(name for optimizer in OPTIMIZERS for name in optimizer_fields(optimizer))
    return {name: tuple(other for other in OPTIMIZERS if name in optimizer_fields(other)) for name in names}


def describe_type(schema: Mapping[str, Any]) -> str:
    """In words: `whole number`, `list of 2 numbers`, `number or null`."""
    if "anyOf" in schema:
        words = (describe_type(kind) if "const" not in kind else str(kind["const"]) for kind in schema["anyOf"])
        return " or ".join(dict.fromkeys(words))
    if "$ref" in schema or schema.get("type", "object") == "object":
        return "mapping"
    if schema["type"] == "array":
        length = f"{schema['minItems']} " if schema.get("minItems") == schema.get("maxItems", ...) else ""
        return f"list of {length}{_plural(describe_type(schema['items']))}"
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_TYPES[kind] for kind in kinds)


def _plural(type_: str) -> str:
    return type_ if type_ == "text" else f"{type_}s"


def describe_range(schema: Mapping[str, Any]) -> str:
    """In words: `> 0`, `>= 0, < 1`, `ema, sum`; empty if every value of the type will do."""
    for kind in schema.get("anyOf", []):
        if found := describe_range(kind) if "const" not in kind else "":
            return found
    if "enum" in schema:
        return ", ".join(map(as_yaml, schema["enum"]))
    if "const" in schema:
        return as_yaml(schema["const"])
    if "items" in schema:
        return describe_range(schema["items"])
    bounds = {sign: as_yaml(schema[bound]) for bound, sign in _BOUNDS.items() if bound in schema}
    return ", ".join(f"{sign} {bound}" for sign, bound in bounds.items()).replace(str(2**63), "2^63")


def is_choice(schema: Mapping[str, Any]) -> bool:
    """Whether `describe_range` lists values."""
    return bool({"enum", "const"} & schema.keys()) or any("enum" in kind for kind in schema.get("anyOf", ()))


def describe_default(field: Field) -> str:
    """As YAML; empty if there is none to state, or it holds further fields."""
    return "" if field.default is UNSTATED or field.is_mapping else as_yaml(field.default)
