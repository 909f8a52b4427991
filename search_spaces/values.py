"""Values that a sweep file has in more than one place: names, lists of distinct values, what is built in."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from muon_core.by_reference import is_reference
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.presets import PRESETS
from muon_core.store.keys import check_name
from search_spaces.explain import as_yaml, misplaced, suggest

Item = TypeVar("Item")


def _known(known: Iterable[str], text: str) -> str:
    if text not in known:
        raise ValueError(f"{text!r} is unknown{suggest(text, known)}")
    return text


def _optimizer(text: str) -> str:
    if text.endswith(".py"):
        raise ValueError(f"{text!r} names no class; write {text}:Class")
    if is_reference(text) and not re.match(REFERENCE_PATTERN, text):
        raise ValueError(f"{text!r} is no reference; write package.module:Class or ./file.py:Class")
    return text if is_reference(text) else _known(OPTIMIZERS, text)


def _name(text: str) -> str:
    try:
        return check_name(text)
    except ValueError as error:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
        raise ValueError(f"{error}; write {plain}" if plain else str(error)) from error


def distinct(values: list[Any]) -> list[Any]:
    """`values`; fails a pydantic validator at the first that stands there twice."""
    seen = set()
    for index, value in enumerate(values):
        if (key := hashable(value)) in seen:
            misplaced((index,), f"is {as_yaml(value)} a second time; list each value once")
        seen.add(key)
    return values


def distinct_by(field: str, what: str, items: list[Item]) -> list[Item]:
    """`items`; fails a pydantic validator at the first whose `field` an earlier one has. `what` names an item."""
    values = [getattr(item, field) for item in items]
    for index, value in enumerate(values):
        if value in values[:index]:
            misplaced((index, field), f"is taken: an earlier {what} is {value!r} too; choose another")
    return items


def hashable(value: Any) -> Hashable:
    """Equal for equal values of YAML."""
    if isinstance(value, list):
        return tuple(map(hashable, value))
    if isinstance(value, dict):
        return frozenset((name, hashable(item)) for name, item in value.items())
    return value  # type: ignore[no-any-return]


NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]*"  # as `check_name` has it; for the schema alone, whose message says less
Name = Annotated[str, Field(max_length=100, json_schema_extra={"pattern": f"^{NAME_PATTERN}$"}), AfterValidator(_name)]
Axis = Annotated[list[Any], Field(min_length=1), AfterValidator(distinct)]
REFERENCE_PATTERN = r"^(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*$"  # what of a reference can be seen
OptimizerName = Annotated[
    str,
    AfterValidator(_optimizer),
    Field(
        json_schema_extra={
            "anyOf": [{"type": "string", "enum": [*OPTIMIZERS]}, {"type": "string", "pattern": REFERENCE_PATTERN}]
        }
    ),
]
PresetName = Annotated[str, AfterValidator(partial(_known, PRESETS)), Field(json_schema_extra={"enum": [*PRESETS]})]
