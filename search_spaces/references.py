"""Optimizers as files name them: built in, or any class by reference, whose parameters are those of its `__init__`.

Types come from annotations, and from defaults where there are none. What no file can give, such as a tensor or a
function, keeps its default and is no parameter. Loads torch for a reference, with the class; never for another name.
"""

from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from operator import or_
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model, model_validator

from muon_core.by_reference import BadReference, Found, find, refusal
from muon_core.config.optimizers import OPTIMIZERS, OptimizerConfig
from muon_core.config.reference import ReferenceConfig
from muon_core.config.run import RunConfig

GIVEN = ("name", "reference", "source_sha256", "distribution")
"""The fields that a reference itself gives."""
_SCALAR: Any = bool | int | float | str | None
_FINITE = ConfigDict(allow_inf_nan=False)


class _Checked(ReferenceConfig):
    """What a run may be planned with: the parameters that the class has, with values that it takes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="after")
    def _is_taken(self) -> Self:
        if why := refusal(find(self.reference).cls, self.parameters):
            raise ValueError(f"{self.name} does not take its parameters: {why}")
        return self


def optimizer_config(optimizer: str) -> type[OptimizerConfig]:
    """The config class of a built-in optimizer, or of the class that a reference names. Raises BadReference."""
    return OPTIMIZERS[optimizer] if optimizer in OPTIMIZERS else _config(find(optimizer))


def short(optimizer: str) -> str:
    """What messages call an optimizer: the class alone of a reference."""
    return optimizer.rpartition(":")[2]


def own_parameters(optimizer: str) -> list[str]:
    """The parameters that a run has by its optimizer. Raises BadReference."""
    return [name for name in optimizer_config(optimizer).model_fields if name not in GIVEN]


def fixed_fields(optimizer: str) -> dict[str, Any]:
    """The fields of the config of an optimizer that follow from what a file calls it. Raises BadReference."""
    if optimizer in OPTIMIZERS:
        return {"name": optimizer}
    found = find(optimizer)
    values = (found.cls.__name__, found.reference, found.source_sha256, found.distribution)
    return dict(zip(GIVEN, values, strict=True))


def run_config(optimizer: str) -> type[RunConfig]:
    """`RunConfig`, which checks the parameters of a class by reference, too. Raises BadReference."""
    return RunConfig if optimizer in OPTIMIZERS else _run_config(_config(find(optimizer)))


@cache
def _run_config(config: type[ReferenceConfig]) -> type[RunConfig]:
    return create_model("RunConfig", __base__=RunConfig, __module__=config.__module__, optimizer=(config, ...))


@cache
def _config(found: Found) -> type[ReferenceConfig]:
    if found.cls.__name__ in OPTIMIZERS:
        raise BadReference(f"{found.cls.__name__} is the name of a built-in optimizer; rename the class")
    hints = _hints(found.cls)
    fields: dict[str, Any] = {}
    for parameter in [*inspect.signature(found.cls.__init__).parameters.values()][2:]:  # after self and params
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not by_name or parameter.name.startswith("_"):
            continue
        if parameter.name in ReferenceConfig.model_fields:
            raise BadReference(
                f"{found.cls.__name__}.__init__ has a parameter {parameter.name}, as the settings around every "
                "optimizer have; rename it in the class"
            )
        if field := _field(hints.get(parameter.name, Any), parameter.default):
            fields[parameter.name] = field
        elif parameter.default is parameter.empty:
            raise BadReference(
                f"{found.cls.__name__} needs {parameter.name}, a {parameter.annotation}, which no file can give; give "
                "it a default in the class"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a parameter may be called as a method of configs is
        return create_model(found.cls.__name__, __base__=_Checked, __module__=found.cls.__module__, **fields)


def _hints(cls: Any) -> Mapping[str, Any]:
    try:
        return get_type_hints(cls.__init__)
    except Exception:  # names that only a type checker knows
        return {}


def _field(annotation: Any, default: Any) -> tuple[Any, Any] | None:
    """(type, default) of a parameter, `...` for none; None where no file can give it."""
    is_required = default is inspect.Parameter.empty
    kind = _plain(annotation)
    if is_required:
        kind = _SCALAR | list[Any] if annotation is Any else kind
        return None if kind is None else (kind, ...)
    for candidate in (kind, _kind_of(default), None if kind is None or default is not None else kind | None):
        if candidate is not None:
            try:
                return candidate, TypeAdapter(candidate, config=_FINITE).validate_python(default, strict=True)
            except ValidationError:
                continue
    return None


def _plain(annotation: Any) -> Any:
    """What of a type JSON can write: `float` of `float | Tensor`; None for nothing."""
    origin, members = get_origin(annotation), get_args(annotation)
    if annotation in (bool, int, float, str) or origin is Literal:
        return annotation
    if annotation is types.NoneType:
        return type(None)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in map(_plain, members) if kind is not None]
        return reduce(or_, kinds) if set(kinds) - {type(None)} else None
    if origin is tuple and members:
        kinds = [member if member is ... else _plain(member) for member in members]
        return None if None in kinds else types.GenericAlias(tuple, tuple(kinds))
    if origin in (list, Sequence, Iterable) and members:
        item = _plain(members[0])
        return None if item is None else types.GenericAlias(list, item)
    return None


def _kind_of(default: Any) -> Any:
    """The type of a parameter that says none, by its default; None where no file can write it."""
    if default is None:
        return _SCALAR
    if type(default) is int:
        return int | float
    if isinstance(default, tuple | list):
        kinds = [_kind_of(item) for item in default]
        if not kinds or None in kinds:
            return None
        items = tuple(kinds) if isinstance(default, tuple) else reduce(or_, kinds)
        return types.GenericAlias(type(default), items)
    return type(default) if isinstance(default, bool | float | str) else None
