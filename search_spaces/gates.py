"""What a sweep must show to pass: one comparison each, judged when its runs have ended."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from muon_core.config.base import Config
from search_spaces.errors import Problems
from search_spaces.explain import as_yaml, misplaced, suggest
from search_spaces.values import NAME_PATTERN, Name

if TYPE_CHECKING:
    from search_spaces.spec import SweepSpec

_SHARE = r"(?=[0-9.]*[1-9])([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?%"  # above 0
_BLOCK = "block:"


def _effect(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(_SHARE, value):
        return value
    if type(value) in (int, float) and 0 < value < math.inf:
        return value
    remedy = ""
    if isinstance(value, str):
        plain = value.replace(" ", "")
        if re.fullmatch(_SHARE, plain):
            remedy = f"; write {plain}"
        elif re.fullmatch(_SHARE, f"{plain}%"):
            remedy = f"; remove the quotes: {plain}, or write {plain}%"
    raise ValueError(
        f"must be a share above 0 such as 5%, or a positive number in the metric's unit, got {as_yaml(value)}{remedy}"
    )


_SCHEMA = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": f"^{_SHARE}$"}]}
Effect = Annotated[float | str, BeforeValidator(_effect), WithJsonSchema(_SCHEMA)]
"""A share of the value compared with, `5%`, or a difference in the metric's unit."""


def _arms(text: str) -> str:
    if text == "baseline":
        raise ValueError('the baseline is what others are compared with; name it under vs, and here "*" or a block')
    return text if text == "*" else _named(text, '"*"')


def _arm(text: str) -> str:
    return text if text == "baseline" else _named(text, "baseline")


def _named(text: str, other: str) -> str:
    if re.fullmatch(_BLOCK + NAME_PATTERN, text):
        return text
    name = re.sub(r"^blocks?\s*[:.\s]\s*", "", text)
    remedy = f"; write {_BLOCK}{name}" if re.fullmatch(NAME_PATTERN, name) else ""
    raise ValueError(f"must be {other} or {_BLOCK}NAME, got {text!r}{remedy}")


class Gate(Config):
    """One comparison that decides whether a sweep passes."""

    name: Name = Field(examples=["sane"])
    """Names the gate in answers; each gate has its own."""
    kind: Literal["non_inferior", "superior", "equivalent"] = Field(examples=["non_inferior"])
    """What must be shown of the difference in the primary metric: `non_inferior`, worse by less than `margin`;
    `superior`, better, by `min_effect` at least where that is given; `equivalent`, neither better nor worse by
    `margin`."""
    of: Annotated[
        str, AfterValidator(_arms), Field(json_schema_extra={"pattern": rf"^(\*|{_BLOCK}{NAME_PATTERN})$"})
    ] = Field(examples=["*"])
    """Whose arms must show it: `"*"`, those of every block but the one compared with, or `block:NAME`. Each must; of
    several that might be `superior` one is enough."""
    vs: Annotated[
        str, AfterValidator(_arm), Field(json_schema_extra={"pattern": f"^(baseline|{_BLOCK}{NAME_PATTERN})$"})
    ] = "baseline"
    """What they are compared with, seed by seed: `baseline`, or `block:NAME` of a block of one cell."""
    margin: Effect | None = None
    """Of `non_inferior` and `equivalent`, which need it: `5%` of the value compared with, or a number in the metric's
    unit."""
    min_effect: Effect | None = None
    """Of `superior`: the least difference that counts, written as a margin is; null: any."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "superior" and self.margin is not None:
            misplaced(
                ("margin",), f"is for non_inferior and equivalent; under superior write min_effect: {self.margin}"
            )
        if self.kind != "superior" and self.min_effect is not None:
            misplaced(("min_effect",), f"is for superior; under {self.kind} write margin: {self.min_effect}")
        if self.kind != "superior" and self.margin is None:
            raise ValueError(f"{self.kind} needs a margin, the difference that does not matter; add `margin: 5%`")
        return self


def check_gates(spec: SweepSpec, cells: Sequence[int], problems: Problems) -> None:
    """Note what gates ask of blocks that are not there, or are not one arm.

    Args:
        cells: how many each block has, in the order of the file.
    """
    names = [block.name for block in spec.blocks]
    baseline = next(block.name for block in spec.blocks if block.role == "baseline")
    for number, gate in enumerate(spec.gates):
        for field in ("of", "vs"):
            name = getattr(gate, field).removeprefix(_BLOCK)
            if getattr(gate, field).startswith(_BLOCK) and name not in names:
                problems.add(("gates", number, field), f"{field}: no block is called {name!r}{suggest(name, names)}")
        of = gate.of.removeprefix(_BLOCK)
        vs = baseline if gate.vs == "baseline" else gate.vs.removeprefix(_BLOCK)
        if of == vs:
            problems.add(("gates", number, "of"), f"of: {of} is what it is compared with, too; name another block")
        if gate.vs != "baseline" and vs in names and cells[names.index(vs)] > 1:
            problems.add(
                ("gates", number, "vs"),
                f"vs: block {vs!r} has {cells[names.index(vs)]} cells, and a comparison needs one; "
                "give the cell meant a block of its own",
            )
