"""Names that stand for the fields of a run: how a sweep file and `--set` address them, and the run they build."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from muon_core.config.base import Config
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.run import PLANNED, TAGS, DataConfig, ModelConfig, RunConfig
from search_spaces.errors import SpecError
from search_spaces.explain import explain, suggest
from search_spaces.references import fixed_fields, own_parameters, run_config, short
from search_spaces.strict_yaml import YamlError, parse

FieldPath = tuple[str, ...]
"""Where a parameter lives in a RunConfig: `("optimizer", "alpha")`, `("steps",)`."""

GROUPS: dict[str, type[Config]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
}
"""The configs whose fields have dotted names: `model`, `data`, ..."""

_ELSEWHERE = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "betas": "adam_betas",
    "eps": "adam_eps",
    "epochs": "steps",
    "max_steps": "steps",
    "iterations": "steps",
    "warmup": "schedule.warmup_steps",
    "hidden_size": "model.d_model",
    "layers": "model.num_layers",
    "heads": "model.num_heads",
    "context_length": "data.seq_len",
    "dtype": "precision",
}
"""What other projects call a parameter."""


def parameters(optimizer: str) -> dict[str, FieldPath]:
    """Every name of a parameter of a run under `optimizer`: `alpha`, `optimizer.alpha`, `steps`, `data.seq_len`.

    Where a class by reference has one that is called as one of every run, `seed`, the plain name is the run's.
    """
    return _names(tuple(own_parameters(optimizer)))


@cache
def _names(own: tuple[str, ...]) -> dict[str, FieldPath]:
    names: dict[str, FieldPath] = {name: ("optimizer", name) for name in own}
    names |= {name: (name,) for name in RunConfig.model_fields if name not in GROUPS and name != "optimizer"}
    for group, model in GROUPS.items():
        names |= {f"{group}.{name}": (group, name) for name in model.model_fields}
    names |= {f"optimizer.{name}": ("optimizer", name) for name in own}
    for follows in ("data.corpus_sha256", *(f"model.{name}" for name in PLANNED)):  # from corpus and model
        del names[follows]
    return names


def takes_list(name: str) -> bool:
    """Whether the value of the parameter `name` is itself a list, as that of `adam_betas`."""
    for optimizer, model in OPTIMIZERS.items():
        if path := parameters(optimizer).get(name):
            config = model if path[0] == "optimizer" else GROUPS.get(path[0], RunConfig)
            return isinstance(config.model_fields[path[-1]].default, tuple)
    return False


def resolve(name: str, *optimizers: str) -> FieldPath:
    """The field `name` stands for under any of `optimizers`. Raises ValueError, without a place, if there is none."""
    known = {known: path for optimizer in optimizers for known, path in parameters(optimizer).items()}
    if name in known:
        return known[name]
    here = " or ".join(dict.fromkeys(map(short, optimizers)))
    if owners := [other for other in OPTIMIZERS if name in parameters(other)]:
        raise ValueError(
            f"'{name}' is no parameter of {here}, only of {', '.join(owners)}; remove it or change the optimizer"
        )
    if inside := [other for other in known if other.startswith(f"{name}.")]:
        raise ValueError(f"'{name}' is a group of parameters; set them one by one, such as '{inside[0]}'")
    if _ELSEWHERE.get(name) in known:
        raise ValueError(f"unknown parameter '{name}'. Did you mean '{_ELSEWHERE[name]}'?")
    raise ValueError(f"unknown parameter '{name}'{suggest(name, known)}")


def build(base: Mapping[str, Any], optimizer: str, values: Mapping[FieldPath, Any]) -> RunConfig:
    """The run of the partial config `base` under `optimizer` with `values` put in.

    Raises pydantic's ValidationError. Types are strict (`"200"` is no number), as in JSON: a list serves as a tuple.
    """
    config = {name: dict(part) if isinstance(part, dict) else part for name, part in base.items()}
    config["optimizer"] = fixed_fields(optimizer)
    for (*groups, field), value in values.items():  # a group is one level deep
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[field] = value
    checked = run_config(optimizer).model_validate_json(json.dumps(config), strict=True)
    return checked if type(checked) is RunConfig else RunConfig.model_validate_json(checked.model_dump_json())


def invalid(error: ValidationError) -> Iterator[tuple[FieldPath, str]]:
    """(field, message) for each error of a RunConfig; the path of a rule that joins fields ends at their group."""
    found: dict[FieldPath, ErrorDetails] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_path(detail)[:2], detail)  # of a list, the first of its items that is wrong
    for path, detail in found.items():
        if detail["type"] == "missing" and _path(detail) == path and path[0] == "optimizer":
            yield path, f"'{path[-1]}' must be set: the __init__ of the optimizer has no default for it"
            continue
        subject = "" if detail["type"] == "value_error" else _subject(detail)
        hint = "; a list is one value here: to try each, put it under `grid`" if _is_list_for_one(detail) else ""
        yield path, f"{subject} {explain([detail])}{hint}".lstrip()


def _path(detail: ErrorDetails) -> FieldPath:
    path = tuple(str(part) for part in detail["loc"])
    return path[:1] + path[2:] if path[:1] == ("optimizer",) and path[1:2] and path[1] in TAGS else path


def _subject(detail: ErrorDetails) -> str:
    """`adam_betas[1]`, `model.d_model`: what a message calls the wrong value."""
    names, items = _path(detail)[:2], _path(detail)[2:]
    at = "".join(f"[{item}]" for item in items) if detail["type"] != "missing" else ""
    return ".".join(names).removeprefix("optimizer.") + at


def _is_list_for_one(detail: ErrorDetails) -> bool:
    return isinstance(detail["input"], list) and detail["type"] not in ("list_type", "tuple_type")


def locate_corpus(data: DataConfig, folder: Path) -> DataConfig:
    """`data` with a corpus given by path made absolute, seen from `folder`, and its content hash filled in.

    Raises ValueError if there is nothing at the path.
    """
    if data.corpus == "stdlib":
        return data
    from muon_core.data.corpus import corpus_sha256  # only a run with a corpus of its own pays for the import

    path = corpus_path(data.corpus, folder)
    return data.replace(corpus=path, corpus_sha256=corpus_sha256(path))


def describe_model(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """`hf_files.describe`, whose import only a run of such a model pays for."""
    from muon_core.data.hf_files import describe

    return describe(model, folder)


def locate_model(
    run: RunConfig, folder: Path, describe: Callable[[ModelConfig, Path], dict[str, Any]] = describe_model
) -> RunConfig:
    """`run` with shape and content of its Hugging Face model, a local one seen from `folder`; one of ours as it is.

    The model is built without weights, for which transformers and torch are loaded.

    Raises ValueError, in one line, if there is no such model, or it does not suit the rest of the run.
    """
    model = run.model
    if model.hf is None:
        return run
    from muon_core.hf_plan import planned_sizes

    given = {name: value for name, value in model if value != ModelConfig.model_fields[name].default}
    found = describe(model, folder)
    try:
        run = run.replace(model=found | given | {"hf": found["hf"], "revision": found["revision"]})
    except ValidationError as error:
        raise ValueError("; ".join(text for _, text in invalid(error))) from None
    return run.replace(model=run.model.replace(hf_sizes=planned_sizes(run)))


def check_corpus(run: RunConfig) -> None:
    """Raises ValueError if `run` reads a prepared data set that does not suit it: `prepared.check_run`."""
    if run.data.corpus == "stdlib" and run.model.weights == "random":
        return
    from muon_core.data.prepared import check_run, is_prepared

    if run.model.weights == "pretrained" and not is_prepared(run.data.corpus):
        raise ValueError(
            f"model.weights pretrained: {run.model.hf} reads tokens of its own tokenizer, and {run.data.corpus} is "
            f"text, which a new one would cut; prepare it first: muon data prepare TEXT --tokenizer NAME -o SET"
        )
    check_run(run)


def is_absent(corpus: str) -> bool:
    """Whether `corpus`, absolute, is a folder of this machine in which no data set is, or none that is finished."""
    if corpus == "stdlib" or corpus.startswith("s3://"):
        return False
    from muon_core.data.corpus import stand_in
    from muon_core.data.manifest import MANIFEST
    from muon_core.data.prepared import is_prepared

    is_there = os.path.exists(corpus) and not (is_prepared(corpus) and not (Path(corpus) / MANIFEST).is_file())
    return not is_there and stand_in(corpus) is None


def corpus_path(corpus: str, folder: Path) -> str:
    """`corpus` as a path that holds from any folder, if it is one."""
    return (
        corpus
        if corpus == "stdlib" or corpus.startswith("s3://")
        else os.path.abspath(folder / Path(corpus).expanduser())
    )


def parse_assignment(text: str) -> tuple[str, Any]:
    """`alpha=1e-3` as a parameter name and the value a sweep file would read. Raises SpecError without a `=`."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise SpecError(f"--set {text!r}: write key=value, such as alpha=1e-3")
    try:
        return name.strip(), parse(value).value
    except YamlError as error:
        raise SpecError(f"--set {text!r}: {error}") from error
