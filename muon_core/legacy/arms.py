"""Which imported runs are one arm, and what the arm is called.

Runs are one arm if their configs differ in nothing but the seed, and they trained for as many steps and tokens. Two
things are told apart beyond that. A run without any config may be anything, so it is an arm of its own, named by its
folder. And where two runs of an arm have one seed, the arm falls into those of each folder: `try1/muon_seed42` and
`try2/muon_seed42` are a repetition or a variation that no file tells, and a mean of them is neither.

Fields that only say where a run's files lie, or what it is called, make no arm; nor does a seed that stands in a text.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muon_core.config.arm_names import Arm, arm_names, flat_fields
from muon_core.legacy.imported import UNKNOWN, ImportedRun, canonical, digest_of, optimizer_name
from muon_core.legacy.seeds import without_seed

FROM, CONTENT, ORIGIN, ENTRY = "imported_from", "imported_content", "imported_origin", "imported_entry"
"""Fields that an import adds to `config_json`: folder, digest, what its first row is, and `ImportedRun.entry`."""
LENGTH = ("steps", "tokens")
NEUTRAL = {
    FROM, CONTENT, ORIGIN, ENTRY, "name", "run_name", "run_id", "experiment_name", "git_commit", "git_branch",
    "git_dirty",
}  # fmt: skip
"""Fields of a config that do not decide the arm, and, below any other, folders:"""
_FOLDERS = {"output_dir", "out_dir", "save_dir", "log_dir", "logging_dir", "raw_metrics_dir", "metrics_dir",
            "checkpoint_dir"}  # fmt: skip
_FEW, _SHORT = 3, 60  # fields and characters, up to which an arm is named by its fields rather than by its folder


@dataclass(slots=True)
class ImportedArms:
    """Names of arms by run_id, and what is to be told of them."""

    names: dict[str, str]
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Member:
    """A run, as its start record tells it."""

    run_id: str
    optimizer: str
    seed: int | None
    folder: str
    config: dict[str, Any]
    """Fields that decide the arm, dotted, without the length."""
    length: tuple[int | None, int | None]
    apart: dict[str, Any] = field(default_factory=dict)
    """What keeps it apart from runs of the same config."""

    @property
    def fields(self) -> dict[str, Any]:
        length: dict[str, Any] = {n: value for n, value in zip(LENGTH, self.length, strict=True) if value is not None}
        return self.config | (length or {LENGTH[0]: UNKNOWN}) | self.apart

    @property
    def key(self) -> str:
        return canonical([self.optimizer, self.fields])


def arm_id(run: ImportedRun) -> str:
    """The same for runs that differ only in seed, as far as the run itself can tell."""
    member = _member(run.run_id, optimizer_name(run.optimizer), run.seed, config_json(run))
    return f"imported-{member.optimizer}-{digest_of(member.key)}"


def config_json(run: ImportedRun) -> dict[str, Any]:
    """What the run's column `config_json` holds: its config, how long it trained, and where it was found."""
    length = {name: value for name, value in zip(LENGTH, (run.steps, run.tokens), strict=True) if value is not None}
    entry = {ENTRY: run.entry} if run.entry else {}
    return run.config | length | {FROM: run.folder, CONTENT: run.digest} | entry


def imported_arms(starts: Sequence[Mapping[str, Any]], baseline: str | None = None) -> ImportedArms:
    """Names of the arms of the runs with these start records.

    Args:
        baseline: a run of the arm that is the baseline, which keeps its bare label.
    """
    members = [
        _member(start["run_id"], start["optimizer"], start["seed"], json.loads(start["config_json"]))
        for start in starts
    ]
    _fit_lengths(members)
    notes = [*_keep_repeats_apart(members), *_count_without_config(members)]
    arms: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        arms[member.key].append(member)
    own = next((member.key for member in members if member.run_id == baseline), None)
    names = _shorter(_names({key: runs[0] for key, runs in arms.items()}, own), arms)
    return ImportedArms({run.run_id: names[run.key] for run in members}, notes)


def _member(run_id: str, optimizer: str, seed: int | None, config: Mapping[str, Any]) -> _Member:
    flat = {name: _seedless(value, seed) for name, value in flat_fields(config) if _decides(name, value, seed)}
    length = tuple(flat.pop(name, None) for name in LENGTH)
    folder = str(config.get(FROM) or run_id)
    apart = {} if flat else {"folder": folder}
    return _Member(run_id, optimizer, seed, folder, flat, (length[0], length[1]), apart)


