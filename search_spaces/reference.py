"""Every field of a sweep file and every parameter of a run, as Markdown: the text of docs/parameters.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from textwrap import fill

from muon_core.config.base import Config, leaves
from muon_core.config.optimizers import OPTIMIZERS, MuonConfig
from muon_core.config.presets import PRESETS
from muon_core.config.profiles import PROFILES, Conventions
from muon_core.config.reference import ReferenceConfig
from muon_core.config.run import PLANNED, RunConfig
from search_spaces.blocks import Block
from search_spaces.early_stopping import EarlyStopping
from search_spaces.explain import as_yaml
from search_spaces.fields import (
    Field,
    describe_default,
    describe_range,
    describe_type,
    fields,
    is_choice,
    optimizer_fields,
    owners,
    run_fields,
)
from search_spaces.gates import Gate
from search_spaces.limits import Breaker, Budget, Retries, Stop
from search_spaces.parameters import GROUPS
from search_spaces.sampling import Sample
from search_spaces.spec import Metrics, Resources, SweepSpec

_INTRODUCTION = """\
# Parameters

What a sweep file can hold, and every parameter of a run: name, type, default, range and meaning. Written by
`python -m search_spaces.reference > docs/parameters.md`; change the docstrings of `muon_core/config` and
`search_spaces` instead. `muon schema` gives the same to editors; [README](../README.md) shows a whole file.

