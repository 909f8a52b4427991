"""The sweep file: its schema, and the loader that refuses whatever it does not understand."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from muon_core.config.base import Config
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.presets import PRESETS
from muon_core.store.keys import check_name
from search_spaces.errors import Problems, Source, SpecError, explain, misplaced, suggest
from search_spaces.parameters import parameters
from search_spaces.strict_yaml import KeyPath, YamlError, parse

_NAMES: list[JsonValue] = [*sorted({name for optimizer in OPTIMIZERS for name in parameters(optimizer)} - {"seed"})]


def _known(known: Iterable[str], text: str) -> str:
    if text not in known:
        raise ValueError(f"{text!r} is unknown{suggest(text, known)}")
    return text


def _distinct(values: list[Any]) -> list[Any]:
    seen = set()
    for index, value in enumerate(values):
        if (key := _hashable(value)) in seen:
            misplaced((index,), f"is {value!r} a second time; list each value once")
        seen.add(key)
    return values


def _hashable(value: Any) -> Any:
    """Equal for equal values of YAML."""
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return frozenset((name, _hashable(item)) for name, item in value.items())
    return value


Name = Annotated[str, Field(max_length=100), AfterValidator(check_name)]
Axis = Annotated[list[Any], Field(min_length=1), AfterValidator(_distinct)]
OptimizerName = Annotated[
    str, AfterValidator(partial(_known, OPTIMIZERS)), Field(json_schema_extra={"enum": [*OPTIMIZERS]})
]
PresetName = Annotated[str, AfterValidator(partial(_known, PRESETS)), Field(json_schema_extra={"enum": [*PRESETS]})]


def _parameters() -> Any:
    return Field(default_factory=dict, json_schema_extra={"propertyNames": {"enum": _NAMES}})


class Block(Config):
    """Runs that differ along the axes of one grid: the unit of analysis."""

    name: Name
    role: Literal["baseline", "candidate", "control"] = "candidate"
    """The baseline is what every other block is compared with; a control is no proposal, it explains one."""
    optimizer: OptimizerName
    """Decides which parameters exist."""
    set: dict[str, Any] = _parameters()
    """Parameters all runs of the block share; a list is a value, never an axis."""
    grid: dict[str, Axis] = _parameters()
    """Parameter to list of values: every combination is a cell."""
    zip: dict[str, Axis] = _parameters()
    """Parameters that vary together: lists of one length, walked side by side; crossed with `grid`."""
    skip: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=list)
    """Cells to leave out: each entry names values along the axes, and every cell that has all of them goes."""

    @field_validator("zip")
    @classmethod
    def _same_length(cls, zipped: dict[str, list[Any]]) -> dict[str, list[Any]]:
        lengths = {name: len(values) for name, values in zipped.items()}
        if len({*lengths.values()}) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"lists must have one length, got {told}")
        return zipped


class Metrics(Config):
    """What a sweep is decided by."""

    primary: Literal["val_loss", "val_accuracy"] = "val_loss"
    goal: Literal["min", "max"] = "min"
    at: Literal["final", "best"] = "final"
    """The value at the last step, or the best of all evaluations."""

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
    cpus_per_worker: float = Field(1, gt=0)
    max_concurrent: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Runs at once; `auto` is as many as fit."""


class Retries(Config):
    """How often a run is tried again, by what ended it. A run that fails by its own code is not."""

    infrastructure: int = Field(3, ge=0)
    """After the death of a worker or its node."""


class SweepSpec(Config):
    """A sweep file: the runs that answer one question."""

    version: Literal[1]
    """Of this format."""
    name: Name
    """Names the sweep in the results store."""
    question: str = ""
    """What the sweep is to find out, in a sentence; printed with every answer."""
    preset: PresetName = "tiny"
    """Sizes and settings to start from."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1), AfterValidator(_distinct)]
    """Every cell runs once with each, so that arms are compared seed by seed."""
    constants: dict[str, Any] = _parameters()
    """Parameters of all blocks; one of an optimizer goes to the blocks whose optimizer has it."""
    blocks: Annotated[list[Block], Field(min_length=1)]
    metrics: Metrics = Metrics()
    resources: Resources = Resources()
    retries: Retries = Retries()
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
    name = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise SpecError(f"{name}: no such file") from error
    except OSError as error:
        raise SpecError(f"{name}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{name}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8") from error
    return parse_spec(text, name=name, folder=Path(path).parent)


def parse_spec(text: str, *, name: str = "sweep.yaml", folder: Path = Path()) -> SweepSpec:
    """The sweep file whose content is `text`; `name` is what messages call it, `folder` where its paths start.

    Raises SpecError, as `load_spec` does.
    """
    try:
        document = parse(text)
    except YamlError as error:
        raise SpecError(f"{name}:{error.line}: {error}") from error
    if document.value is None:
        raise SpecError(f"{name}: the file is empty; a sweep needs version, name, seeds and blocks")
    if not isinstance(document.value, dict):
        raise SpecError(f"{name}:{document.lines[()]}: a sweep file is a mapping of fields, such as `name: my-sweep`")
    source = Source(name, folder, document.value, document.lines)
    try:
        spec = SweepSpec.model_validate(document.value, strict=True)
    except ValidationError as error:
        raise _told(error, source) from error
    spec._source = source
    return spec


def json_schema() -> dict[str, Any]:
    """JSON Schema of the sweep file, for editors."""
    return SweepSpec.model_json_schema()


def _told(error: ValidationError, source: Source) -> SpecError:
    problems = Problems(source)
    found: dict[KeyPath, list[ErrorDetails]] = {}
    missing: list[KeyPath] = []
    hints: dict[KeyPath, str] = defaultdict(str)
    for detail in error.errors(include_url=False):
        path: KeyPath = (*detail["loc"], *detail.get("ctx", {}).get("at", ()))
        if detail["type"] == "extra_forbidden":
            known = _model_at(path[:-1]).model_fields
            hint = suggest(str(path[-1]), known)
            hints[path[:-1]] += hint
            problems.add(path, f"unknown field '{path[-1]}'{hint}", within=path[:-1])
        elif detail["type"] == "missing":
            missing.append(path)
        else:
            while path not in source.lines:
                path = path[:-1]  # pydantic names the member of a union that it tried
            found.setdefault(path, []).append(detail)
    for path in missing:
        if f"'{path[-1]}'" not in hints[path[:-1]]:  # else it is there, misspelt, and told already
            problems.add(path, f"field '{path[-1]}' is missing", within=path[:-1])
    for path, details in found.items():
        problems.add(path, f"{_subject(path)} {explain(details)}".lstrip())
    return problems.error()


def _subject(path: KeyPath) -> str:
    """What of `path` its top-level field or block does not tell: `grid.alpha[3]`."""
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
