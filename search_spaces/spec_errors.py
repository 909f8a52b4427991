"""What is wrong with a sweep file that its schema refuses: one line each, with the remedy."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from muon_core.config.base import Config
from muon_core.config.optimizers import OPTIMIZERS
from search_spaces.blocks import Block
from search_spaces.early_stopping import EarlyStopping
from search_spaces.errors import Problems, Source, SpecError
from search_spaces.explain import as_yaml, explain, suggest
from search_spaces.limits import Breaker, Budget, Retries
from search_spaces.parameters import GROUPS, parameters, takes_list
from search_spaces.strict_yaml import KeyPath

_PARTS: dict[str, type[Config]] = {
    "budget": Budget,
    "retries": Retries,
    "breaker": Breaker,
    "early_stopping": EarlyStopping,
}
_NAMES = {name for optimizer in OPTIMIZERS for name in parameters(optimizer)} - {"seed"}


def spec_error(error: ValidationError, source: Source, schema: type[Config]) -> SpecError:
    """What pydantic has against the content of `source`, whose model is `schema`: a line for each thing wrong."""
    if not source.data.keys() & {"version", "name", "seeds", "blocks"}:
        return SpecError(f"{source.name}:{source.line(())}: {_stranger(source)}")
    problems = Problems(source)
    found: dict[KeyPath, list[ErrorDetails]] = {}
    missing: list[KeyPath] = []
    hints: dict[KeyPath, str] = defaultdict(str)
    for detail in error.errors(include_url=False):
        path: KeyPath = (*detail["loc"], *detail.get("ctx", {}).get("at", ()))
        if detail["type"] == "extra_forbidden":
            text = _unknown(path, detail["input"], schema)
            hints[path[:-1]] += text
            problems.add(path, text, within=path[:-1])
        elif detail["type"] == "missing":
            missing.append(path)
        else:
            while path not in source.lines:
                path = path[:-1]  # pydantic names the member of a union that it tried
            found.setdefault(path, []).append(detail)
    for path in missing:
        if f"'{path[-1]}'" not in hints[path[:-1]]:  # else it is there, misspelt, and reported already
            problems.add(path, f"field '{path[-1]}' is missing; add `{_example(path, schema)}`", within=path[:-1])
    for path, details in found.items():
        text = f"{_subject(path)} {explain(details, _example(path, schema))}{_so_many_seeds(path, details[0]['input'])}"
        problems.add(path, text.lstrip())
    return problems.error()


def _so_many_seeds(path: KeyPath, value: Any) -> str:
    """About `seeds: 3`, which may have meant their number."""
    return f", or for {value} seeds {[*range(value)]}" if path == ("seeds",) and value in range(2, 11) else ""


def _stranger(source: Source) -> str:
    """About a file with none of the fields that a sweep file must have."""
    fields = {str(name) for name in source.data}
    if fields <= _NAMES | GROUPS.keys() | {"optimizer", "preset", "seed"}:
        return f"these are parameters of one run; `muon pretrain {source.name}` trains it, a sweep has blocks and seeds"
    other = " but one of W&B" if {"method", "parameters"} <= fields else ""
    return (
        f"this is no sweep file{other}: version, name, seeds and blocks are missing; values to try go under a block's "
        "`grid: {lr: [0.01, 0.02]}`; README.md shows a whole file, docs/parameters.md all it can hold"
    )


def _unknown(path: KeyPath, value: Any, schema: type[Config]) -> str:
    """About a field that does not exist at `path`, and where it belongs if it is a field elsewhere."""
    name, in_block = str(path[-1]), path[0] == "blocks" and len(path) == 3
    if in_block and name == "seeds" and not isinstance(value, dict):  # `seeds.init` and its like are parameters
        return "'seeds' is a field of the sweep; move it to the top of the file"
    is_parameter = name in (_NAMES if len(path) > 1 and not in_block else _NAMES | GROUPS.keys())
    if is_parameter and "sample" not in path:
        axis = isinstance(value, list) and not takes_list(name)
        group = "grid" if axis else "set" if in_block else "constants"
        of_block = "" if in_block or not axis else " of a block"
        named = {f"{name}.{part}": item for part, item in value.items()} if isinstance(value, dict) else {name: value}
        return f"'{name}' is a parameter; put it under {group}{of_block}: `{group}: {as_yaml(named)}`"
    if len(path) == 1 and name in Block.model_fields:
        return f"'{name}' is a field of a block; move it into one under `blocks`"
    if len(path) > 1 and name in schema.model_fields:
        return f"'{name}' is a field of the sweep; move it to the top of the file"
    if len(path) == 1 and (parts := [part for part in _PARTS if name in _PARTS[part].model_fields]):
        return f"'{name}' is a field of {parts[0]}: `{parts[0]}: {as_yaml({name: value})}`"
    near = suggest(name, _model_at(path[:-1], schema).model_fields)
    return f"unknown field '{name}'{near if near.startswith('.') else f'; remove it{near}'}"


def _example(path: KeyPath, schema: type[Config]) -> str:
    """`name: value` of the field at `path`, as one may write it; empty for what is no field."""
    of_parameters = (len(path) > 1 and path[-2] in ("set", "grid", "zip", "constants")) or "chosen" in path[:-1]
    if not isinstance(path[-1], str) or of_parameters:
        return ""
    field = _model_at(path[:-1], schema).model_fields.get(path[-1])
    examples = field.examples if field else None  # what a sample draws is no field
    return f"{path[-1]}: {as_yaml(examples[0])}" if examples else ""


def _subject(path: KeyPath) -> str:
    """What of `path` its top-level field or block does not name: `grid.alpha[3]`."""
    rest = path[2:] if len(path) > 1 and isinstance(path[1], int) else path[1:]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest).lstrip(".")


def _model_at(path: KeyPath, schema: type[Config]) -> type[BaseModel]:
    """The part of the schema that describes `path`."""
    model: type[BaseModel] = schema
    for part in path:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(
                kind
                for kind in (annotation, *get_args(annotation))
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            )
    return model
