"""Plain words for what is wrong with a sweep file or an override, and where in the file it stands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic_core import ErrorDetails, PydanticCustomError

from search_spaces.strict_yaml import KeyPath


class SpecError(ValueError):
    """Everything wrong with a sweep file or an override: `lines` holds one message each, in the order of the file."""

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(map(_printable, lines))
        super().__init__("\n".join(self.lines))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@dataclass(frozen=True, slots=True)
class Source:
    """The file a spec came from: what messages call it, its folder, its raw content and the line of each value."""

    name: str = "sweep"
    folder: Path = Path()
    data: Any = None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """Line of `path`, or of the nearest thing around it; 0 for a spec that came from no file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def where(self, path: KeyPath) -> str:
        """The top-level field around `path`, a block by its name: `metrics`, `seeds[1]`, `blocks[rank]`."""
        if len(path) < 2 or not isinstance(path[1], int):
            return str(path[0]) if path else ""
        try:
            return f"{path[0]}[{self.data[path[0]][path[1]]['name']}]"
        except (LookupError, TypeError):  # no block, or one without a name
            return f"{path[0]}[{path[1]}]"


class Problems:
    """Collects what is wrong, so that a file is corrected in one go."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._found: dict[str, int] = {}

    def add(self, path: KeyPath, text: str, *, within: KeyPath | None = None) -> None:
        """Note `text` about `path`, told as part of `within` (default: `path`); the same message counts once."""
        line = self._source.line(path)
        place = f"{self._source.name}:{line}" if line else self._source.name
        where = self._source.where(path if within is None else within)
        self._found.setdefault(": ".join(part for part in (place, where, text) if part), line)

    def __bool__(self) -> bool:
        return bool(self._found)

    def error(self) -> SpecError:
        """All that was noted, in the order of the file."""
        return SpecError(*sorted(self._found, key=self._found.__getitem__))


def misplaced(at: KeyPath, text: str) -> NoReturn:
    """Fail a pydantic validator for something wrong `at` a path below the validated value."""
    raise PydanticCustomError("misplaced", "{text}", {"text": text, "at": at})


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `word`: the nearest of the `known` names, or the plain ones among them."""
    known = list(known)
    inside = [name for name in known if name.endswith(f".{word}")]
    if near := inside or difflib.get_close_matches(word, known, n=1):
        return f". Did you mean '{near[0]}'?"
    dotted = [name for name in known if "." in name]
    return f"; known: {', '.join(name for name in known if name not in dotted)}" + (
        f", and dotted names such as {dotted[0]}" if dotted else ""
    )


_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "an object": "a mapping",
    "a valid dictionary": "a mapping",
    "a valid list": "a list",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}


def explain(details: Sequence[ErrorDetails]) -> str:
    """What pydantic has against one value, to follow the value's name: `must be at least 0, got -1`.

    Args:
        details: the errors of one value: one, or one for each member of a union.
    """
    first, value = details[0], details[0]["input"]
    if first["type"] == "missing":
        given = list(value) if isinstance(value, tuple) else value  # as the file writes it
        return f"has too few values, got {_short(given)}"  # of a tuple; a missing field is told by name
    if first["type"] in ("too_short", "string_too_short"):
        return "must not be empty"
    if first["type"] in ("value_error", "misplaced"):
        return first["msg"].removeprefix("Value error, ")
    wanted = " or ".join(_wanted(detail) for detail in details)
    return f"must {wanted}, got {_short(value)}{_hint(first, value)}"


def _wanted(detail: ErrorDetails) -> str:
    text = re.sub(r"^\w+ should ", "", detail["msg"])  # "Input should be ...", "String should have ..."
    for word, plain in _WORDS.items():
        text = text.replace(word, plain)
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _hint(detail: ErrorDetails, value: Any) -> str:
    if detail["type"] == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return f"; write {value:.0f}"
    if detail["type"] == "literal_error" and isinstance(value, str):
        near = difflib.get_close_matches(value, re.findall(r"'([^']*)'", detail["msg"]), n=1)
        return f". Did you mean '{near[0]}'?" if near else ""
    return ""
