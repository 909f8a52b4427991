"""What is wrong with one value of a file, in plain words, and what to write instead."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

from pydantic_core import ErrorDetails, PydanticCustomError

from muon_core.spelling import nearest
from search_spaces.strict_yaml import YamlError, parse
from search_spaces.yaml_advice import space_after_colon


def misplaced(at: tuple[str | int, ...], text: str) -> NoReturn:
    """Fail a pydantic validator for something wrong `at` a path below the validated value."""
    raise PydanticCustomError("misplaced", "{text}", {"text": text, "at": at})


MEANT = {
    "name": ("sweep", "title", "experiment", "id"),
    "question": ("hypothesis", "description", "notes"),
    "constants": ("base", "common", "defaults", "fixed"),
    "blocks": ("arms", "runs", "experiments", "groups"),
    "set": ("params", "parameters", "args", "config"),
    "grid": ("search", "space", "search_space", "axes"),
}
"""What others call the fields of a sweep file and of its blocks."""


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `word`: the nearest of the `known` names, or where they are listed."""
    known = list(known)
    inside = [name for name in known if name.endswith(f".{word}")]
    meant = [name for name, others in MEANT.items() if name in known and word.casefold() in others]
    if near := inside[:1] or meant or nearest(word, known):
        return f". Did you mean '{near[0]}'?"
    if len(known) > 16 or any("." in name for name in known):  # too many for a line
        return "; docs/parameters.md lists them"
    return f"; known: {', '.join(known)}"


