"""Whether a run that is imported is one the store has already: a copy of it, or its log as it was some time ago.

A log of a run that trains is imported, and once more the next day: its files differ then, so the digest they are named
after does too. What stays is how it began. The first row of each table, to its last digit, finds the runs that may be
the same; all rows that are stored are then compared with those of the files. If they are all there, the store's run is
continued with the rows that are new (`GROWN`); if the files have no more than the store, nothing is to be done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from muon_core.legacy.imported import ImportedRun, canonical, digest_of
from muon_core.store.parquet import to_arrow
from muon_core.store.reader import read_rows, relisting, visible_objects
from muon_core.store.storage import Storage
from muon_core.tables import SERIES, Table

Rows = dict[str, list[dict[str, Any]]]
PLACE = "place"
_OWN = ("run_id", "attempt", "seq", "tokens")  # tokens of an evaluation may be worked out, and rounded
_MEASURED = ("val_loss", "elapsed_s", "train_loss", "weight_norm", "grad_norm", "weight_norm_peak", "grad_norm_peak",
             "update_norm", "effective_rank", "update_alignment", "singular_values")  # fmt: skip
"""Columns whose values no other run shares by chance."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of a stored run beside those of the files, over all tables."""

    new: Rows
    """Rows of the files that the store lacks, by table."""
    shared: int
    changed: int
    """Rows of both that differ."""
    missing: int
    """Rows of the store that the files lack."""
    trained: int
    """Shared rows after step 0: what no training changed yet, runs may have in common by chance."""

    @property
    def is_prefix(self) -> bool:
        """Whether the stored run is the beginning of the files', or all of them."""
        return bool(self.shared) and not (self.changed or self.missing)

    @property
    def is_held(self) -> bool:
        """Whether the store has all that the files have."""
        return bool(self.shared) and not (self.changed or any(self.new.values()))


def origin(run: ImportedRun) -> dict[str, str]:
    """Table -> digest of the first row in which something was measured; and under PLACE that of where its files are."""
    found = {PLACE: digest_of(run.place)} if run.place else {}
    for table, rows in run.series().items():
        first = next((row for row in rows if any(row.get(name) is not None for name in _MEASURED)), None)
        if first:
            values = {name: first[name] for name in (*SERIES[table].key, *_MEASURED) if name in first}
            found[table] = digest_of(canonical(values))
    return found


def compare(storage: Storage, run_id: str, run: ImportedRun) -> Comparison:
    """Compare the stored run `run_id` with `run`. Raises StoreError if it cannot be read."""
    new: Rows = {}
    shared = changed = missing = trained = 0
    for name, rows in run.series().items():
        table = SERIES[name]
        stored = relisting(lambda table=table: _stored(storage, table, run_id))  # type: ignore[misc]
        # As they will be stored: a column of 32 bits has fewer digits than the files.
        own = dict(zip((_key(row, table) for row in rows), to_arrow(rows, table).to_pylist(), strict=True))
        both = stored.keys() & own.keys()
        shared += len(both)
        trained += sum(own[key]["step"] > 0 for key in both)
        changed += sum(not _holds(own[key], stored[key]) for key in both)
        missing += len(stored.keys() - both)
        new[name] = [row for row in rows if _key(row, table) not in stored]
    return Comparison(new, shared, changed, missing, trained)


def _stored(storage: Storage, table: Table, run_id: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    objects, _ = visible_objects(storage, table.name, run_id)
    return {_key(row, table): row for row in read_rows(storage, objects, table).to_pylist()}


def _key(row: dict[str, Any], table: Table) -> tuple[Any, ...]:
    return tuple(row[name] for name in table.key)


def _holds(row: dict[str, Any], stored: dict[str, Any]) -> bool:
    """Whether `row` has no other value than `stored`; one that either lacks is none, as the last training loss was."""
    both = [name for name, value in stored.items() if None not in (value, row[name]) and name not in _OWN]
    return all(_equal(row[name], stored[name]) for name in both)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(one == other)
