"""An optimizer by reference: any class, with the parameters of its `__init__`.

Which parameters it has is read from the class when a run is planned (`search_spaces/references.py`); whoever reads the
config of such a run, a worker or an analysis, takes them as they are and needs no class for it.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, model_validator

from muon_core.config.optimizers import OptimizerConfig


class ReferenceConfig(OptimizerConfig):
    """Any `torch.optim.Optimizer` on the hidden matrices, by where its class is: its parameters are those of its
    `__init__`, beside the fields below."""

    model_config = ConfigDict(extra="allow")
    builder = "muon_core.optim.referenced:referenced"
    decoupled = False  # nobody knows

    reference: str
    """`package.module:Class` or `path.py:Class`. Where a file lies is no part of a run's identity."""
    source_sha256: str
    """Hash of the source of the class's module, filled in when a run is planned."""
    distribution: str | None = None
    """Name and version of what the class was installed with, filled in when a run is planned; null for a file."""
    takes: Literal["hidden", "all"] = "hidden"
    """Which parameters it steps: the hidden matrices, or `all`, and AdamW none."""

    @model_validator(mode="after")
    def _vectors_are_stepped(self) -> Self:
        if self.takes == "hidden":
            return self
        for name in ("embedding_lr", "adam_betas", "adam_eps"):
            if (found := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {found} changes nothing under takes all: AdamW steps nothing; remove it")
        if self.clipping == "adamw_only":
            raise ValueError("clipping adamw_only clips nothing under takes all: AdamW steps nothing; write all")
        return self

    @property
    def lr(self) -> float | None:
        """The learning rate, if its class has one."""
        rate = self.parameters.get("lr")
        return float(rate) if isinstance(rate, int | float) else None

    def is_set(self, field: str) -> bool:
        """As of any; its `lr`, whose default nobody knows any more, always."""
        return field == "lr" or (field in ReferenceConfig.model_fields and super().is_set(field))

    @property
    def parameters(self) -> dict[str, Any]:
        """What its `__init__` is called with."""
        return {name: value for name, value in self if name not in ReferenceConfig.model_fields}
