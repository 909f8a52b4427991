"""What the arms of a planned sweep are called; the rule is `muon_core.config.arm_names`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from muon_core.config.arm_names import Arm, flat_fields
from muon_core.config.arm_names import arm_names as name_arms
from muon_core.config.hf import shape
from muon_core.config.run import PLANNED, RunConfig
from search_spaces.expand import PlannedRun


def arm_names(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """arm_id -> a readable name that no other arm of `runs` has."""
    baseline = {run.arm_id for run in runs if "baseline" in dict(run.members).values()}
    arms = {run.arm_id: run for run in runs}
    labels = {arm_id: run.config.arm_label for arm_id, run in arms.items()}
    alike = Counter(labels.values())
    return name_arms({
        arm_id: Arm(label, _fields(arms[arm_id].config) if alike[label] > 1 else {}, arm_id in baseline)
        for arm_id, label in labels.items()
    })  # fmt: skip


def _fields(config: RunConfig) -> dict[str, Any]:
    """What an arm consists of, named as in a sweep file."""
    left_out = {*RunConfig.EXECUTION, "seed", "seeds"}
    fields = dict(flat_fields(config.model_dump(mode="json", exclude=left_out)))
    fields.pop("data.corpus_sha256")  # the path stands for the corpus: its hash says as much and nobody can read it
    of_hf = shape(config.model.hf_config) if config.model.hf_config else ()  # which follows from its name
    for name in (*PLANNED, *of_hf):
        fields.pop(f"model.{name}", None)
    return {name.removeprefix("optimizer."): value for name, value in fields.items()}