def as_yaml(value: Any) -> str:
    """`value` as a sweep file writes it on one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {as_yaml(item)}' for name, item in value.items())}}}"
    if isinstance(value, str) and not _reads_as(value, value):
        return repr(value)
    plain = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return plain[value]
    return re.sub(r"^(-?)(inf|nan)$", r"\1.\2", str(value))


def _reads_as(text: str, value: Any) -> bool:
    return bool(re.fullmatch(r"[\w./][\w./ -]*", text)) and _read(text) == value


def _read(text: str) -> Any:
    """What YAML reads `text` as; None where it reads none."""
    try:
        return parse(text).value
    except YamlError:
        return None


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


def explain(details: Sequence[ErrorDetails], example: str = "") -> str:
    """What pydantic has against one value, to follow the value's name: `must be at least 0, got -1`.

    Args:
        details: the errors of one value: one, or one for each member of a union.
        example: `name: value` to write instead of a list or mapping of the wrong kind.
    """
    first, value = details[0], details[0]["input"]
    if first["type"] == "missing":
        return f"has too few values, got {_short(value)}"  # of a tuple; a missing field is reported by name
    if first["type"] in ("too_short", "string_too_short"):
        return "must not be empty; give at least one value"
    if first["type"] == "too_long":
        return f"must have {first['ctx']['max_length']} values, got {_short(value)}"
    if first["type"] in ("value_error", "misplaced"):
        return first["msg"].removeprefix("Value error, ")
    wanted = " or ".join(_wanted(detail) for detail in details)
    remedy = next((remedy for detail in details if (remedy := _remedy(detail, example))), "")
    return f"must {wanted}, got {_short(value)}{remedy}"


def _wanted(detail: ErrorDetails) -> str:
    text = re.sub(r"^\w+ should | or instance of \w+$", "", detail["msg"])  # "Input should be ...", "String should ..."
    for word, plain in _WORDS.items():
        text = text.replace(word, plain)
    return text


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else as_yaml(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _remedy(detail: ErrorDetails, example: str) -> str:
    """What to write instead of a value of the wrong type, to follow the message; empty where that is plain."""
    value, kind = detail["input"], detail["type"]
    if value is None:
        return "; give a value, or remove the line"
    if kind == "literal_error":
        return _choice(value, str(detail["ctx"]["expected"]))
    if kind in _CONTAINERS and example and not isinstance(value, str | int | float):
        return f"; write {example}"
    advice = _REMEDIES[kind](value) if kind in _REMEDIES else ""
    if not advice and example and kind in ("dict_type", "model_type"):
        advice = f"write {example}"
    return f"; {advice}" if advice else ""


def _choice(value: Any, expected: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    if isinstance(value, str) and (near := nearest(value, choices, 0.5)):
        return f". Did you mean '{near[0]}'?"
    if value is False and "none" in choices:
        return "; write none"
    if not choices:  # one number
        return f"; remove the quotes: {value}" if value == expected else f"; write {expected}"
    return ""


def _text(value: Any) -> str:
    return f"put it in quotes: '{as_yaml(value)}'" if isinstance(value, int | float) else ""


def _mapping(value: Any) -> str:
    return (space_after_colon(value) if isinstance(value, str) else None) or ""


def _number(value: Any, *, whole: bool) -> str:
    if isinstance(value, float):
        if value.is_integer():
            return f"write {value:.0f}" if abs(value) < 2**63 else ""
        return "round it" if math.isfinite(value) else ""
    if isinstance(value, dict):
        return _drawn(value)
    if not isinstance(value, str):
        return ""
    read = _read(value)
    if isinstance(read, int | float) and not isinstance(read, bool):
        return f"remove the quotes: {value}" if not whole or isinstance(read, int) else _number(read, whole=True)
    if re.fullmatch(r"[-+]?\d{1,3}([_,]\d{3})+" if whole else r"[-+]?\d+(_\d+)+", value):
        return f"write {re.sub('[_,]', '', value)}"
    if re.fullmatch(r"[-+]?\d+,\d+", value):
        return f"write {value.replace(',', '.')}"
    if found := re.fullmatch(r"[$€] ?([\d.]+)|([\d.]+) ?(?:[$€]|USD|usd)", value):
        return f"write {found[1] or found[2]}"
    if numbers := _numbers(value):
        return f"put commas between: {', '.join(map(as_yaml, numbers))}"
    return ""


def _numbers(text: str) -> list[Any]:
    """The numbers in a text of nothing but numbers and spaces between them."""
    read = [_read(word) for word in text.split()]
    return read if len(read) > 1 and all(type(number) in (int, float) for number in read) else []


def _boolean(value: Any) -> str:
    for plain, words in {"true": ("true", "yes", "on", "1"), "false": ("false", "no", "off", "0")}.items():
        if str(value).lower() in words:
            return f"remove the quotes: {plain}" if value == plain else f"write {plain}"
    return ""


def _list(value: Any) -> str:
    if isinstance(value, dict):
        return _drawn(value)
    if not isinstance(value, str):
        return f"write [{as_yaml(value)}]"
    if re.fullmatch(r"\w+\(.*\)", value):
        return "a file holds values, no code: list each, such as [0, 1, 2]"
    if re.match(r"-\S", value):
        return "write a space after each dash: - 1"
    read = _read(value)
    if isinstance(read, list):
        return f"remove the quotes: {value}"
    items = _numbers(value) or _read(f"[{value.strip('()')}]")
    return f"write {as_yaml(items)}" if isinstance(items, list) else "write the values in brackets: [1, 2]"


def _drawn(value: dict[str, Any]) -> str:
    """About how other tools write values to try: `{values: [1, 2]}`, `{min: 0, max: 1}`; empty for other mappings."""
    if not value.keys() & _DRAWN:
        return ""
    lists = [item for item in value.values() if isinstance(item, list)]
    if lists:
        return f"write the list alone, under a block's grid: {as_yaml(lists[0])}"
    if list(value) == ["value"]:
        return f"write the value alone: {as_yaml(value['value'])}"
    return "values are not drawn from ranges; list those to try under a block's grid: [0.01, 0.02]"


_DRAWN = {"value", "values", "grid_search", "choice", "min", "max", "lower", "upper", "low", "high", "distribution"}
_CONTAINERS = ("list_type", "tuple_type", "dict_type", "model_type")
_REMEDIES: dict[str, Callable[[Any], str]] = {
    "int_type": partial(_number, whole=True),
    "float_type": partial(_number, whole=False),
    "bool_type": _boolean,
    "string_type": _text,
    "list_type": _list,
    "tuple_type": _list,
    "dict_type": _mapping,
    "model_type": _mapping,
}
"""What to write instead, by pydantic's name for the error."""
