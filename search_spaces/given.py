"""Values as a file gives them: each with its place, by the field of a run that its name stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.parameters import FieldPath
from search_spaces.strict_yaml import KeyPath


@dataclass(frozen=True, slots=True)
class Given:
    """A parameter's value, its name as written, and the place in the file that gives it."""

    name: str
    value: Any
    at: KeyPath


def collect(
    values: Iterable[Given], find: Callable[[Given], FieldPath], note: Callable[[KeyPath, str], None]
) -> dict[FieldPath, Given]:
    """`values` by their fields. Notes one whose field cannot be found, and a field that two places give."""
    found: dict[FieldPath, Given] = {}
    for given in values:
        try:
            path = find(given)
        except ValueError as error:
            note(given.at, str(error))
            continue
        if path in found and found[path].at != given.at:
            note(given.at, f"'{given.name}' and '{found[path].name}' are the same parameter; keep one of them")
        found[path] = given
    return found


def named_model(given: Given) -> FieldPath | None:
    """The field of `model: hf:NAME`, which is short for `model.hf: NAME`; None for anything else."""
    is_short = given.name == "model" and isinstance(given.value, str) and given.value.startswith("hf:")
    return ("model", "hf") if is_short else None


def place(given: Mapping[FieldPath, Given], path: FieldPath, text: str, default: KeyPath) -> KeyPath:
    """Where the value at `path` is given; of a rule that joins fields, the last of them that `text` names."""
    if path in given:
        return given[path].at
    joined = [item.at for field, item in given.items() if field[: len(path)] == path and field[-1] in text.split()]
    return joined[-1] if joined else default
