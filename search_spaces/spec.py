"""The sweep file: its schema, and the loader that refuses whatever it does not understand."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import ErrorDetails

from muon_core.config.base import Config
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.presets import PRESETS
from muon_core.store.keys import check_name
from search_spaces.errors import Problems, Source, SpecError
from search_spaces.explain import as_yaml, explain, misplaced, suggest
from search_spaces.parameters import GROUPS, parameters, takes_list
from search_spaces.strict_yaml import KeyPath
from search_spaces.yaml_file import parse_file, read_file

_FIELDS = "a sweep file has at least version, name, seeds and blocks; README.md shows one"
_NAMES = {name for optimizer in OPTIMIZERS for name in parameters(optimizer)} - {"seed"}


def _known(known: Iterable[str], text: str) -> str:
    if text not in known:
        raise ValueError(f"{text!r} is unknown{suggest(text, known)}")
    return text


def _name(text: str) -> str:
    try:
        return check_name(text)
    except ValueError as error:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
        raise ValueError(f"{error}; write {plain}" if plain else str(error)) from error


def _distinct(values: list[Any]) -> list[Any]:
    seen = set()
    for index, value in enumerate(values):
        if (key := _hashable(value)) in seen:
            misplaced((index,), f"is {as_yaml(value)} a second time; list each value once")
        seen.add(key)
    return values


def _hashable(value: Any) -> Any:
    """Equal for equal values of YAML."""
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return frozenset((name, _hashable(item)) for name, item in value.items())
    return value


_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"  # as `check_name` has it; for the schema alone, whose message says less
Name = Annotated[str, Field(max_length=100, json_schema_extra={"pattern": _PATTERN}), AfterValidator(_name)]
Axis = Annotated[list[Any], Field(min_length=1), AfterValidator(_distinct)]
OptimizerName = Annotated[
    str, AfterValidator(partial(_known, OPTIMIZERS)), Field(json_schema_extra={"enum": [*OPTIMIZERS]})
]
PresetName = Annotated[str, AfterValidator(partial(_known, PRESETS)), Field(json_schema_extra={"enum": [*PRESETS]})]


def _without_default(schema: JsonDict) -> None:
    """For a field whose default follows from another."""
    del schema["default"]


class Block(Config):
    """Runs that differ along the axes of one grid: the unit of analysis."""

    name: Name = Field(examples=["base"])
    """Names the block in plans and answers; each block has its own."""
    role: Literal["baseline", "candidate", "control"] = "candidate"
    """The baseline is what every other block is compared with; a control is no proposal, it explains one."""
    optimizer: OptimizerName = Field(examples=["muon"])
    """Decides which parameters exist."""
    set: dict[str, Any] = Field(default_factory=dict, examples=[{"lr": 0.02}])
    """Parameters all runs of the block share; a list is a value, never an axis."""
    grid: dict[str, Axis] = Field(default_factory=dict, examples=[{"lr": [0.01, 0.02]}])
    """Parameter to list of values: every combination is a cell."""
    zip: dict[str, Axis] = Field(default_factory=dict, examples=[{"lr": [0.01, 0.02], "momentum": [0.9, 0.95]}])
    """Parameters that vary together: lists of one length, walked side by side; crossed with `grid`."""
    skip: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=list, examples=[[{"lr": 0.02}]])
    """Cells to leave out: each entry names values along the axes, and every cell that has all of them goes."""

    @field_validator("zip")
    @classmethod
    def _same_length(cls, zipped: dict[str, list[Any]]) -> dict[str, list[Any]]:
        lengths = {name: len(values) for name, values in zipped.items()}
        if len({*lengths.values()}) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"lists must have one length, got {found}")
        return zipped


class Metrics(Config):
    """What a sweep is decided by."""

    primary: Literal["val_loss", "val_accuracy"] = "val_loss"
    """Validation loss (nats per token), or the share of next tokens that are predicted exactly."""
    goal: Literal["min", "max"] = Field("min", json_schema_extra=_without_default)
    """Which way is better; may be left out, for it is `min` for val_loss and `max` for val_accuracy."""
    at: Literal["final", "best"] = "final"
    """The value at the last step, or the best of all evaluations."""

    @model_validator(mode="before")
    @classmethod
    def _goal_follows(cls, fields: Any) -> Any:
        goal = "max" if isinstance(fields, dict) and fields.get("primary") == "val_accuracy" else "min"
        return {"goal": goal} | fields if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _goal_fits(self) -> Self:
        goal = "min" if self.primary == "val_loss" else "max"
        if self.goal != goal:
            misplaced(("goal",), f"must be '{goal}' for {self.primary}, got '{self.goal}'")
        return self


class Resources(Config):
    """What one run occupies, and how many run at once."""

    workers: int = Field(1, gt=0)
    """Processes a run is spread over; the batch size is over all of them."""
    gpus_per_worker: float = Field(0, ge=0)
    """0 trains on CPUs; a share such as 0.5 lets several workers use one GPU."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores a worker reserves; it computes with as many threads, one at least, and bits depend on that number."""
    max_concurrent: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Runs at once; `auto` is as many as fit."""

    @property
    def threads_per_worker(self) -> int:
        """Threads a worker computes with; the bits of a run depend on it."""
        return max(1, int(self.cpus_per_worker))


class Retries(Config):
    """How often a run is tried again, by what ended it. A run that fails by its own code is not."""

    infrastructure: int = Field(3, ge=0)
    """After the death of a worker or its node."""


class SweepSpec(Config):
    """A sweep file: the runs that answer one question."""

    version: Literal[1] = Field(examples=[1])
    """Of this format."""
    name: Name = Field(examples=["my-sweep"])
    """Names the sweep in the results store."""
    question: str = ""
    """What the sweep is to find out, in a sentence; printed with every answer."""
    preset: PresetName = "tiny"
    """Sizes and settings to start from."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1), AfterValidator(_distinct)] = (
        Field(examples=[[42, 137, 256]])
    )
    """Every cell runs once with each, so that arms are compared seed by seed."""
    constants: dict[str, Any] = Field(default_factory=dict, examples=[{"steps": 200}])
    """Parameters of all blocks; one of an optimizer goes to the blocks whose optimizer has it."""
    blocks: Annotated[list[Block], Field(min_length=1)] = Field(
        examples=[[{"name": "base", "role": "baseline", "optimizer": "muon"}]]
    )
    """Their union is run. Exactly one has the role `baseline`, and is one cell."""
    metrics: Metrics = Metrics()
    """What the sweep is decided by."""
    resources: Resources = Resources()
    """What one run occupies, and how many run at once."""
    retries: Retries = Retries()
    """How often a run is tried again."""
    _source: Source = PrivateAttr(default_factory=Source)

    @property
    def source(self) -> Source:
        """The file it was read from, for messages and relative paths."""
        return self._source

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`, validated again, that still knows its file."""
        copy = super().replace(**changes)
        copy._source = self._source
        return copy

    @field_validator("blocks")
    @classmethod
    def _blocks_compare(cls, blocks: list[Block]) -> list[Block]:
        names = [block.name for block in blocks]
        for index, name in enumerate(names):
            if name in names[:index]:
                misplaced((index, "name"), f"is taken: an earlier block is {name!r} too; choose another")
        baselines = [index for index, block in enumerate(blocks) if block.role == "baseline"]
        if not baselines:
            raise ValueError("no block is the baseline; give one of them `role: baseline`")
        if len(baselines) > 1:
            first = blocks[baselines[0]].name
            misplaced(
                (baselines[1], "role"), f"cannot be baseline: blocks[{first}] is; make one of them candidate or control"
            )
        return blocks


def load_spec(path: str | os.PathLike[str]) -> SweepSpec:
    """The sweep file at `path`, checked against the schema; `expand` checks its parameters.

    Raises SpecError: a line for each thing wrong, with file, line and remedy.
    """
    return _spec(read_file(os.fspath(path), fields=_FIELDS))


def parse_spec(text: str, *, name: str = "sweep.yaml", folder: Path = Path()) -> SweepSpec:
    """The sweep file whose content is `text`; `name` is what messages call it, `folder` where its paths start.

    Raises SpecError, as `load_spec` does.
    """
    return _spec(parse_file(text, name=name, folder=folder, fields=_FIELDS))


def _spec(source: Source) -> SweepSpec:
    try:
        spec = SweepSpec.model_validate(source.data, strict=True)
    except ValidationError as error:
        raise _error(error, source) from error
    spec._source = source
    return spec


def _error(error: ValidationError, source: Source) -> SpecError:
    if not source.data.keys() & {"version", "name", "seeds", "blocks"}:
        return SpecError(f"{source.name}:{source.line(())}: {_stranger(source)}")
    problems = Problems(source)
    found: dict[KeyPath, list[ErrorDetails]] = {}
    missing: list[KeyPath] = []
    hints: dict[KeyPath, str] = defaultdict(str)
    for detail in error.errors(include_url=False):
        path: KeyPath = (*detail["loc"], *detail.get("ctx", {}).get("at", ()))
        if detail["type"] == "extra_forbidden":
            text = _unknown(path, detail["input"])
            hints[path[:-1]] += text
            problems.add(path, text, within=path[:-1])
        elif detail["type"] == "missing":
            missing.append(path)
        else:
            while path not in source.lines:
                path = path[:-1]  # pydantic names the member of a union that it tried
            found.setdefault(path, []).append(detail)
    for path in missing:
        if f"'{path[-1]}'" not in hints[path[:-1]]:  # else it is there, misspelt, and reported already
            problems.add(path, f"field '{path[-1]}' is missing; add `{_example(path)}`", within=path[:-1])
    for path, details in found.items():
        text = f"{_subject(path)} {explain(details, _example(path))}{_so_many_seeds(path, details[0]['input'])}"
        problems.add(path, text.lstrip())
    return problems.error()


def _so_many_seeds(path: KeyPath, value: Any) -> str:
    """About `seeds: 3`, which may have meant their number."""
    return f", or for {value} seeds {[*range(value)]}" if path == ("seeds",) and value in range(2, 11) else ""


def _stranger(source: Source) -> str:
    """About a file with none of the fields that a sweep file must have."""
    fields = {str(name) for name in source.data}
    if fields <= _NAMES | GROUPS.keys() | {"optimizer", "preset", "seed"}:
        return f"these are parameters of one run; `muon pretrain {source.name}` trains it, a sweep has blocks and seeds"
    other = " but one of W&B" if {"method", "parameters"} <= fields else ""
    return (
        f"this is no sweep file{other}: version, name, seeds and blocks are missing; values to try go under a block's "
        "`grid: {lr: [0.01, 0.02]}`; README.md shows a whole file, docs/parameters.md all it can hold"
    )


def _unknown(path: KeyPath, value: Any) -> str:
    """About a field that does not exist at `path`, and where it belongs if it is a field elsewhere."""
    name, in_block = str(path[-1]), path[0] == "blocks" and len(path) == 3
    if in_block and name == "seeds" and not isinstance(value, dict):  # `seeds.init` and its like are parameters
        return "'seeds' is a field of the sweep; move it to the top of the file"
    if (in_block or len(path) == 1) and name in _NAMES | GROUPS.keys():
        axis = isinstance(value, list) and not takes_list(name)
        group = "grid" if axis else "set" if in_block else "constants"
        of_block = "" if in_block or not axis else " of a block"
        named = {f"{name}.{part}": item for part, item in value.items()} if isinstance(value, dict) else {name: value}
        return f"'{name}' is a parameter; put it under {group}{of_block}: `{group}: {as_yaml(named)}`"
    if len(path) == 1 and name in Block.model_fields:
        return f"'{name}' is a field of a block; move it into one under `blocks`"
    if in_block and name in SweepSpec.model_fields:
        return f"'{name}' is a field of the sweep; move it to the top of the file"
    near = suggest(name, _model_at(path[:-1]).model_fields)
    return f"unknown field '{name}'{near if near.startswith('.') else f'; remove it{near}'}"


def _example(path: KeyPath) -> str:
    """`name: value` of the field at `path`, as one may write it; empty for what is no field."""
    if not isinstance(path[-1], str) or (len(path) > 1 and path[-2] in ("set", "grid", "zip", "constants")):
        return ""
    examples = _model_at(path[:-1]).model_fields[path[-1]].examples
    return f"{path[-1]}: {as_yaml(examples[0])}" if examples else ""


def _subject(path: KeyPath) -> str:
    """What of `path` its top-level field or block does not name: `grid.alpha[3]`."""
    rest = path[2:] if len(path) > 1 and isinstance(path[1], int) else path[1:]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest).lstrip(".")


def _model_at(path: KeyPath) -> type[BaseModel]:
    """The part of the schema that describes `path`."""
    model: type[BaseModel] = SweepSpec
    for part in path:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(
                kind
                for kind in (annotation, *get_args(annotation))
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            )
    return model
