"""What every config is made of: immutable, strict, documented field by field; and its canonical text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable, rejects unknown keys, documents a field by the string below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`, validated again (pydantic's `model_copy` would not)."""
        return type(self).model_validate(dict(self) | changes)


def leaves(tree: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of nested mappings, each with its path; a list is a value."""
    if not isinstance(tree, dict):
        yield at, tree
        return
    for name, child in tree.items():
        yield from leaves(child, (*at, name))


def short_hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:8]


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, shortest floats; raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
