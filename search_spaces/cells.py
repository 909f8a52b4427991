"""The cells of a sweep file's blocks: what each sets, and where in the file it stands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from muon_core.by_reference import BadReference
from search_spaces.blocks import Block
from search_spaces.errors import Problems
from search_spaces.explain import as_yaml
from search_spaces.given import Given, collect, named_model
from search_spaces.parameters import GROUPS, FieldPath, parameters, resolve
from search_spaces.references import optimizer_config
from search_spaces.sampling import Row, draw
from search_spaces.spec import SweepSpec
from search_spaces.strict_yaml import KeyPath

MAX_RUNS = 10_000  # of a sweep: more is a slip of the pen, and would be planned for minutes


Cell = dict[FieldPath, Given]
"""What sets one run apart from its preset and the defaults, seed aside."""


def _find(given: Given, *optimizers: str) -> FieldPath:
    """The field that `given` stands for in a sweep file. Raises ValueError if it has none there."""
    if given.name == "seed":
        raise ValueError("'seed' cannot be set here; list seeds under `seeds`")
    if given.name in ("optimizer", "optimizer.name"):
        raise ValueError("a block has one optimizer, given beside its name; write a block for each")
    if given.name in GROUPS and isinstance(given.value, dict) and given.value:
        dotted = ", ".join(f"{given.name}.{name}: {as_yaml(value)}" for name, value in given.value.items())
        raise ValueError(f"'{given.name}' is a group of parameters; write each with a dot: {dotted}")
    return named_model(given) or resolve(given.name, *optimizers)


def _collect(values: Mapping[str, Any], at: KeyPath, problems: Problems, *optimizers: str) -> Cell:
    """The values that stand `at` a place of the file, by their fields under any of `optimizers`."""
    given = [Given(name, value, (*at, name)) for name, value in values.items()]
    return collect(given, lambda each: _find(each, *optimizers), problems.add)


def check_optimizers(spec: SweepSpec, problems: Problems) -> None:
    """Look for the classes that blocks refer to. Raises SpecError: without one its parameters are not known."""
    for index, block in enumerate(spec.blocks):
        try:
            optimizer_config(block.optimizer)
        except BadReference as error:
            problems.add(("blocks", index, "optimizer"), f"optimizer {error}")
    if problems:
        raise problems.error()


def check_constants(spec: SweepSpec, problems: Problems) -> None:
    """Note every constant that no block can take."""
    _collect(spec.constants, ("constants",), problems, *(block.optimizer for block in spec.blocks))


def check_size(spec: SweepSpec, problems: Problems) -> bool:
    """Whether the blocks span few enough runs to be planned; notes it if not."""
    sizes = [_cells(block) * len(spec.seeds) for block in spec.blocks]
    remedy = f"more than the {MAX_RUNS:,} a sweep may have; split it, or thin the axes out"
    for index, runs in enumerate(sizes):
        if runs > MAX_RUNS:
            axes = "sample" if spec.blocks[index].sample else "grid"
            problems.add(("blocks", index, axes), f"spans {runs:,} runs, {remedy}")
    if sum(sizes) > MAX_RUNS >= max(sizes):
        problems.add(("blocks",), f"span {sum(sizes):,} runs together, {remedy}")
    return sum(sizes) <= MAX_RUNS


def _cells(block: Block) -> int:
    """How many cells the axes of the block span."""
    return math.prod(map(len, block.grid.values())) * _rows(block) * (block.sample.n if block.sample else 1)


def _rows(block: Block) -> int:
    """Length of the block's zipped axes; 1 without any."""
    return len(next(iter(block.zip.values()), [None]))


