"""The sweep that confirms another one: its best arms on seeds that had no part in choosing them.

The best of many arms is partly the luckiest: on the seeds it was chosen by it looks better than it is. Only seeds that
were not used tell by how much.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from search_spaces.blocks import Block
from search_spaces.cells import block_cells
from search_spaces.errors import Problems
from search_spaces.expand import expand
from search_spaces.gates import Gate
from search_spaces.parameters import parameters
from search_spaces.spec import SweepSpec

LARGEST_SEED = 2**63 - 1


def fresh_seeds(used: Collection[int], count: int) -> list[int]:
    """The next `count` whole numbers after the largest of `used`. Raises ValueError where there are not so many."""
    first = max(used) + 1
    if first + count - 1 > LARGEST_SEED:
        raise ValueError(f"there are no {count} seeds after the largest one used, {first - 1}; write the file by hand")
    return [*range(first, first + count)]


def follow_up(spec: SweepSpec, chosen: Sequence[str], seeds: Sequence[int]) -> SweepSpec:
    """The sweep of the `chosen` arms of `spec`, its baseline and its controls on `seeds`.

    It has a block for each chosen arm, and no early stopping: what it asks is how they end. Gates about blocks that it
    lacks are left out, and so are constants that none of its blocks takes.

    Args:
        chosen: id of a run of each arm, the best first.
    Raises: ValueError for a run that is of no candidate block.
    """
    cells = _cells(spec)
    others = [block for block in spec.blocks if block.role != "candidate"]
    names = {block.name for block in others}
    blocks = []
    for rank, run_id in enumerate(chosen, 1):
        if run_id not in cells:
            raise ValueError(f"run {run_id} is none of the file that the sweep was last run with; run that again first")
        block, is_alone = cells[run_id]
        name = _distinct(block.name if is_alone else f"{block.name[:80]}-{rank}", names)
        names.add(name)
        blocks.append(block.replace(name=name))
    baseline = [block for block in others if block.role == "baseline"]
    controls = [block for block in others if block.role == "control"]
    kept = [*baseline, *blocks, *controls]
    known = {name for block in kept for name in parameters(block.optimizer)}
    arms = "the best arm" if len(chosen) == 1 else f"the {len(chosen)} best arms"
    return spec.replace(
        name=f"{spec.name[:90]}-confirm",
        question=f"{'Does' if len(chosen) == 1 else 'Do'} {arms} of {spec.name} hold on fresh seeds?",
        confirms=spec.name,
        seeds=[*seeds],
        constants={name: value for name, value in spec.constants.items() if name in known},
        blocks=kept,
        gates=[gate for gate in spec.gates if _blocks(gate) <= names],
        early_stopping=None,
    )


def _cells(spec: SweepSpec) -> dict[str, tuple[Block, bool]]:
    """Each run of a candidate block -> its cell as a block, and whether that block has no other cell."""
    problems = Problems(spec.source)
    found: dict[str, tuple[Block, bool]] = {}
    blocks = [block for block in spec.blocks if block.role == "baseline"]
    for index, block in enumerate(spec.blocks):
        own = block_cells(spec, index, problems) if block.role == "candidate" else []
        for cell in own:
            values = {given.name: given.value for given in cell.values() if given.at[0] == "blocks"}
            single = Block(name=block.name, optimizer=block.optimizer, set=values)
            found[f"cell-{len(found)}"] = single, len(own) == 1
    blocks += [single.replace(name=name) for name, (single, _) in found.items()]
    runs = expand(spec.replace(blocks=blocks, gates=[], early_stopping=None))
    return {run.run_id: found[name] for run in runs for name, _ in run.members[::-1] if name in found}


def _blocks(gate: Gate) -> set[str]:
    """The blocks that a gate names."""
    return {text.removeprefix("block:") for text in (gate.of, gate.vs) if text.startswith("block:")}


def _distinct(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "-best"
    return name
