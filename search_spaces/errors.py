"""What is wrong with a file or an override, and where in the file it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    files: Mapping[KeyPath, str] = field(default_factory=dict)
    """The file of each value that a file extended by this one gives."""

    def line(self, path: KeyPath) -> int:
        """Line of `path`, or of the nearest thing around it; 0 for a spec that came from no file."""
        return self.lines.get(self._known(path), 0)

    def file(self, path: KeyPath) -> str:
        """What messages call the file that gives the value at `path`."""
        return self.files.get(self._known(path), self.name)

    def folder_of(self, path: KeyPath) -> Path:
        """Where the paths of files start that the value at `path` names."""
        file = self.file(path)
        return self.folder if file == self.name else Path(file).parent

    def _known(self, path: KeyPath) -> KeyPath:
        while path and path not in self.lines:
            path = path[:-1]
        return path

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
        self._found: dict[str, tuple[bool, str, int]] = {}

    def add(self, path: KeyPath, text: str, *, within: KeyPath | None = None) -> None:
        """Note `text` about `path`, naming `within` as its place (default: `path`); the same message counts once."""
        file, line = self._source.file(path), self._source.line(path)
        place = f"{file}:{line}" if line else file
        where = self._source.where(path if within is None else within)
        message = ": ".join(part for part in (place, where, text) if part)
        self._found.setdefault(message, (file != self._source.name, file, line))

    def __bool__(self) -> bool:
        return bool(self._found)

    def error(self) -> SpecError:
        """All that was noted, in the order of the file, and then of those that it extends."""
        return SpecError(*sorted(self._found, key=self._found.__getitem__))
