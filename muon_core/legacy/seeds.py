"""Seeds in the names of folders and files, as in `muon_seed137`, `adamw-seed_2` or `tiny_clean_s43_full`."""

from __future__ import annotations

import re

_SEED = re.compile(r"[_.-]?seed[_.-]?(\d+)", re.IGNORECASE)
_SHORT = re.compile(r"(?:^|(?<=[/])|[_.-])s(\d+)(?=$|[_./-])")
"""`s43` between separators. A name in which it stands twice tells no seed: one of them is something else."""


def seed_in(name: str) -> int | None:
    """The seed that `name` tells, or None.

    >>> seed_in("muon_seed137"), seed_in("tiny_clean_s43_full"), seed_in("s4_model_s4"), seed_in("muon")
    (137, 43, None, None)
    """
    found = _SEED.findall(name)
    if not found and len(short := _SHORT.findall(name)) == 1:
        found = short
    return int(found[-1]) if found else None


def without_seed(name: str) -> str:
    """`name` without what tells its seed: the same for runs that differ in nothing else.

    >>> without_seed("try1/muon_seed137"), without_seed("tiny_clean_s43_full"), without_seed("seed5")
    ('try1/muon', 'tiny_clean_full', '')
    """
    pattern = _SEED if _SEED.search(name) else _SHORT if len(_SHORT.findall(name)) == 1 else None
    return (pattern.sub("", name) if pattern else name).strip("_.-/")
