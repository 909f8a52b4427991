"""The cells of a sweep file's blocks: what each sets, and where in the file it stands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import Problems
from search_spaces.parameters import FieldPath, parameters, resolve
from search_spaces.spec import Block, SweepSpec
from search_spaces.strict_yaml import KeyPath

MAX_RUNS = 10_000  # of a sweep: more is a slip of the pen, and would be planned for minutes


@dataclass(frozen=True, slots=True)
class Given:
    """A parameter's value and the place in the file that gives it."""

    value: Any
    at: KeyPath


Cell = dict[FieldPath, Given]
"""What sets one run apart from its preset and the defaults, seed aside."""


def _resolve(name: str, *optimizers: str) -> FieldPath:
    if name == "seed":
        raise ValueError("'seed' cannot be set here; list seeds under `seeds`")
    return resolve(name, *optimizers)


def check_constants(spec: SweepSpec, problems: Problems) -> None:
    """Note every constant that no block can take."""
    for name in spec.constants:
        try:
            _resolve(name, *(block.optimizer for block in spec.blocks))
        except ValueError as error:
            problems.add(("constants", name), str(error))


def check_size(spec: SweepSpec, problems: Problems) -> bool:
    """Whether the blocks span few enough runs to be planned; notes it if not."""
    sizes = [math.prod(map(len, block.grid.values())) * _rows(block) * len(spec.seeds) for block in spec.blocks]
    remedy = f"more than {MAX_RUNS}; split the sweep or thin the axes out"
    for index, runs in enumerate(sizes):
        if runs > MAX_RUNS:
            problems.add(("blocks", index, "grid"), f"spans {runs} runs, {remedy}")
    if sum(sizes) > MAX_RUNS >= max(sizes):
        problems.add(("blocks",), f"span {sum(sizes)} runs together, {remedy}")
    return sum(sizes) <= MAX_RUNS


def _rows(block: Block) -> int:
    """Length of the block's zipped axes; 1 without any."""
    return len(next(iter(block.zip.values()), [None]))


def _given(values: Mapping[str, Any], optimizer: str, at: KeyPath, problems: Problems) -> dict[FieldPath, Given]:
    """Named values as fields of a run, with the place of each."""
    given: dict[FieldPath, Given] = {}
    for name, value in values.items():
        try:
            path = _resolve(name, optimizer)
        except ValueError as error:
            problems.add((*at, name), str(error))
            continue
        if path in given:
            problems.add((*at, name), f"'{name}' and '{given[path].at[-1]}' are the same parameter; keep one of them")
        given[path] = Given(value, (*at, name))
    return given


def block_cells(spec: SweepSpec, index: int, problems: Problems) -> list[Cell]:
    """What each cell of a block sets: grid and zip over set over constants."""
    block, at = spec.blocks[index], ("blocks", index)
    known = parameters(block.optimizer)
    constants = {name: value for name, value in spec.constants.items() if name in known and name != "seed"}
    shared = _given(constants, block.optimizer, ("constants",), problems)
    shared |= _given(block.set, block.optimizer, (*at, "set"), problems)
    grid = _given(block.grid, block.optimizer, (*at, "grid"), problems)
    zipped = _given(block.zip, block.optimizer, (*at, "zip"), problems)
    for axis in (axis for path, axis in zipped.items() if path in grid):
        problems.add(axis.at, f"'{axis.at[-1]}' is an axis of `grid` already; keep one of them")
    crossed = [[{path: value} for value in _values(axis)] for path, axis in grid.items()]
    walked = [{path: _values(axis)[row] for path, axis in zipped.items()} for row in range(_rows(block))]
    cells = [dict(itertools.chain(*(part.items() for part in parts))) for parts in itertools.product(*crossed, walked)]
    return [shared | cell for cell in _without_skipped(block, cells, at, problems)]


def _values(axis: Given) -> list[Given]:
    return [Given(value, (*axis.at, index)) for index, value in enumerate(axis.value)]


def _without_skipped(block: Block, cells: list[Cell], at: KeyPath, problems: Problems) -> list[Cell]:
    """`cells`, which hold the axes of `block` alone, without those that an entry of `skip` describes."""
    kept = cells
    for number, entry in enumerate(block.skip):
        place: KeyPath = (*at, "skip", number)
        wanted = _given(entry, block.optimizer, place, problems)
        if len(wanted) < len(entry):
            continue  # noted already
        if foreign := [given for path, given in wanted.items() if path not in cells[0]]:
            name = foreign[0].at[-1]
            problems.add(foreign[0].at, f"'{name}' is no axis of this block, so it cannot tell cells apart")
        elif not any(_matches(cell, wanted) for cell in cells):
            told = ", ".join(f"{name}: {value}" for name, value in entry.items())
            problems.add(place, f"skip {{{told}}} matches no cell; give values as they stand on the axes")
        kept = [cell for cell in kept if not _matches(cell, wanted)]
    if not kept:
        problems.add((*at, "skip"), "skip leaves no cell; remove the block instead")
    return kept


def _matches(cell: Cell, wanted: Mapping[FieldPath, Given]) -> bool:
    return all(path in cell and _same(cell[path].value, given.value) for path, given in wanted.items())


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
