"""An optimizer's class by reference: `./my_opt.py:MyOptimizer` or `package.module:MyOptimizer`.

A file is known by its content. What is loaded is a module of exactly the bytes that were read when a run was planned,
on any machine, so a file may be edited while runs train with what it was. A class of an installed package is imported
as ever, and known by the source of its module and the version of its distribution. Torch loads with what is loaded.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.metadata
import inspect
import linecache
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

MANY = 6  # optimizers of a module, above which a message names those alone that are called alike
_SOURCES: dict[str, bytes] = {}  # of files, by their hash: what this process has read or been given


class BadReference(ValueError):
    """A reference to no optimizer, or to another one than was meant; says which in a line."""


@dataclass(frozen=True, slots=True)
class Found:
    """The class of a reference, and what it is known by."""

    reference: str
    cls: Any
    """A `torch.optim.Optimizer`, called with parameters and what its `__init__` takes."""
    source_sha256: str
    """Of its module's source."""
    distribution: str | None
    """Name and version of what it was installed with; None for a file."""


def is_reference(text: str) -> bool:
    """Whether `text` refers to a class; built-in optimizers have plain names."""
    return ":" in text


def file_of(reference: str) -> str | None:
    """The path of the file that holds the class; None for a class of a package."""
    where, _, _ = reference.rpartition(":")
    return where if where.endswith(".py") else None


def with_file(reference: str, path: str) -> str:
    """`reference` with its file at `path`."""
    return f"{path}:{reference.rpartition(':')[2]}"


def absolute(reference: str, folder: Path) -> str:
    """`reference`, a path in it seen from `folder`, as one that holds from any folder."""
    path = file_of(reference)
    return with_file(reference, os.path.abspath(folder / Path(path).expanduser())) if path else reference


def find(reference: str) -> Found:
    """The class that `reference` names here and now. Raises BadReference."""
    path, (where, name) = file_of(reference), _parts(reference)
    if path:
        digest = remember(_read(path))
        return Found(reference, _class(_loaded(digest, path), name, path), digest, None)
    cls = _class(_imported(where), name, where)
    return Found(
        reference, cls, hashlib.sha256(_source(cls)).hexdigest(), _distribution(cls.__module__.partition(".")[0])
    )


def class_of(reference: str, source_sha256: str, distribution: str | None) -> Any:
    """The class that `reference` named when `source_sha256` and `distribution` were noted.

    Raises: BadReference if this machine has only another.
    """
    path = file_of(reference)
    if path:
        if source_sha256 not in _SOURCES and (found := remember(_read(path))) != source_sha256:
            raise BadReference(
                f"{path} is another file ({found[:12]}) than the run was planned with ({source_sha256[:12]}); plan it "
                "again"
            )
        return _class(_loaded(source_sha256, path), _parts(reference)[1], path)
    here = find(reference)
    if (here.source_sha256, here.distribution) != (source_sha256, distribution):
        planned, found = (
            f"{version or 'no release'} ({digest[:12]})"
            for version, digest in ((distribution, source_sha256), (here.distribution, here.source_sha256))
        )
        raise BadReference(
            f"{reference} is of {found} on this machine, and the run was planned with {planned}; install the same"
        )
    return here.cls


def remember(source: bytes) -> str:
    """Keep the source of a file for `class_of`; returns its hash."""
    digest = hashlib.sha256(source).hexdigest()
    _SOURCES[digest] = source
    return digest


def remembered(source_sha256: str) -> bytes | None:
    """The source of that hash, if this process knows it."""
    return _SOURCES.get(source_sha256)


def build(cls: Any, named: Sequence[tuple[str, Any]], values: Mapping[str, Any]) -> Any:
    """The optimizer of named parameters, which it is given without their names unless its class has `needs_names`.

    A list among `values`, which JSON writes for a tuple, is one where the default is.
    """
    known = inspect.signature(cls).parameters
    given = {
        name: tuple(value) if isinstance(value, list) and not isinstance(known[name].default, list) else value
        for name, value in values.items()
        if name in known
    }
    params = list(named) if getattr(cls, "needs_names", False) else [param for _, param in named]
    return cls(params, **given)


