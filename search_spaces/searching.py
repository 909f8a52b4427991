"""A search: a block whose cells are chosen one after the other, each by the results of those before.

The cells that were chosen stand in `sample.chosen`, so that a search expands, and is planned and recorded, as any other
block is: into the runs that it has so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.blocks import Block
from search_spaces.errors import Problems
from search_spaces.sampling import Row, Sample
from search_spaces.spec import SweepSpec


def search_block(spec: SweepSpec) -> tuple[Block, Sample] | None:
    """The block of `spec` that has a searcher, and its sample; None where there is none."""
    return next(((block, block.sample) for block in spec.blocks if block.sample and block.sample.searcher), None)


def to_choose(spec: SweepSpec) -> int:
    """How many cells its search has still to choose."""
    found = search_block(spec)
    return found[1].n - len(found[1].chosen) if found else 0


def with_chosen(spec: SweepSpec, rows: Sequence[Row]) -> SweepSpec:
    """`spec`, whose search has chosen `rows`: cells that its sample can give, which is not checked again."""
    found = search_block(spec)
    assert found
    sample = found[1].model_copy(update={"chosen": [*rows]})
    block = found[0].model_copy(update={"sample": sample})
    return spec.model_copy(update={"blocks": [block if other is found[0] else other for other in spec.blocks]})


def check_search(spec: SweepSpec, problems: Problems) -> None:
    """Note what a searcher cannot choose by, or stand beside."""
    found = search_block(spec)
    if found is None:
        return
    first = spec.blocks.index(found[0])
    if len(spec.seeds) > 1:
        problems.add(
            ("seeds",),
            f"has {len(spec.seeds)} values, and a searcher chooses by the results of one seed; list one, and try the "
            "best cells on fresh ones with `muon sweep confirm`",
        )
    if spec.early_stopping:
        problems.add(
            ("early_stopping",),
            f"cannot stand beside the searcher of blocks[{found[0].name}], which learns from complete runs; remove one",
        )
    for index, block in enumerate(spec.blocks):
        if block.sample is None or not block.sample.searcher:
            continue
        if index != first:
            problems.add(
                ("blocks", index, "sample", "searcher"),
                f"sample.searcher is one too many: blocks[{found[0].name}] has one, too, and a sweep searches in one "
                "block; give this one a sweep of its own",
            )
        for axes in ("grid", "zip", "skip"):
            if getattr(block, axes):
                under = 'move its parameters under sample, each as one of its own: lr: "choice(0.01, 0.02)"'
                remedy = "remove it" if axes == "skip" else under
                problems.add(
                    ("blocks", index, axes),
                    f"{axes} cannot stand beside a searcher, which chooses whole cells; {remedy}",
                )
