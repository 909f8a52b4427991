"""From a sweep file to its runs: cells of every block, crossed with the seeds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from muon_core.config.identity import Identity
from muon_core.config.presets import PRESETS
from muon_core.config.run import DataConfig, ModelConfig, RunConfig
from search_spaces.cells import Cell, block_cells, check_constants, check_optimizers, check_size
from search_spaces.early_stopping import check_early_stopping
from search_spaces.errors import Problems
from search_spaces.gates import check_gates
from search_spaces.given import place
from search_spaces.parameters import (
    build,
    check_corpus,
    corpus_path,
    describe_model,
    invalid,
    is_absent,
    locate_corpus,
    locate_model,
)
from search_spaces.searching import check_search
from search_spaces.spec import SweepSpec
from search_spaces.strict_yaml import KeyPath


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep. Blocks that contain the same run share it."""

    config: RunConfig
    run_id: str
    arm_id: str
    members: tuple[tuple[str, str], ...]
    """(block, role) of every block that contains it, in the order of the file."""

    @property
    def block(self) -> str:
        """The first block that contains it."""
        return self.members[0][0]

    @property
    def role(self) -> str:
        """Its role in that block."""
        return self.members[0][1]


@dataclass(slots=True)
class _Arm:
    """A cell's run, still without its seed, and the blocks that contain it."""

    config: RunConfig
    identity: Identity
    members: list[int]


class _Find(NamedTuple):
    """Looks for corpora and models, for each once: a branch of the Hub is one commit in all cells."""

    corpus: Callable[[DataConfig, Path], DataConfig]
    model: Callable[[ModelConfig, Path], dict[str, Any]]


def expand(spec: SweepSpec) -> list[PlannedRun]:
    """The runs of `spec`, each once, seed by seed in the order of the file: the arms of a seed finish together.

    Raises SpecError: a line for each unknown parameter, refused value or contradiction.
    """
    problems = Problems(spec.source)
    check_optimizers(spec, problems)
    check_constants(spec, problems)
    check_search(spec, problems)
    fits = check_size(spec, problems)
    cells = [block_cells(spec, index, problems) for index in range(len(spec.blocks))] if fits else []
    if fits:
        check_gates(spec, [len(own) for own in cells], problems)
    if problems:
        raise problems.error()
    find = _Find(functools.cache(locate_corpus), functools.cache(describe_model))
    configs = [_configs(spec, index, cells[index], find, problems) for index in range(len(spec.blocks))]
    check_early_stopping(spec, configs, problems)
    arms = _merge(spec, configs, problems)
    if problems:
        raise problems.error()
    return [_planned(spec, arm, seed) for seed in spec.seeds for arm in arms]


def _planned(spec: SweepSpec, arm: _Arm, seed: int) -> PlannedRun:
    config = arm.config.model_copy(update={"seed": seed})  # not validated again: any seed of a spec is one of a run
    members = tuple((spec.blocks[index].name, spec.blocks[index].role) for index in arm.members)
    return PlannedRun(config, arm.identity.run_id(seed), arm.identity.arm_id, members)


def _configs(
    spec: SweepSpec,
    index: int,
    cells: list[Cell],
    find: _Find,
    problems: Problems,
) -> list[RunConfig]:
    """The run of each cell of a block, without its seed; a cell that is refused is noted and left out."""
    base, at, optimizer = PRESETS[spec.preset], ("blocks", index), spec.blocks[index].optimizer
    configs: list[RunConfig] = []
    refused: set[KeyPath] = set()
    for cell in cells:
        try:
            config = build(base, optimizer, {path: given.value for path, given in cell.items()})
        except ValidationError as error:
            for path, text in invalid(error):
                where = place(cell, path, text, at)
                if where not in refused:
                    problems.add(where, text)
                if where[2:3] == ("sample",):
                    refused.add(where)  # its other draws would be told one by one
            continue
        if config.model.hf is not None:
            named = place(cell, ("model", "hf"), "", at)
            try:
                config = locate_model(config, spec.source.folder_of(named), find.model)
            except ValueError as error:
                problems.add(place(cell, (), str(error), named), str(error))
                continue
        if config.seeds.init is not None and len(spec.seeds) > 1:
            problems.add(
                place(cell, ("seeds", "init"), "", at),
                f"seeds.init pins the initial weights to {config.seeds.init} for all {len(spec.seeds)} seeds, "
                "which would then not vary them; remove it, or list one seed",
            )
        try:
            config.check_workers(spec.resources.workers)
        except ValueError as error:
            problems.add(("resources", "workers"), str(error))
        named = place(cell, ("data", "corpus"), "", at)
        try:
            config = _with_corpus(config, spec.source.folder_of(named), find.corpus, to_prepare=bool(spec.prepare))
        except ValueError as error:
            problems.add(named, str(error))
        configs.append(config)
    return configs


def _with_corpus(
    config: RunConfig, folder: Path, locate: Callable[[DataConfig, Path], DataConfig], *, to_prepare: bool
) -> RunConfig:
    """`config` with the content hash of its corpus; without one where that is still to be prepared.

    Raises ValueError if there is no corpus, or it does not suit the run.
    """
    if to_prepare and is_absent(path := corpus_path(config.data.corpus, folder)):
        return config.replace(data=config.data.replace(corpus=path))
    data = locate(config.data, folder)
    config = config if data is config.data else config.replace(data=data)
    check_corpus(config)
    return config


def _merge(spec: SweepSpec, configs: list[list[RunConfig]], problems: Problems) -> list[_Arm]:
    """Cells of all blocks, those that are the same run made one."""
    arms: dict[str, _Arm] = {}
    for index, block in enumerate(spec.blocks):
        at = ("blocks", index)
        if block.role == "baseline" and len(configs[index]) > 1:
            cells, axes = len(configs[index]), "grid" if block.grid else "zip"
            problems.add((*at, axes), f"the baseline must be one cell, got {cells}; move its axes to a candidate block")
        for config in configs[index]:
            identity = config.identity()
            arm = arms.setdefault(identity.run_id(config.seed), _Arm(config, identity, []))
            if index in arm.members:
                problems.add(at, f"two cells are one run, {config.arm_label}: they differ in nothing that changes it")
            elif differing := [
                name for name in RunConfig.EXECUTION if getattr(config, name) != getattr(arm.config, name)
            ]:
                other = spec.blocks[arm.members[0]].name
                problems.add(at, f"shares a run with blocks[{other}] but sets another {differing[0]}; set it alike")
            arm.members.append(index)
    return list(arms.values())
