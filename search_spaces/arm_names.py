"""What arms are called in plans, tables and figures: by their label, and by what differs where labels repeat."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from muon_core.config.run import RunConfig
from search_spaces.expand import PlannedRun


def arm_names(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """arm_id -> a readable name that no other arm of `runs` has.

    That is the arm's label. Arms that share one have what sets them apart from the baseline, `muon momentum=0.9`, which
    keeps the bare label; where the baseline is not among them, they have every field in which they differ.
    """
    alike: dict[str, dict[str, RunConfig]] = defaultdict(dict)
    for run in runs:
        alike[run.config.arm_label].setdefault(run.config.arm_id, run.config)
    baseline = {run.config.arm_id for run in runs for _, role in run.members if role == "baseline"}
    names: dict[str, str] = {}
    for label, configs in alike.items():
        fields = {arm: dict(_fields(config)) for arm, config in configs.items()}
        others = [fields[arm] for arm in fields if arm in baseline] or list(fields.values())
        for arm, own in fields.items():
            differing = (f"{name}={value}" for name, value in own.items() if any(o[name] != value for o in others))
            names[arm] = " ".join([label, *differing])
    return names


def _fields(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(name, value) of what an arm consists of, named as in a sweep file."""
    # A path stands for the corpus: its hash says as much and nobody can read it.
    left_out = {*RunConfig.EXECUTION, "seed", "seeds"}
    for name, value in _leaves(config.model_dump(mode="json", exclude=left_out)):
        if name != "data.corpus_sha256":
            yield name.removeprefix("optimizer."), value if isinstance(value, str) else json.dumps(value)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
