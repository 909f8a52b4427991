"""Cells drawn at random, or chosen by a searcher: `sample: {n: 16, lr: "loguniform(1e-3, 1e-1)"}`.

Of what is drawn at random, each parameter has a stream of numbers of its own, which follows from the seed and its name.
So the order in which a file lists them does not matter, another parameter leaves their values alone, and a larger `n`
only adds cells: those that were drawn before keep their values, and so their runs.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from muon_core.config.base import Config
from search_spaces.explain import as_yaml, misplaced, suggest
from search_spaces.strict_yaml import YamlError, parse
from search_spaces.values import hashable

DIGITS = 4  # significant ones of a drawn number: enough to tune by, few enough to read in a run's name
TRIES = 100  # rows drawn for each one wanted: all combinations of a few choices turn up well within


def rounded(value: float, low: float, high: float) -> float:
    """`value` as a cell has it: short, and between `low` and `high`."""
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def _uniform(share: float, low: float, high: float) -> float:
    return rounded(low + (high - low) * share, low, high)


def _loguniform(share: float, low: float, high: float) -> float:
    return rounded(math.exp(math.log(low) + (math.log(high) - math.log(low)) * share), low, high)


def _randint(share: float, low: int, high: int) -> int:
    return low + int((high - low + 1) * share)


def _choice(share: float, *values: Any) -> Any:
    return values[int(len(values) * share)]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_range(values: list[Any]) -> bool:
    return len(values) == 2 and all(map(_is_number, values)) and bool(values[0] < values[1])


def _is_between(value: Any, low: float, high: float) -> bool:
    return _is_number(value) and bool(low <= value <= high)


def _is_whole_between(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_among(value: Any, *values: Any) -> bool:
    return any(type(value) is type(other) and value == other for other in values)


@dataclass(frozen=True, slots=True)
class _Kind:
    draw: Callable[..., Any]
    """From a share in [0, 1) and the arguments to a value."""
    takes: Callable[[list[Any]], bool]
    """Whether these are its arguments."""
    holds: Callable[..., bool]
    """Whether a value, given before the arguments, is one that it can have."""
    usage: str


_KINDS = {
    "uniform": _Kind(_uniform, _is_range, _is_between, "two numbers, the lower first: uniform(0, 0.1)"),
    "loguniform": _Kind(
        _loguniform,
        lambda values: _is_range(values) and values[0] > 0,
        _is_between,
        "two positive numbers, the lower first: loguniform(1e-3, 1e-1)",
    ),
    "randint": _Kind(
        _randint,
        lambda values: _is_range(values) and all(isinstance(value, int) for value in values),
        _is_whole_between,
        "two whole numbers, the lower first, either of which may be drawn: randint(1, 8)",
    ),
    "choice": _Kind(
        _choice,
        lambda values: len(values) > 1 and len({*map(hashable, values)}) == len(values),
        _is_among,
        "two or more values, each once: choice(0.9, 0.95)",
    ),
}
DISTRIBUTION = "What values are drawn from: uniform(0, 0.1), loguniform(1e-3, 1e-1), randint(1, 8), choice(0.9, 0.95)."
_EXAMPLES = "uniform(0, 0.1), loguniform(1e-3, 1e-1), randint(1, 8) or choice(0.9, 0.95)"
PATTERN = rf"^\s*({'|'.join(_KINDS)})\(.*\)\s*$"


def read_distribution(text: str) -> tuple[str, list[Any]]:
    """The name of a distribution and its arguments. Raises ValueError."""
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
    return name, values


def _distribution(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 1:
        choice = as_yaml(value)[1:-1]
        raise ValueError(f"must be a distribution, got {as_yaml(value)}; write choice({choice}), or list it under grid")
    if not isinstance(value, str):
        raise ValueError(
            f"must be a distribution, got {as_yaml(value)}; write {_EXAMPLES}; one value for all goes under set"
        )
    read_distribution(value)
    return value


Row = dict[str, Any]
"""What a cell of a sample sets: parameter, named as in the file, to value."""


class Sample(Config):
    """Cells drawn at random, crossed with `grid` and `zip` like one more axis, or chosen by a searcher. Beside the
    fields below it holds parameters, each with what its values are drawn from: `uniform(low, high)`, `loguniform(low,
    high)`, `randint(low, high)` (both ends may be drawn) or `choice(value, ...)`. Numbers are rounded to 4 significant
    digits; no two cells are alike. A larger `n` only adds cells."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[str, BeforeValidator(_distribution)]] = Field(init=False)

    n: int = Field(gt=0, examples=[16])
    """Cells to draw."""
    searcher: Literal["optuna"] | None = Field(None, examples=["optuna"])
    """`optuna` chooses each cell by the results of those before (by Optuna's TPE, after a few at random), in a sweep of
    one seed, and in a block without `grid` and `zip`; takes `pip install "muon-jobs[search]"`. null: all are drawn at
    random."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the draws; runs have the sweep's seeds all the same."""
    chosen: list[Row] = Field(default_factory=list, examples=[[{"lr": 0.02}]])
    """Of a searcher: cells to try first. The store adds those that it chose, so `muon sweep show` has them here."""

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

    @model_validator(mode="after")
    def _chose_from_what_there_is(self) -> Sample:
        if self.chosen and not self.searcher:
            misplaced(("chosen",), "is for cells that a searcher goes on from; add searcher: optuna, or remove it")
        if len(self.chosen) > self.n:
            misplaced(("chosen",), f"has {len(self.chosen)} cells, and n is {self.n}; raise n, or remove some")
        for index, row in enumerate(self.chosen):
            if row.keys() != self.distributions.keys():
                names = ", ".join(self.distributions)
                misplaced(("chosen", index), f"must give {names} and nothing else, got {as_yaml(row)}")
            if foreign := [name for name in row if not self.holds({name: row[name]})]:
                text = f"is {as_yaml(row[foreign[0]])}, which {self.distributions[foreign[0]]} cannot give"
                misplaced(("chosen", index, foreign[0]), f"{text}; change one of them")
            if row in self.chosen[:index]:
                misplaced(("chosen", index), f"is {as_yaml(row)} a second time; list each cell once")
        return self

    def holds(self, row: Row) -> bool:
        """Whether the distributions can give the values of `row`, which are of parameters that they have."""
        given = {name: read_distribution(self.distributions[name]) for name in row}
        return all(_KINDS[kind].holds(row[name], *values) for name, (kind, values) in given.items())

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
    name, values = read_distribution(text)
    source = random.Random(seed)  # noqa: S311  (no secret; `random()` of a text is the same in every Python)
    while True:
        yield _KINDS[name].draw(source.random(), *values)
