"""What every config is made of: immutable, strict, documented field by field; and its canonical text."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable, rejects unknown keys, documents a field by the string below it."""

    # Not `use_attribute_docstrings`: it reads the source of each class at import, which a plan would feel (`meanings`).
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`, validated again (pydantic's `model_copy` would not)."""
        return type(self).model_validate(dict(self) | changes)

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Field to the string below it, on one line."""
        kinds = (kind for kind in reversed(cls.__mro__) if issubclass(kind, Config))
        return {name: text for kind in kinds for name, text in _own_meanings(kind).items()}


@cache
def _own_meanings(kind: type[Config]) -> dict[str, str]:
    """Those of the fields that stand in the class itself."""
    found: dict[str, str] = {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in itertools.pairwise(definition.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def leaves(tree: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of nested mappings, each with its path; a list is a value."""
    if not isinstance(tree, dict):
        yield at, tree
        return
    for name, child in tree.items():
        yield from leaves(child, (*at, name))


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, shortest floats; raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
