"""The sweep file: its schema, and the loader that refuses whatever it does not understand."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic.config import JsonDict

from muon_core.by_reference import absolute, is_reference
from muon_core.config.base import Config
from search_spaces.blocks import Block, check_blocks
from search_spaces.early_stopping import EarlyStopping
from search_spaces.errors import Source
from search_spaces.explain import misplaced
from search_spaces.extends import with_base
from search_spaces.gates import Gate
from search_spaces.limits import Breaker, Budget, Retries, Stop
from search_spaces.spec_errors import spec_error
from search_spaces.values import Name, PresetName, distinct, distinct_by
from search_spaces.yaml_file import parse_file, read_file

PREPARE = "muon data prepare "
_FIELDS = "a sweep file has at least version, name, seeds and blocks; README.md shows one"


def _without_default(schema: JsonDict) -> None:
    """For a field whose default follows from another."""
    del schema["default"]


def _preparing(command: str) -> str:
    if command and not command.startswith(PREPARE):
        raise ValueError(
            f"must be the command that makes the data set, such as {PREPARE}books -o sets/books, got {command!r}"
        )
    return command


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
    """0 trains on CPUs; a share such as 0.5 lets several runs, of one worker each, use one GPU."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores a worker reserves; it computes with as many threads, one at least, and bits depend on that number."""
    max_concurrent: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Runs at once; `auto` is as many as fit."""

    @model_validator(mode="after")
    def _a_gpu_for_each(self) -> Self:
        if self.workers > 1 and 0 < self.gpus_per_worker <= 0.5:
            misplaced(
                ("gpus_per_worker",),
                f"{self.gpus_per_worker:g} would put several of {self.workers} workers on one GPU, which NCCL refuses; "
                "set it to 1, or workers: 1",
            )
        return self

    @property
    def threads_per_worker(self) -> int:
        """Threads a worker computes with; the bits of a run depend on it."""
        return max(1, int(self.cpus_per_worker))


class SweepSpec(Config):
    """A sweep file: the runs that answer one question."""

    version: Literal[1] = Field(examples=[1])
    """Of this format."""
    name: Name = Field(examples=["my-sweep"])
    """Names the sweep in the results store."""
    question: str = ""
    """What the sweep is to find out, in a sentence; printed with every answer."""
    confirms: Name | None = Field(None, examples=["my-sweep"])
    """The sweep by whose results the arms of this one were chosen, which it tries on fresh seeds, as the file that
    `muon sweep confirm` writes; answers of both say so."""
    extends: str = Field("", exclude=True, json_schema_extra=_without_default, examples=["base.yaml"])
    """Path, seen from this file, of another sweep file whose fields are taken over: mappings are merged key by key,
    `blocks` by their names; other lists and single values replace those of that file. It may extend one itself."""
    prepare: Annotated[str, AfterValidator(_preparing)] = Field(
        "", json_schema_extra={"pattern": f"^$|^{PREPARE}"}, examples=[f"{PREPARE}books -o sets/books"]
    )
    """The command that makes the data set which `data.corpus` names in a folder. Before it was called the sweep can be
    planned, though not run, and says so."""
    preset: PresetName = "tiny"
    """Sizes and settings to start from."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1), AfterValidator(distinct)] = (
        Field(examples=[[42, 137, 256]])
    )
    """Every cell runs once with each, so that arms are compared seed by seed."""
    constants: dict[str, Any] = Field(default_factory=dict, examples=[{"steps": 200}])
    """Parameters of all blocks; one of an optimizer goes to the blocks whose optimizer has it."""
    blocks: Annotated[list[Block], Field(min_length=1), AfterValidator(check_blocks)] = Field(
        examples=[[{"name": "base", "role": "baseline", "optimizer": "muon"}]]
    )
    """Their union is run. Exactly one has the role `baseline`, and is one cell."""
    metrics: Metrics = Metrics()
    """What the sweep is decided by."""
    gates: Annotated[list[Gate], AfterValidator(partial(distinct_by, "name", "gate"))] = Field(
        default_factory=list, examples=[[{"name": "sane", "kind": "non_inferior", "of": "*", "margin": "5%"}]]
    )
    """Comparisons that decide whether the sweep passes."""
    budget: Budget | None = Field(None, examples=[{"usd": 100}])
    """What may be spent; without it, any amount."""
    resources: Resources = Resources()
    """What one run occupies, and how many run at once."""
    retries: Retries = Retries()
    """How often a run is tried again."""
    breaker: Breaker = Breaker()
    """What makes an arm start no further runs."""
    stop: Annotated[list[Stop], AfterValidator(partial(distinct_by, "when", "entry"))] = Field(
        default_factory=list, examples=[[{"when": "nonfinite", "action": "fail"}]]
    )
    """What a run that diverged does to the sweep; without an entry for how it did, it is a result like others."""
    early_stopping: EarlyStopping | None = Field(None, examples=[{"scheduler": "asha", "grace_steps": 100}])
    """Which candidates end before their last step; null: none."""
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


def load_spec(path: str | os.PathLike[str]) -> SweepSpec:
    """The sweep file at `path`, checked against the schema; `expand` checks its parameters.

    Raises SpecError: a line for each thing wrong, with file, line and remedy.
    """
    return _spec(_read(os.fspath(path)))


def parse_spec(text: str, *, name: str = "sweep.yaml", folder: Path = Path()) -> SweepSpec:
    """The sweep file whose content is `text`; `name` is what messages call it, `folder` where its paths start.

    Raises SpecError, as `load_spec` does.
    """
    return _spec(parse_file(text, name=name, folder=folder, fields=_FIELDS))


def _read(path: str) -> Source:
    return read_file(path, fields=_FIELDS)


def _spec(source: Source) -> SweepSpec:
    source = _located(with_base(source, _read))
    try:
        spec = SweepSpec.model_validate(source.data, strict=True)
    except ValidationError as error:
        raise spec_error(error, source, SweepSpec) from error
    spec._source = source
    return spec


def _located(source: Source) -> Source:
    """`source`, in which the optimizers that files hold are named by absolute paths, each seen from where it stands."""
    blocks = source.data.get("blocks")
    if not isinstance(blocks, list):
        return source
    located = []
    for index, block in enumerate(blocks):
        optimizer = block.get("optimizer") if isinstance(block, dict) else None
        if isinstance(optimizer, str) and is_reference(optimizer):
            folder = source.folder_of(("blocks", index, "optimizer"))
            block = block | {"optimizer": absolute(optimizer, folder)}
        located.append(block)
    return replace(source, data=source.data | {"blocks": located})
