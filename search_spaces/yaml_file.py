"""A YAML file read as the mapping of fields it should be: the way of sweep files and of a run's file."""

from __future__ import annotations

import codecs
from pathlib import Path

from search_spaces.errors import Source, SpecError
from search_spaces.strict_yaml import YamlError, parse


def read_file(path: str, *, fields: str, missing: str = "no such file") -> Source:
    """The file at `path`, with the line of each value.

    Args:
        fields: what such a file is, to follow "a file is empty" or "is no mapping": `a sweep file has ...`.
        missing: what to say where there is no file.
    Raises: SpecError where there is none, or it is no UTF-8, no strict YAML or no mapping.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise SpecError(f"{path}: {missing}") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_file(_decode(data, path), name=path, folder=Path(path).parent, fields=fields)


def parse_file(text: str, *, name: str, folder: Path, fields: str) -> Source:
    """As `read_file`, of a file whose content is `text`, which messages call `name`."""
    try:
        document = parse(text)
    except YamlError as error:
        raise SpecError(f"{name}:{error.line}: {error}") from error
    if document.value is None:
        raise SpecError(f"{name}:1: the file is empty; {fields}")
    if not isinstance(document.value, dict):
        raise SpecError(f"{name}:{document.lines[()]}: this is no mapping of fields (`name: value`); {fields}")
    return Source(name, folder, document.value, document.lines)


def _decode(data: bytes, name: str) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        raise SpecError(f"{name}:1: the file is UTF-16, or no text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start : error.start + 1]
        letter = byte.decode("latin-1")
        meant = f", {letter!r} in Latin-1" if letter.isprintable() else ""
        raise SpecError(f"{name}:{line}: not UTF-8 (byte 0x{byte.hex()}{meant}); save the file as UTF-8") from error
