"""YAML read strictly: the 1.2 core schema, no duplicate keys, no aliases, and the line of every value."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from search_spaces.yaml_advice import ANCHORS, advise, space_after_colon

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a file to a value: `("blocks", 1, "grid", "alpha")`."""

MAX_DEPTH = 32  # far above any sweep file; keeps hostile nesting from exhausting the stack
_TAG = "tag:yaml.org,2002:"


class YamlError(ValueError):
    """Text that is no strict YAML: the message says why and what to do, `line` (from 1) where."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """Plain Python values, and the line (from 1) on which each key or list item stands."""

    value: Any
    lines: dict[KeyPath, int]


class _Loader(yaml.SafeLoader):
    """PyYAML's parser without its YAML 1.1 types: `off` and `1_000` are text, `1e-3` is a number."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (replaces the base class's table)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise YamlError(line, ANCHORS)
        if self.depth == MAX_DEPTH:
            raise YamlError(line, f"nested more than {MAX_DEPTH} levels deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _integer(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


# YAML 1.2.2 section 10.3.2, core schema: tag, pattern, first characters, construction.
_CORE: list[tuple[str, str, str, Callable[[str], Any]]] = [
    ("null", r"null|Null|NULL|~|", "nN~", lambda _: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", _integer),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789", float),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.nan|\.NaN|\.NAN", "-+.", lambda text: float(text.replace(".", ""))),
]
IMPLICIT = [(_TAG + name, re.compile(rf"(?:{pattern})\Z"), [*first, ""]) for name, pattern, first, _ in _CORE]
"""What a text without quotes is taken for: tag, pattern, first characters."""
for _rule in IMPLICIT:
    _Loader.add_implicit_resolver(*_rule)


def parse(text: str) -> Document:
    """The one YAML document in `text`; its value is None if there is none.

    Raises YamlError for broken syntax, a duplicate key, a key that is no text, an alias or a tag.
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise YamlError(*advise(error, text)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"character U+{error.character:04X} is not allowed; remove it") from error
    lines: dict[KeyPath, int] = {}
    return Document(None if node is None else _value(node, (), lines), lines)


def _value(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [_value(child, (*path, index), lines) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    raise YamlError(node.start_mark.line + 1, f"tag {node.tag!r} is not read; write plain values")


def _mapping(node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, child in node.value:
        line = key.start_mark.line + 1
        _check_key(key, child, line)
        if key.value in values:
            first = lines[*path, key.value]
            raise YamlError(line, f"'{key.value}' is given in line {first} already; keep one of them")
        lines[*path, key.value] = line
        values[key.value] = _value(child, (*path, key.value), lines)
    return values


def _check_key(key: yaml.Node, child: yaml.Node, line: int) -> None:
    """Raises YamlError for what is no name."""
    if not isinstance(key, yaml.ScalarNode):
        raise YamlError(
            line, "a list or mapping stands where a name should; write the value out (no {{template}} is filled in)"
        )
    empty = child.tag == f"{_TAG}null"
    if empty and key.tag in (f"{_TAG}int", f"{_TAG}float"):
        raise YamlError(line, f"{key.value} stands alone after a comma; write `name: value`, and 0.02 with a point")
    if key.tag != f"{_TAG}str":
        raise YamlError(line, f"a name must be text, got {key.value}; put it in quotes")
    if empty and not key.style and (advice := space_after_colon(key.value)):
        raise YamlError(line, advice)


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.tag == f"{_TAG}str":
        return node.value
    for name, pattern, _, construct in _CORE:
        if node.tag == _TAG + name and re.fullmatch(pattern, node.value):
            try:
                return construct(node.value)
            except ValueError as error:  # Python refuses integers of more than 4,300 digits
                raise YamlError(node.start_mark.line + 1, f"number {node.value[:20]}... has too many digits") from error
    raise YamlError(
        node.start_mark.line + 1,
        f"tag {node.tag!r} is not read for {node.value!r}; write the value alone, or in quotes",
    )
