"""What the arms of a sweep are called: by their label, and by what sets them apart where labels repeat.

A label (`orthonoise-a0.05-lr0.02`) tells the optimizer and the parameters people vary most. Two arms that differ in a
field it leaves out share one; then each is named by the fields in which it differs from the baseline, as in
`muon momentum=0.9`, and the baseline keeps the bare label. Plans, sweep records, imports and so all tables and figures
take their names from here.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from muon_core.config.base import leaves


@dataclass(frozen=True, slots=True)
class Arm:
    """What an arm can be called by."""

    label: str
    fields: Mapping[str, Any]
    """Every field that makes the arm, its seed left out, by the name a sweep file gives it. An arm whose label no other
    has needs none."""
    is_baseline: bool = False


def arm_names(arms: Mapping[str, Arm]) -> dict[str, str]:
    """arm_id -> a readable name that no other of `arms` has."""
    alike: dict[str, dict[str, Arm]] = defaultdict(dict)
    for arm_id, arm in arms.items():
        alike[arm.label][arm_id] = arm
    names = {arm_id: name for label, group in alike.items() for arm_id, name in _apart(label, group).items()}
    taken = Counter(names.values())  # arms whose known fields are equal have their hash left to tell them apart
    return {arm_id: name if taken[name] == 1 else f"{name} ({arm_id})" for arm_id, name in names.items()}


def _apart(label: str, group: Mapping[str, Arm]) -> dict[str, str]:
    """Names of the arms that share `label`: what differs from the baseline or, without one, among them."""
    first, *others = [arm.fields for arm in group.values() if arm.is_baseline] or [arm.fields for arm in group.values()]
    shared = {
        name: value
        for name, value in first.items()
        if all(name in fields and fields[name] == value for fields in others)
    }
    names = {}
    for arm_id, arm in group.items():
        differing = (
            f"{name}={_text(value)}"
            for name, value in arm.fields.items()
            if name not in shared or shared[name] != value
        )
        names[arm_id] = " ".join([label, *differing])
    return names


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def flat_fields(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of nested mappings."""
    for path, value in leaves(tree):
        yield ".".join(path), value
