"""Which optimizer a parameter belongs to, by patterns on its name.

Muon is for hidden matrices alone; a parameter that slips into the wrong group, or into none, trains badly or never and
nothing fails. So a parameter without a pattern and a pattern without a parameter are both errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

Group = Literal["hidden", "vectors"]
"""`hidden`: matrices inside the blocks. `vectors`: embeddings, norms and other vectors, AdamW in every arm."""
NamedParameters = list[tuple[str, nn.Parameter]]

PATTERNS: tuple[tuple[str, Group], ...] = (
    ("*norm.weight", "vectors"),
    ("embedding.weight", "vectors"),
    ("blocks.*.weight", "hidden"),
)
"""Of `muon_core.model.Transformer`, in the order they are tried."""


def assign(
    named_parameters: Iterable[tuple[str, nn.Parameter]], patterns: Sequence[tuple[str, Group]] = PATTERNS
) -> dict[Group, NamedParameters]:
    """Parameters of each group; the first pattern (as in a shell: `*`, `?`, `[...]`) that matches a name claims it.

    Raises: ValueError if a pattern claims nothing (a layer was renamed) or a parameter is claimed by none (it would
        never be trained).
    """
    groups: dict[Group, NamedParameters] = {"hidden": [], "vectors": []}
    unused = [pattern for pattern, _ in patterns]
    for name, parameter in named_parameters:
        matching = ((pattern, group) for pattern, group in patterns if fnmatchcase(name, pattern))
        pattern, group = next(matching, (None, None))
        if pattern is None or group is None:
            raise ValueError(f"parameter {name} matches no pattern of {[p for p, _ in patterns]}; add one for it")
        groups[group].append((name, parameter))
        if pattern in unused:
            unused.remove(pattern)
    if unused:
        raise ValueError(f"pattern {unused[0]!r} claims no parameter; correct it, or remove it")
    return groups
