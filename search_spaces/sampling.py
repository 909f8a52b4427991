"""Cells drawn at random: `sample: {n: 16, lr: "loguniform(1e-3, 1e-1)"}`.

Each parameter has a stream of numbers of its own, which follows from the seed and its name. So the order in which a
file lists them does not matter, another parameter leaves their values alone, and a larger `n` only adds cells: those
that were drawn before keep their values, and so their runs.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from muon_core.config.base import Config
from search_spaces.explain import as_yaml, misplaced, suggest
from search_spaces.strict_yaml import YamlError, parse
from search_spaces.values import hashable

DIGITS = 4  # significant ones of a drawn number: enough to tune by, few enough to read in a run's name
TRIES = 100  # rows drawn for each one wanted: all combinations of a few choices turn up well within


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def _uniform(share: float, low: float, high: float) -> float:
    return _rounded(low + (high - low) * share, low, high)


def _loguniform(share: float, low: float, high: float) -> float:
    return _rounded(math.exp(math.log(low) + (math.log(high) - math.log(low)) * share), low, high)


def _randint(share: float, low: int, high: int) -> int:
    return low + int((high - low + 1) * share)


def _choice(share: float, *values: Any) -> Any:
    return values[int(len(values) * share)]


def _are_numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _is_range(values: list[Any]) -> bool:
    return len(values) == 2 and _are_numbers(values) and bool(values[0] < values[1])


@dataclass(frozen=True, slots=True)
class _Kind:
    draw: Callable[..., Any]
    """From a share in [0, 1) and the arguments to a value."""
    takes: Callable[[list[Any]], bool]
    """Whether these are its arguments."""
    usage: str


_KINDS = {
    "uniform": _Kind(_uniform, _is_range, "two numbers, the lower first: uniform(0, 0.1)"),
    "loguniform": _Kind(
        _loguniform,
        lambda values: _is_range(values) and values[0] > 0,
        "two positive numbers, the lower first: loguniform(1e-3, 1e-1)",
    ),
    "randint": _Kind(
        _randint,
        lambda values: _is_range(values) and all(isinstance(value, int) for value in values),
        "two whole numbers, the lower first, either of which may be drawn: randint(1, 8)",
    ),
    "choice": _Kind(
        _choice,
        lambda values: len(values) > 1 and len({*map(hashable, values)}) == len(values),
        "two or more values, each once: choice(0.9, 0.95)",
    ),
}
DISTRIBUTION = "What values are drawn from: uniform(0, 0.1), loguniform(1e-3, 1e-1), randint(1, 8), choice(0.9, 0.95)."
_EXAMPLES = "uniform(0, 0.1), loguniform(1e-3, 1e-1), randint(1, 8) or choice(0.9, 0.95)"
PATTERN = rf"^\s*({'|'.join(_KINDS)})\(.*\)\s*$"


def _parse(text: str) -> tuple[_Kind, list[Any]]:
    """The kind of distribution and its arguments. Raises ValueError."""
    found = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text)
    if not found:
        raise ValueError(f"must be a distribution, got {text!r}; write {_EXAMPLES}")
    name, inside = found.groups()
    if name not in _KINDS:
        raise ValueError(f"distribution '{name}' is unknown{suggest(name, _KINDS)}")
    kind = _KINDS[name]
    try:
        values = parse(f"[{inside}]").value
    except YamlError:
        values = []
    if not kind.takes(values):
        raise ValueError(f"{name} takes {kind.usage}; got {text.strip()}")
    return kind, values


def _distribution(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 1:
        choice = as_yaml(value)[1:-1]
        raise ValueError(f"must be a distribution, got {as_yaml(value)}; write choice({choice}), or list it under grid")
    if not isinstance(value, str):
        raise ValueError(
            f"must be a distribution, got {as_yaml(value)}; write {_EXAMPLES}; one value for all goes under set"
        )
    _parse(value)
    return value


class Sample(Config):
    """Cells drawn at random, crossed with `grid` and `zip` like one more axis. Beside `n` and `seed` it holds
    parameters, each with what its values are drawn from: `uniform(low, high)`, `loguniform(low, high)`, `randint(low,
    high)` (both ends may be drawn) or `choice(value, ...)`. Numbers are rounded to 4 significant digits; no two cells
    are alike. A larger `n` only adds cells."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[str, BeforeValidator(_distribution)]] = Field(init=False)

    n: int = Field(gt=0, examples=[16])
    """Cells to draw."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the draws; runs have the sweep's seeds all the same."""

    @model_validator(mode="before")
    @classmethod
    def _is_not_cut(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if isinstance(value, str) and re.match(r"\w+\([^)]*$", value):
                misplaced((name,), f"{value!r} ends at its comma; put it in quotes: '{value}, ...)'")
        return fields

    @model_validator(mode="after")
    def _draws_something(self) -> Sample:
        if not self.distributions:
            raise ValueError('draws no parameter; add one, such as `lr: "loguniform(1e-3, 1e-1)"`')
        return self

    @property
    def distributions(self) -> dict[str, str]:
        """Parameter to what it is drawn from."""
        return self.__pydantic_extra__


def draw(n: int, seed: int, distributions: Mapping[str, str]) -> list[dict[str, Any]]:
    """The first `n` distinct rows: parameter to value.

    Raises ValueError if so many cannot be found.
    """
    rows: dict[Any, dict[str, Any]] = {}
    streams = {name: _stream(f"{seed} {name}", text) for name, text in distributions.items()}
    for _ in range(TRIES * n):
        row = {name: next(stream) for name, stream in streams.items()}
        rows.setdefault(hashable(row), row)
        if len(rows) == n:
            return [*rows.values()]
    raise ValueError(f"draws only {len(rows)} different cells, n is {n}; lower n, or list the values under grid")


def _stream(seed: str, text: str) -> Iterator[Any]:
    kind, values = _parse(text)
    source = random.Random(seed)  # noqa: S311  (no secret; `random()` of a text is the same in every Python)
    while True:
        yield kind.draw(source.random(), *values)