A parameter has the name below everywhere: in a sweep file under `constants` and a block's `set` (one value), `grid` and
`zip` (a list of values to try) and `skip`; after `--set` of `muon pretrain`; and in the file of one run, where groups
may be nested too. Those of optimizers have a second name, dotted as in the groups: `optimizer.lr` is `lr`.
"""
_IDENTITY = (
    "These and those of the sections below decide a run's id, but for {outside}: they say how a run is carried out and "
    "watched, not what it computes. (Two exceptions: `spike` counts where it can change a step, `micro_batches` under "
    "dropout.)"
)
_OPTIMIZERS = """\
A block takes those of its optimizer. AdamW steps embeddings and norms in every arm; `lr` is the hidden matrices' own.
The Muons are {muons}.
"""
_MUONS = [name for name, config in OPTIMIZERS.items() if issubclass(config, MuonConfig)]
_REFERENCE = """\
An optimizer may be any class that derives from `torch.optim.Optimizer`: `./my_opt.py:MyOptimizer`, a path seen from the
file that names it, or `package.module:MyOptimizer` of an installed package. Its parameters are those of its `__init__`,
with their defaults and the types of annotations; one that is called as a parameter of every run, such as `seed`, is
`optimizer.seed`. Beside them it has those above that all optimizers have, and this:
"""
_ONE_RUN = """\
A file for `muon pretrain` holds parameters, and these:
"""
_PRESETS = """\
`preset` names the values to start from; what a preset leaves out has its default.
"""
_PROFILES = """\
What `profile` fills in where it is not given. `muon_core/config/profiles.py` names the sources.
"""


def describe() -> str:
    """The whole text."""
    return "\n".join([
        _INTRODUCTION,
        *_section("Sweep file", SweepSpec),
        *_section("Block", Block),
        *(part for name, model in _PARTS.items() for part in _section(f"`{name}`", model)),
        "## Parameters of every run\n",
        _identity(),
        _table(field.named(name) for name, field in run_fields().items() if "." not in name),
        *(part for name, model in GROUPS.items() for part in _group(name, model)),
        "## Parameters of optimizers\n",
        _OPTIMIZERS.format(muons=_code(_MUONS)),
        _optimizers(),
        "### Any optimizer by reference\n",
        _REFERENCE,
        _table(_by_reference()),
        "## File of one run\n",
        _ONE_RUN,
        _table(_one_run()),
        "## Presets\n",
        _PRESETS,
        _presets(),
        "## Profiles\n",
        _PROFILES,
        _profiles(),
    ])  # fmt: skip


FOLLOWING = ("corpus_sha256", *PLANNED)
"""Fields that are filled in when a run is planned."""
_PARTS: dict[str, type[Config]] = {
    "sample": Sample,
    "metrics": Metrics,
    "gates": Gate,
    "budget": Budget,
    "resources": Resources,
    "retries": Retries,
    "breaker": Breaker,
    "stop": Stop,
    "early_stopping": EarlyStopping,
}


def _section(title: str, model: type[Config]) -> list[str]:
    return [f"## {title}\n", f"{_about(model)}\n", _table(fields(model).values())]


def _group(name: str, model: type[Config]) -> list[str]:
    dotted = (field.named(f"{name}.{key}") for key, field in fields(model).items() if key not in FOLLOWING)
    return [f"## `{name}`\n", f"{_about(model)}\n", _table(dotted)]


def _identity() -> str:
    outside = _code(sorted(RunConfig.EXECUTION))
    return f"{fill(_IDENTITY.format(outside=outside), 120, break_on_hyphens=False)}\n"


def _about(model: type[Config]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(rows: Iterable[Field]) -> str:
    lines = ["| name | type | default | range | meaning |", "|---|---|---|---|---|"]
    return _lines([*lines, *(_row(f"`{field.name}`", *_cells(field)) for field in rows)])


def _cells(field: Field) -> tuple[str, str, str, str]:
    default = "required" if field.required else _code([describe_default(field)])
    return describe_type(field.values), default, _range(field), field.meaning


def _range(field: Field) -> str:
    found = describe_range(field.values)
    return _code(found.split(", ")) if is_choice(field.values) else found


def _code(texts: Iterable[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts if text)


def _row(*cells: str) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _lines(lines: Iterable[str]) -> str:
    return "\n".join([*lines, ""])


def _optimizers() -> str:
    lines = ["| name | type | default | range | meaning | optimizers |", "|---|---|---|---|---|---|"]
    for name, having in owners().items():
        own = {optimizer: optimizer_fields(optimizer)[name] for optimizer in having}
        type_, _, range_, _ = _cells(own[having[0]])
        default = _by_optimizer({optimizer: _code([describe_default(field)]) for optimizer, field in own.items()})
        meaning = _by_optimizer({optimizer: field.meaning for optimizer, field in own.items()})
        lines.append(_row(f"`{name}`", type_, default, range_, meaning, _names(having)))
    return _lines(lines)


def _by_optimizer(texts: Mapping[str, str]) -> str:
    """One text where all have it alike, else each with the optimizers that have it."""
    distinct = dict.fromkeys(texts.values())
    if len(distinct) == 1:
        return next(iter(distinct))
    having = {text: [optimizer for optimizer, own in texts.items() if own == text] for text in distinct}
    return "; ".join(f"{_names(tuple(names))}: {text.rstrip('.')}" for text, names in having.items())


def _names(optimizers: tuple[str, ...]) -> str:
    missing = [name for name in OPTIMIZERS if name not in optimizers]
    if not missing:
        return "all"
    if len(missing) == 1:
        return f"all but `{missing[0]}`"
    lacking = [name for name in _MUONS if name in missing]
    if len(lacking) > 1:
        return _code(optimizers)
    others = [_code([name]) for name in optimizers if name not in _MUONS]
    return ", ".join([*others, f"every Muon but `{lacking[0]}`" if lacking else "every Muon"])


def _by_reference() -> Iterator[Field]:
    yield fields(ReferenceConfig)["takes"]


def _one_run() -> Iterator[Field]:
    yield fields(SweepSpec)["preset"]
    yield replace(fields(Block)["optimizer"], required=False, default="muon")
    yield fields(RunConfig)["seed"]
    yield fields(GROUPS["data"])["corpus_sha256"].named("data.corpus_sha256")
    for name in PLANNED:
        yield fields(GROUPS["model"])[name].named(f"model.{name}")
    for name in ("reference", "source_sha256", "distribution"):
        yield replace(fields(ReferenceConfig)[name], required=False).named(f"optimizer.{name}")


def _presets() -> str:
    values = {
        name: {".".join(map(str, path)): value for path, value in leaves(preset)} for name, preset in PRESETS.items()
    }
    named = dict.fromkeys(name for preset in values.values() for name in preset)
    lines = [_row("name", *PRESETS), _row(*["---"] * (len(PRESETS) + 1))]
    for name in named:
        default = describe_default(run_fields()[name])
        lines.append(
            _row(f"`{name}`", *(as_yaml(preset[name]) if name in preset else default for preset in values.values()))
        )
    return _lines(lines)


def _profiles() -> str:
    names = list(Conventions.__slots__)
    lines = [_row("profile", *(f"`{name}`" for name in names)), _row(*["---"] * (len(names) + 1))]
    for profile, row in PROFILES.items():
        lines.append(_row(f"`{profile}`", *(as_yaml(value) for value in asdict(row).values())))
    return _lines(lines)


if __name__ == "__main__":
    print(describe(), end="")
