"""A block of a sweep file: the runs of one grid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from muon_core.config.base import Config
from search_spaces.explain import misplaced
from search_spaces.sampling import Sample
from search_spaces.values import Axis, Name, OptimizerName, distinct_by


class Block(Config):
    """Runs that differ along the axes of one grid: the unit of analysis."""

    name: Name = Field(examples=["base"])
    """Names the block in plans and answers; each block has its own."""
    role: Literal["baseline", "candidate", "control"] = "candidate"
    """The baseline is what every other block is compared with; a control is no proposal, it explains one."""
    optimizer: OptimizerName = Field(examples=["muon"])
    """A built-in one, or any by reference: `./my_opt.py:MyOptimizer`, seen from this file, or
    `package.module:MyOptimizer`. Decides which parameters exist."""
    set: dict[str, Any] = Field(default_factory=dict, examples=[{"lr": 0.02}])
    """Parameters all runs of the block share; a list is a value, never an axis."""
    grid: dict[str, Axis] = Field(default_factory=dict, examples=[{"lr": [0.01, 0.02]}])
    """Parameter to list of values: every combination is a cell."""
    zip: dict[str, Axis] = Field(default_factory=dict, examples=[{"lr": [0.01, 0.02], "momentum": [0.9, 0.95]}])
    """Parameters that vary together: lists of one length, walked side by side; crossed with `grid`."""
    sample: Sample | None = Field(None, examples=[{"n": 16, "lr": "loguniform(1e-3, 1e-1)"}])
    """Cells drawn at random, crossed with `grid` and `zip`, or chosen one by one; not for the baseline, which is one
    cell."""
    skip: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=list, examples=[[{"lr": 0.02}]])
    """Cells to leave out: each entry names values along the axes, and every cell that has all of them goes."""

    @field_validator("zip")
    @classmethod
    def _same_length(cls, zipped: dict[str, list[Any]]) -> dict[str, list[Any]]:
        lengths = {name: len(values) for name, values in zipped.items()}
        if len({*lengths.values()}) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"lists must have one length, got {found}")
        return zipped


def check_blocks(blocks: list[Block]) -> list[Block]:
    """`blocks`; fails a pydantic validator unless their names are distinct and one is the baseline."""
    distinct_by("name", "block", blocks)
    baselines = [index for index, block in enumerate(blocks) if block.role == "baseline"]
    if not baselines:
        raise ValueError("no block is the baseline; give one of them `role: baseline`")
    if len(baselines) > 1:
        first = blocks[baselines[0]].name
        misplaced(
            (baselines[1], "role"), f"cannot be baseline: blocks[{first}] is; make one of them candidate or control"
        )
    if blocks[baselines[0]].sample:
        misplaced((baselines[0], "sample"), "is not for the baseline, which is one cell; give its values under set")
    return blocks