def refusal(cls: Any, values: Mapping[str, Any]) -> str | None:
    """Why the class does not take `values`, in its own words, tried on a small matrix; None if it does."""
    torch: Any = sys.modules["torch"]  # with which the class has been loaded
    try:
        build(cls, [("probe", torch.nn.Parameter(torch.zeros(2, 2)))], values)
    except (ValueError, TypeError) as error:
        return _said(error)
    except Exception:  # such as for want of a process group: what it says in the run decides
        return None
    return None


def _parts(reference: str) -> tuple[str, str]:
    where, _, name = reference.rpartition(":")
    if not (name.isidentifier() and (file_of(reference) or all(part.isidentifier() for part in where.split(".")))):
        raise BadReference(f"{reference!r} is no reference; write package.module:Class or ./file.py:Class")
    return where, name


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadReference(
            f"file {path} cannot be read: {reason}; give its path as seen from the file that names it"
        ) from error


def _loaded(digest: str, path: str) -> ModuleType:
    """The module of the source of that hash; `path` is what messages call it."""
    name, file = f"muon_source_{digest[:16]}", os.path.basename(path)
    if name in sys.modules:
        return sys.modules[name]
    source, module = _SOURCES[digest], ModuleType(name)
    _check_alone(source, path)
    module.__file__ = file
    linecache.cache[file] = (len(source), None, source.decode(errors="replace").splitlines(keepends=True), file)
    sys.modules[name] = module
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # noqa: S102  # the user's own code
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        at = f" in line {lines[-1]}" if lines else ""
        raise BadReference(f"{file} cannot be imported:{at} {_said(error)}") from error
    return module


def _check_alone(source: bytes, path: str) -> None:
    """A file travels alone: raises BadReference if it does not parse, or imports what lies beside it."""
    file, folder = os.path.basename(path), Path(path).parent
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        at = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise BadReference(f"{file} cannot be imported:{at} {type(error).__name__}: {error.args[0]}") from error
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}"]
        for name in names:
            top = name.partition(".")[0]
            beside = not top or any((folder / other).is_file() for other in (f"{top}.py", f"{top}/__init__.py"))
            if beside and top not in (*sys.stdlib_module_names, __package__):  # which all workers have
                raise BadReference(
                    f"{file} imports {name}, which lies beside it, and travels alone to where runs train; put all of "
                    "it into one file, or install it as a package"
                )


def _imported(where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except Exception as error:
        raise BadReference(f"{where} cannot be imported: {_said(error)}") from error


def _class(module: ModuleType, name: str, where: str) -> Any:
    """The optimizer `name` of a module that messages call `where`."""
    file = os.path.basename(where)
    found = getattr(module, name, None)
    if found is None:
        others = [other for other, value in vars(module).items() if _is_optimizer(value) and other != "Optimizer"]
        if len(others) > MANY:
            others = [*(difflib.get_close_matches(name, others, MANY) or others[:MANY]), "..."]
        raise BadReference(f"{file} has no class {name}; its optimizers: {', '.join(others) or 'none'}")
    if not _is_optimizer(found):
        kind = "a class" if inspect.isclass(found) else type(found).__name__
        raise BadReference(f"{name} of {file} is {kind}, no torch.optim.Optimizer; derive it from that")
    if where.endswith(".py") and found.__module__ != module.__name__:
        raise BadReference(
            f"{name} of {file} is imported from {found.__module__}; refer to it there: {found.__module__}:{name}"
        )
    return found


def _is_optimizer(value: Any) -> bool:
    bases = value.__mro__ if inspect.isclass(value) else ()
    return any((base.__module__, base.__name__) == ("torch.optim.optimizer", "Optimizer") for base in bases)


def _source(cls: Any) -> bytes:
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    if not file or not file.endswith(".py"):
        raise BadReference(f"{cls.__module__}:{cls.__name__} has no Python source by which it could be known")
    return Path(file).read_bytes()


@cache
def _distribution(package: str) -> str | None:
    """What a package was installed with, `torch 2.13.0`; without what a build adds: a plan on a CPU holds for GPUs."""
    try:
        name, version = package, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # it has another name, which takes a second to find
        names = importlib.metadata.packages_distributions().get(package)
        if not names:
            return None
        name, version = names[0], importlib.metadata.version(names[0])
    return f"{name} {version.partition('+')[0]}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