def block_cells(spec: SweepSpec, index: int, problems: Problems) -> list[Cell]:
    """What each cell of a block sets: its axes over set over constants."""
    block, at = spec.blocks[index], ("blocks", index)
    known = parameters(block.optimizer)
    constants = {
        name: value
        for name, value in spec.constants.items()
        if (name in known and name != "seed") or named_model(Given(name, value, ()))
    }
    shared = _collect(constants, ("constants",), problems, block.optimizer)
    shared |= _collect(block.set, (*at, "set"), problems, block.optimizer)
    grid = _collect(block.grid, (*at, "grid"), problems, block.optimizer)
    zipped = _collect(block.zip, (*at, "zip"), problems, block.optimizer)
    drawn = _drawn(block, (*at, "sample"), problems)
    axes = {"grid": grid, "zip": zipped, "sample": next(iter(drawn), {})}
    for (first, taken), (_, later) in itertools.combinations(axes.items(), 2):
        for axis in (axis for path, axis in later.items() if path in taken):
            problems.add(axis.at, f"'{axis.name}' is an axis of `{first}` already; keep one of them")
    crossed = [[{path: value} for value in _values(axis)] for path, axis in grid.items()]
    walked = [dict(zip(zipped, row, strict=True)) for row in zip(*map(_values, zipped.values()), strict=True)] or [{}]
    cells = [_joined(parts) for parts in itertools.product(*crossed, walked, drawn)]
    return [shared | cell for cell in _without_skipped(block, cells, at, problems)]


def _joined(parts: Iterable[Cell]) -> Cell:
    return {path: given for part in parts for path, given in part.items()}


def _drawn(block: Block, at: KeyPath, problems: Problems) -> list[Cell]:
    """The cells of the block's sample, of a search those chosen; an empty one where there is none, or a bad name."""
    if not block.sample:
        return [{}]
    named = _collect(block.sample.distributions, at, problems, block.optimizer)
    if len(named) < len(block.sample.distributions):
        return [{}]  # noted already
    try:
        rows = block.sample.chosen if block.sample.searcher else random_rows(block)
    except ValueError as error:
        problems.add(at, f"sample {error}")
        return [{}]
    return [{path: Given(given.name, row[given.name], given.at) for path, given in named.items()} for row in rows]


def random_rows(block: Block) -> list[Row]:
    """The `n` cells that the sample of `block` draws at random. Raises ValueError where there are not so many."""
    assert block.sample
    paths = {name: ".".join(resolve(name, block.optimizer)) for name in block.sample.distributions}
    rows = draw(
        block.sample.n, block.sample.seed, {paths[name]: text for name, text in block.sample.distributions.items()}
    )
    return [{name: row[path] for name, path in paths.items()} for row in rows]


def _values(axis: Given) -> list[Given]:
    return [Given(axis.name, value, (*axis.at, index)) for index, value in enumerate(axis.value)]


def _without_skipped(block: Block, cells: list[Cell], at: KeyPath, problems: Problems) -> list[Cell]:
    """`cells`, which hold the axes of `block` alone, without those that an entry of `skip` describes."""
    if not cells:
        return cells  # of a search that has chosen none
    kept = cells
    for number, entry in enumerate(block.skip):
        place: KeyPath = (*at, "skip", number)
        wanted = _collect(entry, place, problems, block.optimizer)
        if len(wanted) < len(entry):
            continue  # noted already
        if foreign := [given for path, given in wanted.items() if path not in cells[0]]:
            axes = ", ".join([*block.grid, *block.zip, *(block.sample.distributions if block.sample else ())])
            others = f"its axes are {axes}" if axes else "it has none: remove the skip"
            problems.add(foreign[0].at, f"'{foreign[0].name}' is no axis of this block; {others}")
        elif not any(_matches(cell, wanted) for cell in cells):
            problems.add(place, f"skip {as_yaml(entry)} matches no cell; give values as they stand on the axes")
        kept = [cell for cell in kept if not _matches(cell, wanted)]
    if not kept:
        problems.add((*at, "skip"), "skip leaves no cell; remove the block instead")
    return kept


def _matches(cell: Cell, wanted: Mapping[FieldPath, Given]) -> bool:
    return all(path in cell and _same(cell[path].value, given.value) for path, given in wanted.items())


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
