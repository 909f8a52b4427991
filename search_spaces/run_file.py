"""The run that `muon pretrain` is asked for: a preset or a YAML file, and the flags that go over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from muon_core.by_reference import BadReference, absolute, is_reference
from muon_core.config.base import leaves
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.presets import PRESETS
from muon_core.config.run import PLANNED, RunConfig
from search_spaces.errors import Problems, Source, SpecError
from search_spaces.explain import as_yaml, suggest
from search_spaces.given import Given, collect, named_model, place
from search_spaces.parameters import FieldPath, build, check_corpus, invalid, locate_corpus, locate_model, resolve
from search_spaces.references import GIVEN, fixed_fields, short
from search_spaces.strict_yaml import KeyPath
from search_spaces.yaml_file import read_file

_FLAG: KeyPath = ()  # where a value stands that no file gives
_OPTIMIZER = ("optimizer", "optimizer.name")


class _Errors:
    """What is wrong with the flags and with the file, reported together."""

    def __init__(self, source: Source) -> None:
        self.file, self.flags = Problems(source), Problems(Source(name=""))

    def add(self, at: KeyPath, text: str) -> None:
        (self.flags if at == _FLAG else self.file).add(at, text, within=())

    def check(self) -> None:
        if self.file or self.flags:
            raise SpecError(*self.flags.error().lines, *self.file.error().lines)


def resolve_run(config: str, optimizer: str | None, named: Mapping[str, Any]) -> RunConfig:
    """The run of `config`, a preset or a file, with `optimizer` and the parameters `named` going over it.

    A file holds parameters as a block of a sweep file does (`steps: 50`, `optimizer: muon`, `lr: 0.02`), nested or
    dotted, and `preset`; what `--dry-run` prints is such a file.

    Raises SpecError: a line for each thing wrong, with file and line where a file is to blame.
    """
    source = Source(name="", data={"preset": config}) if config in PRESETS else read_run_file(config)
    errors = _Errors(source)
    fields = dict(leaves(source.data))
    preset = _choice(("preset",), fields.pop(("preset",), "tiny"), PRESETS, errors)
    name = _optimizer(fields, optimizer, source, errors)
    sha256 = fields.pop(("data", "corpus_sha256"), None)
    planned = {name: fields.pop(("model", name), None) for name in PLANNED}
    given = _given(fields, named, name, errors)
    errors.check()
    run = _with_model(_build(preset, name, given, errors), given.get(("model", "hf")), planned, source, errors)
    return _with_corpus(run, given.get(("data", "corpus")), sha256, source, errors)


def _optimizer(fields: dict[tuple[str, ...], Any], flagged: str | None, source: Source, errors: _Errors) -> str:
    """The optimizer of the run: the one that is `flagged`, else the file's, whose `fields` that say it are taken out.

    Raises SpecError if there is none of that name.
    """
    known = {name: fields.pop(("optimizer", name), None) for name in GIVEN if name != "name"}
    places = [at for at in (("optimizer",), ("optimizer", "name")) if at in fields]
    values = {at: fields.pop(at) for at in places}
    if known["reference"]:
        values = {("optimizer", "reference"): known["reference"]}
    at, value = next(iter(values.items()), (_FLAG, "muon"))
    folder, name = source.folder, value
    if flagged:
        at, folder, name = _FLAG, Path.cwd(), flagged
    if not (isinstance(name, str) and is_reference(name)):
        name = _choice(at, name, OPTIMIZERS, errors) if at else name
        errors.check()
        return str(name)
    name = absolute(name, folder)
    try:
        found = fixed_fields(name)
    except BadReference as error:
        errors.add(at, f"--optimizer: {error}" if flagged else f"optimizer {error}")
        errors.check()
        raise
    if not flagged and known["source_sha256"] not in (None, found["source_sha256"]):
        errors.add(
            ("optimizer", "source_sha256"), f"{short(name)} has changed since; remove this line to train with it"
        )
        errors.check()
    return name


def read_run_file(path: str) -> Source:
    """The file's mapping with the line of each field. Raises SpecError if there is none to read."""
    fields = "a run's file holds parameters, such as `steps: 100`"
    source = read_file(path, fields=fields, missing=f"no such file, and no preset{suggest(path, PRESETS)}")
    if "blocks" in source.data:
        line = source.line(("blocks",))
        raise SpecError(f"{path}:{line}: blocks make this a sweep file; `muon sweep run {path}` runs it")
    return source


def _choice(at: KeyPath, value: Any, known: Mapping[str, Any], errors: _Errors) -> str:
    if not (isinstance(value, str) and value in known):
        shown = repr(value) if isinstance(value, str) else as_yaml(value)
        errors.add(at, f"{at[0]} {shown} is unknown{suggest(str(value), known)}")
    return str(value)


def _given(
    fields: Mapping[tuple[str, ...], Any], named: Mapping[str, Any], optimizer: str, errors: _Errors
) -> dict[FieldPath, Given]:
    """Every value by the field it stands for; a named one goes over the file's."""
    written = [Given(".".join(map(str, at)), value, at) for at, value in fields.items()]
    flagged = [Given(name, value, _FLAG) for name, value in named.items()]
    return collect(written, lambda given: named_model(given) or resolve(given.name, optimizer), errors.add) | collect(
        flagged, lambda given: _flag_field(given, optimizer), errors.add
    )


def _flag_field(given: Given, optimizer: str) -> FieldPath:
    if given.name in _OPTIMIZER:
        raise ValueError("--set does not choose the optimizer; use --optimizer NAME")
    return named_model(given) or resolve(given.name, optimizer)


def _build(preset: str, optimizer: str, given: Mapping[FieldPath, Given], errors: _Errors) -> RunConfig:
    try:
        return build(PRESETS[preset], optimizer, {path: item.value for path, item in given.items()})
    except ValidationError as error:
        for path, text in invalid(error):
            errors.add(place(given, path, text, _FLAG), text)
        errors.check()
        raise


def _with_model(
    run: RunConfig, named: Given | None, planned: Mapping[str, Any], source: Source, errors: _Errors
) -> RunConfig:
    """`run` with its Hugging Face model found: seen from the file that names it, else from here."""
    if named is None:
        return run
    flagged = named.at == _FLAG
    try:
        run = locate_model(run, Path.cwd() if flagged else source.folder)
    except ValueError as error:
        errors.add(named.at, str(error))
    errors.check()
    for name, value in planned.items():
        counted = name == "hf_sizes"  # which is no content: another release of transformers may find another
        if value is not None and not (flagged or counted) and getattr(run.model, name) != value:
            errors.add(("model", name), f"{run.model.hf} has changed since; remove this line to train it as it is")
    errors.check()
    return run


def _with_corpus(run: RunConfig, corpus: Given | None, sha256: Any, source: Source, errors: _Errors) -> RunConfig:
    """`run` with its corpus found: seen from the file that names it, else from here."""
    flagged = corpus is not None and corpus.at == _FLAG
    try:
        data = locate_corpus(run.data, Path.cwd() if flagged else source.folder)
        check_corpus(run.replace(data=data))
    except ValueError as error:
        errors.add(corpus.at if corpus else _FLAG, str(error))
        errors.check()
        raise
    if sha256 is not None and not flagged and data.corpus_sha256 != sha256:
        errors.add(("data", "corpus_sha256"), "the corpus has changed since; remove this line to train on it as it is")
        errors.check()
    return run.replace(data=data)
