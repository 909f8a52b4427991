"""The optimizer of a class by reference, with the names of its parameters noted in its groups."""

from __future__ import annotations

from torch.optim import Optimizer

from muon_core.by_reference import build, class_of
from muon_core.config.reference import ReferenceConfig
from muon_core.optim.build import Setting
from muon_core.optim.param_groups import NamedParameters


def referenced(params: NamedParameters, config: ReferenceConfig, setting: Setting) -> Optimizer:
    """The class's own optimizer of `params`, the same on every rank.

    Raises: BadReference for another class than the run was planned with; ValueError if it leaves a parameter out.
    """
    cls = class_of(config.reference, config.source_sha256, config.distribution)
    built: Optimizer = build(cls, params, config.parameters)
    names = {id(param): name for name, param in params}
    for group in built.param_groups:
        group["param_names"] = [names.pop(id(param)) for param in group["params"]]
    if names:
        raise ValueError(f"{config.name} leaves out {next(iter(names.values()))}: no group of it has the parameter")
    return built
