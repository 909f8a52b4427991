"""`extends: base.yaml`: a sweep file as what it changes of another one.

Mappings are merged key by key, `blocks` by their names; lists and single values of the extending file replace those of
the file it extends. Every value keeps the file and line it came from, so that messages and relative paths are right.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search_spaces.errors import Problems, Source, SpecError
from search_spaces.explain import as_yaml
from search_spaces.strict_yaml import KeyPath

_AT: KeyPath = ("extends",)


def with_base(source: Source, read: Callable[[str], Source], above: tuple[str, ...] = ()) -> Source:
    """`source` with the fields of the file that it extends, and of those that one extends in turn.

    Args:
        read: what reads a file; raises SpecError.
        above: the files that extend this one, the nearest last.
    Raises: SpecError for a file that is not there or extends itself by way of others.
    """
    if "extends" not in source.data:
        return source
    path = source.data["extends"]
    if not isinstance(path, str):
        raise _error(source, f"must be text, the path of another sweep file, got {as_yaml(path)}")
    base = os.path.normpath(source.folder / Path(path).expanduser())
    chain = (*above, os.path.normpath(source.folder / Path(source.name).name))
    if os.path.realpath(base) in map(os.path.realpath, chain):
        raise _error(source, f"goes round in a circle: {' -> '.join([*chain, base])}; remove one of them")
    if not os.path.exists(base):
        raise _error(source, f"no file {base}; give its path as seen from the folder of this file")
    merged = _merge(_placed(with_base(read(base), read, chain)), _placed(source))
    del merged.value["extends"]
    lines: dict[KeyPath, int] = {}
    files: dict[KeyPath, str] = {}
    return Source(source.name, source.folder, _plain(merged, (), lines, files), lines, files)


def _error(source: Source, text: str) -> SpecError:
    problems = Problems(source)
    problems.add(_AT, text)
    return problems.error()


@dataclass(frozen=True, slots=True)
class _Placed:
    """A value with the file and line it comes from, as have those within it."""

    value: Any
    file: str
    line: int


def _placed(source: Source, at: KeyPath = ()) -> _Placed:
    """The value `at` a path of `source`."""
    value = source.data
    for part in at:
        value = value[part]
    if isinstance(value, dict):
        value = {name: _placed(source, (*at, name)) for name in value}
    elif isinstance(value, list):
        value = [_placed(source, (*at, index)) for index in range(len(value))]
    return _Placed(value, source.file(at), source.line(at))


def _plain(placed: _Placed, at: KeyPath, lines: dict[KeyPath, int], files: dict[KeyPath, str]) -> Any:
    """The value alone, which stands `at` a path; notes the places of it and of those within it."""
    lines[at], files[at] = placed.line, placed.file
    if isinstance(placed.value, dict):
        return {name: _plain(item, (*at, name), lines, files) for name, item in placed.value.items()}
    if isinstance(placed.value, list):
        return [_plain(item, (*at, index), lines, files) for index, item in enumerate(placed.value)]
    return placed.value


def _merge(base: _Placed, over: _Placed, at: KeyPath = ()) -> _Placed:
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        known = base.value
        merged = {
            name: _merge(known[name], item, (*at, name)) if name in known else item for name, item in over.value.items()
        }
        return replace(over, value=known | merged)
    if at == ("blocks",) and isinstance(base.value, list) and isinstance(over.value, list):
        return replace(over, value=_merge_blocks(base.value, over.value))
    return over


def _merge_blocks(base: list[_Placed], over: list[_Placed]) -> list[_Placed]:
    """Those of `base`, each under what `over` has by its name, then the others of `over`."""
    left = list(over)
    merged = []
    for block in base:
        same = next((other for other in left if _name(other) is not None and _name(other) == _name(block)), None)
        if same:
            left.remove(same)
        merged.append(_merge(block, same) if same else block)
    return [*merged, *left]


def _name(block: _Placed) -> Any:
    """The text that names a block; None where there is none."""
    name = block.value.get("name") if isinstance(block.value, dict) else None
    return name.value if name and isinstance(name.value, str) else None
