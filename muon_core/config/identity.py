"""What runs are called: the hash of their science, behind what people vary most.

Runs that differ in the seed alone share all but a few digits of what is hashed, so an arm is prepared once and then
names each of its runs in microseconds.
"""

from __future__ import annotations

import hashlib
from typing import Any

from muon_core.config.base import canonical_json

_LENGTH = 8  # hexadecimal digits


class Identity:
    """The names of an arm and of its runs.

    Args:
        label: what comes before the hash: `orthonoise-a0.001`.
        science: the fields that decide the result of a run, as plain JSON values; its `seed` is left aside.
    """

    def __init__(self, label: str, science: dict[str, Any]) -> None:
        self._label = label
        # The canonical text of a run has its fields sorted: what comes before `seed` is the same for all.
        begin = canonical_json({name: value for name, value in science.items() if name < "seed"})
        end = canonical_json({name: value for name, value in science.items() if name > "seed"})
        self._begin, self._end = hashlib.sha256(begin.removesuffix("}").encode()), f",{end.removeprefix('{')}".encode()
        arm = {name: value for name, value in science.items() if name not in ("seed", "seeds")}
        self.arm_id = f"{label}-{hashlib.sha256(canonical_json(arm).encode()).hexdigest()[:_LENGTH]}"
        """The same for runs that differ only in seed: `orthonoise-a0.001-91bc22d0`."""

    def run_id(self, seed: int) -> str:
        """Readable and unique to the science: `orthonoise-a0.001-s42-3f9a1c07`."""
        digest = self._begin.copy()
        digest.update(f',"seed":{seed}'.encode() + self._end)
        return f"{self._label}-s{seed}-{digest.hexdigest()[:_LENGTH]}"