def _decides(name: str, value: Any, seed: int | None) -> bool:
    """Whether a field of a config is one that runs of an arm share."""
    return not _is_neutral(name) and not (name.endswith("seed") and value == seed)


def _is_neutral(name: str) -> bool:
    return name.split(".", 1)[0] in NEUTRAL or name.rsplit(".", 1)[-1] in _FOLDERS


def contradict(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two `config_json` cannot be of one run: a field of both that decides the arm, seed or entry differs."""
    left, right = (dict(flat_fields(config)) for config in (one, other))
    both = left.keys() & right.keys()
    shared = [name for name in both if name == ENTRY or (name not in LENGTH and not _is_neutral(name))]
    return any(left[name] != right[name] for name in shared)


def _seedless(value: Any, seed: int | None) -> Any:
    """`value`, in a text of which the run's own seed counts as no difference."""
    if seed is None or not isinstance(value, str):
        return value
    return re.sub(rf"(?<![A-Za-z])(s|seed[_-]?){seed}(?!\d)", r"\1", value, flags=re.IGNORECASE)


def _fit_lengths(members: list[_Member]) -> None:
    """Count a run of unknown length where its config fits one length only: it is missed where it belongs."""
    known: dict[str, set[tuple[int | None, int | None]]] = defaultdict(set)
    for member in members:
        known[canonical([member.optimizer, member.config, member.apart])] |= {member.length} - {(None, None)}
    for member in members:
        fits = known[canonical([member.optimizer, member.config, member.apart])]
        if member.length == (None, None) and len(fits) == 1:
            (member.length,) = fits


def _keep_repeats_apart(members: list[_Member]) -> list[str]:
    """Have runs of one arm and seed be arms of their folders; returns what to tell of that."""
    notes = []
    for group in _arms_with_repeats(members):
        counts = Counter(one.seed for one in group if one.seed is not None)
        seeds = ", ".join(str(seed) for seed, count in sorted(counts.items()) if count > 1)
        for member in group:
            member.apart = {"folder": without_seed(member.folder) or member.folder}
        folders = ", ".join(sorted({member.apart["folder"] for member in group})[:3])
        notes.append(
            f"{len(group)} runs of {_label(group[0])} with one config repeat a seed ({seeds}): they are arms of their "
            f"folders ({folders}), for no file tells what sets them apart"
        )
    for tell in ("folder", "run_id"):  # folders may differ in the seed alone, or be of two imports
        for group in _arms_with_repeats(members):
            for member in group:
                member.apart = {"folder": getattr(member, tell)}
    return notes


def _arms_with_repeats(members: list[_Member]) -> list[list[_Member]]:
    groups: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        groups[member.key].append(member)
    seeded = {key: [one.seed for one in group if one.seed is not None] for key, group in groups.items()}
    return [group for key, group in groups.items() if len(set(seeded[key])) < len(seeded[key])]


def _count_without_config(members: list[_Member]) -> list[str]:
    without = [member for member in members if not member.config]
    if not without:
        return []
    which = "1 run has" if len(without) == 1 else f"{len(without):,} runs have"
    return [f"{which} no config: each is an arm of its own, named by its folder"]


def _label(member: _Member) -> str:
    return member.folder if not member.config else member.optimizer


def _names(arms: Mapping[str, _Member], own: str | None) -> dict[str, str]:
    """Names of arms by what differs; the tokens, which steps and batch mostly tell, only where it takes them."""
    brief = {key: {name: value for name, value in arm.fields.items() if name != "tokens"} for key, arm in arms.items()}
    is_enough = len({canonical([_label(arms[key]), fields]) for key, fields in brief.items()}) == len(arms)
    fields = brief if is_enough else {key: arm.fields for key, arm in arms.items()}
    return arm_names({key: Arm(_label(arm), fields[key], key == own) for key, arm in arms.items()})


def _shorter(names: dict[str, str], arms: dict[str, list[_Member]]) -> dict[str, str]:
    """`names`, but that of the folder for those of many fields or no optimizer, where it names this arm alone."""
    stems = {key: {without_seed(run.folder).rsplit("/", 1)[-1] for run in runs} for key, runs in arms.items()}
    taken = Counter([*(stem for found in stems.values() for stem in found), *names.values()])
    chosen = {}
    for key, name in names.items():
        (stem, *others) = sorted(stems[key])
        is_poor = arms[key][0].optimizer == UNKNOWN or len(name) > _SHORT or name.count("=") > _FEW
        chosen[key] = stem if is_poor and stem and not others and taken[stem] == 1 else name
    return chosen
