"""What bounds a sweep: money, how often runs are tried again, and what makes it start nothing further."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from muon_core.config.base import Config
from search_spaces.explain import as_yaml, misplaced


class Budget(Config):
    """What may be spent, in US dollars. Runs on this machine cost nothing."""

    usd: float | None = Field(None, gt=0, examples=[100])
    """By the whole sweep, every attempt at a run counted; null: no limit."""
    per_run_usd: float | None = Field(None, gt=0, examples=[8])
    """By one run, all its attempts together; null: no limit. One of the two is given at least."""
    on_exceed: Literal["drain", "stop"] = "drain"
    """What follows where the next run would exceed a limit: `drain` does not start it, those under way go on while
    the money lasts; `stop` has those under way save themselves at once, too. A greater budget continues them."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.usd is None and self.per_run_usd is None:
            raise ValueError("limits nothing; add `usd: 100` or `per_run_usd: 8`, or remove it")
        if self.usd is not None and self.per_run_usd is not None and self.per_run_usd > self.usd:
            misplaced(
                ("per_run_usd",),
                f"{self.per_run_usd:g} is more than the whole sweep may spend, usd {self.usd:g}; lower it",
            )
        return self


class Retries(Config):
    """How often a run is tried again, by what ended it."""

    preemption: Literal["unlimited"] | Annotated[int, Field(ge=0)] = "unlimited"
    """After its node was taken back by who lent it, as spot instances are. Only where Ray was told before, by whoever
    drains the node; a node that is gone without notice counts as infrastructure."""
    infrastructure: int = Field(3, ge=0)
    """After the death of a worker or its node, the loss of the connection between workers, and a hang."""
    program: int = Field(0, ge=0)
    """After an error of its own code or for want of memory, which the same run is likely to meet again. It goes on from
    its checkpoint."""
    hang_after_s: float | None = Field(1800, gt=0)
    """Seconds without a step after which a run hangs and its workers are given up. They count from the first step on:
    data may take longer to prepare, and a model to compile. null: it is waited for. Not `--in-process`."""


class Breaker(Config):
    """What makes an arm start no further runs."""

    same_error: int | None = Field(3, gt=0)
    """So many runs of the arm that die alike: by the same error at the same place, but for numbers, ids and paths. What
    failed in earlier calls counts too, until `--retry failed` asks for it again. null: it never stops."""

    @field_validator("same_error", mode="before")
    @classmethod
    def _is_not_off(cls, runs: Any) -> Any:
        if runs in ("off", "none", "never", "no", 0):  # false is 0, too
            raise ValueError(f"must be greater than 0, got {as_yaml(runs)}; to switch it off write null")
        return runs


class Stop(Config):
    """What a run that diverged does to its sweep."""

    when: Literal["nonfinite", "spike"] = Field(examples=["nonfinite"])
    """How it diverged: loss or gradient were not finite, or the loss spiked (see `spike`)."""
    action: Literal["fail", "drain"] = Field(examples=["fail"])
    """`fail` counts it as failed, not as a result: exit code 3; `drain` also starts nothing further."""
