"""One run as files of another project or tool describe it: what every importer makes, and `write.write_runs` takes.

What the files do not say stays None or empty; nothing is made up. `config` is what was found under that name: all of it
but the seed decides the run's arm (`muon_core.legacy.arms`), so no number of the outcome belongs there.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

UNKNOWN = "unknown"
"""The optimizer of a run whose files name none."""


class UnreadableRun(ValueError):
    """A run that cannot be imported, and why."""


@dataclass(slots=True)
class ImportedRun:
    """One run; rows are columns of `muon_core.tables` by name, each with `step` and `tokens`, sorted by their key."""

    folder: str
    """Where it was found, below what is imported; names its arm where nothing else can."""
    digest: str
    """`digest_of` its config and the content of its files: the same files are the same run."""
    place: str = ""
    """The path of its folder or file on this machine, by which files that were written over are known."""
    entry: str = ""
    """Its name in a file that holds several runs, of which those of two names are two, however alike they begin."""
    optimizer: str = UNKNOWN
    seed: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    val: list[dict[str, Any]] = field(default_factory=list)
    train: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    spectra: list[dict[str, Any]] = field(default_factory=list)
    steps: int | None = None
    """Steps trained; None where only rows tell how far it got, not that this was its end."""
    tokens: int | None = None
    wall_s: float | None = None
    no_end: str | None = None
    """Why its end is unknown, which makes its status `stopped`; None for a run that ended."""
    lr: float | None = None
    """Of the hidden matrices."""
    embedding_lr: float | None = None
    commit: str | None = None
    notes: list[str] = field(default_factory=list)
    """What of its files was odd or left out, a sentence each."""

    num_rows: dict[str, int] = field(default_factory=dict)
    """How many rows each table had, once they were dropped."""
    store_id: str = ""
    """Under which id the store has it, once it was written or found there."""

    @property
    def run_id(self) -> str:
        """Derived from the content, so that importing it again finds it there."""
        seed = "" if self.seed is None else f"-s{self.seed}"
        return f"imported-{optimizer_name(self.optimizer)}{seed}-{self.digest}"

    def drop_rows(self) -> None:
        """Free the rows, of which only `num_rows` stays: a folder may hold more than fit into memory together."""
        self.num_rows = {table: len(rows) for table, rows in self.series().items()}
        self.val, self.train, self.layers, self.spectra = [], [], [], []

    def series(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by their table."""
        return {"layers": self.layers, "spectra": self.spectra, "val": self.val, "train": self.train}


def optimizer_name(value: Any) -> str:
    """`value` as it can stand in a key of the store; UNKNOWN for None or an empty text."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", str(value or UNKNOWN))


def canonical(value: Any) -> str:
    """The same text for the same value."""
    return json.dumps(value, sort_keys=True, default=str)


def digest_of(*parts: str) -> str:
    """Eight hexadecimal digits of the sha256 of `parts`."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
