"""Optimizers by reference whose source is another than runs in the store were trained with."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from muon_core.by_reference import file_of, with_file
from muon_core.config.reference import ReferenceConfig
from muon_core.config.run import RunConfig
from search_spaces.expand import PlannedRun


def changed(runs: Sequence[PlannedRun], coming: Collection[str], past: Iterable[str | None]) -> list[str]:
    """A sentence for each optimizer of `runs` that has changed.

    Args:
        coming: ids of the runs that would be trained.
        past: configs of runs in the store, as JSON.
    """
    now = {_place(run.config.optimizer): run.config.optimizer for run in runs if _place(run.config.optimizer)}
    if not now:
        return []
    earlier = Counter[str]()
    for text in past:
        before = _optimizer(text)
        place = _place(before)
        if place in now and _source(before) != _source(now[place]):
            earlier[place] += 1
    new = Counter(_place(run.config.optimizer) for run in runs if run.run_id in coming)
    return [_sentence(now[place], count, new[place]) for place, count in earlier.items()]


def _sentence(optimizer: object, earlier: int, new: int) -> str:
    assert isinstance(optimizer, ReferenceConfig)
    path = file_of(optimizer.reference)
    what = os.path.basename(path) if path else f"{optimizer.reference}, now of {optimizer.distribution},"
    kept = "1 run of the earlier source is kept" if earlier == 1 else f"{earlier} runs of the earlier source are kept"
    return f"{what} changed since the runs in the store: {kept}, {new} {'is' if new == 1 else 'are'} new"


def _optimizer(config: str | None) -> object:
    if not config or '"reference"' not in config:
        return None
    try:
        return RunConfig.model_validate_json(config).optimizer
    except ValidationError:  # of another release
        return None


def _place(optimizer: object) -> str:
    """What a reference says of any machine: the name of the file, or the module, and the class; empty for others."""
    if not isinstance(optimizer, ReferenceConfig):
        return ""
    path = file_of(optimizer.reference)
    return with_file(optimizer.reference, Path(path).name) if path else optimizer.reference


def _source(optimizer: object) -> tuple[str, str | None]:
    assert isinstance(optimizer, ReferenceConfig)
    return optimizer.source_sha256, optimizer.distribution
