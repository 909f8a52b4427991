"""Rewrites what finished runs wrote into few objects that read fast, and removes what these replace.

Nothing here needs to be alone: it may run twice, be killed, or run beside readers, writers and itself. New objects
carry a digest of their content in their name, so nothing is overwritten; old ones go only once the new ones were read
back and hold every one of their rows, and after a time in which readers that listed them can finish.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from muon_core import layout
from muon_core.cleaning import clean_run, is_final
from muon_core.layout import Attempt, Problems
from muon_core.packs import repack
from muon_core.parquet import digest, encode, sort_for_reading
from muon_core.snapshot import (
    list_keys,
    list_series_keys,
    mark_version,
    read_attempts,
    read_ends,
    read_rows,
    relisting,
)
from muon_core.storage import Listed, Storage, StoreError, store_time
from muon_core.tables import RUNS, SERIES, Table

READER_GRACE_S = 600.0  # an object stays this long after another took its place
FINISHED = ("done", "diverged")  # nobody goes on with such a run


@dataclass(slots=True)
class Compaction:
    """What `compact` did; `problems` maps a run or table it left as it was to the reason."""

    finals: int = 0
    packs: int = 0
    removed: int = 0
    removed_bytes: int = 0
    problems: Problems = field(default_factory=dict)

    def count_removed(self, objects: list[Listed]) -> None:
        """Add objects that are gone."""
        self.removed += len(objects)
        self.removed_bytes += sum(item.size for item in objects)


def compact(storage: Storage, runs: Iterable[str] | None = None, *, grace_s: float = READER_GRACE_S) -> Compaction:
    """Write finals of the runs that have ended (of `runs`, or all), packs over all runs, and remove what these replace.

    What was replaced at least `grace_s` seconds ago goes; with 0, when nobody reads, also what this call replaces.
    Rows of an abandoned branch go only with the run finished and no checkpoint left that continues it.
    Raises StoreError if the store cannot be used, or a newer release has written it; what is wrong with one run or
    table is recorded as its problem.
    """
    mark_version(storage)
    done = Compaction()
    attempts = read_attempts(storage)
    wanted = attempts.keys() if runs is None else attempts.keys() & set(runs)
    heads = {run: max(attempts[run].values()) for run in sorted(wanted)}
    ends = relisting(lambda: read_ends(storage, heads.values(), done.problems))
    statuses = dict(zip(ends["run_id"].to_pylist(), ends["status"].to_pylist(), strict=True))
    before = store_time(storage) - grace_s if grace_s > 0 else math.inf
    num_rows = {
        run: end.hi
        for (run, attempt), end in layout.parse_ends(list_keys(storage, f"final/table={RUNS.name}/")).items()
        if statuses.get(run) in FINISHED and attempt == heads[run].id
    }
    for run in sorted(_untidy_runs(storage, attempts, num_rows) & statuses.keys()):
        head, finished = heads[run], statuses[run] in FINISHED
        try:
            done.finals += relisting(partial(finalize, storage, run, num_rows=num_rows.get(run), head=head.id))
            done.count_removed(relisting(partial(clean_run, storage, head, finished=finished, before=before)))
        except (StoreError, layout.BrokenLineage) as error:
            done.problems[run] = str(error)
    for table in (*SERIES.values(), RUNS):
        try:
            new, old = relisting(partial(repack, storage, table, before, done.problems))
        except StoreError as error:
            done.problems[table.name] = str(error)
        else:
            done.packs += new
            storage.delete([item.key for item in old])
            done.count_removed(old)
    return done


def _untidy_runs(storage: Storage, attempts: dict[str, dict[str, Attempt]], num_rows: dict[str, int]) -> set[str]:
    """Runs that have more than one final a table, of their newest attempt, or records of abandoned branches.

    Of the finished ones, whose `num_rows` are known, also those without a trace of their rows. All others need no
    request of their own.
    """
    keys = [*list_keys(storage, "live/"), *list_keys(storage, "final/")]
    untidy = {run for run in num_rows if len(attempts[run]) > 1 and _has_branches(attempts[run])}
    found: set[str] = set()
    for table in SERIES:
        untidy |= layout.parse_live(keys, table).keys()
        for run, finals in layout.parse_finals(keys, table).items():
            found.add(run)
            if len(finals) > 1 or finals[0].attempt != max(attempts.get(run, ()), default=""):
                untidy.add(run)
    return untidy | {run for run, rows in num_rows.items() if rows and run not in found}


def _has_branches(attempts: dict[str, Attempt]) -> bool:
    try:
        return len(layout.lineage(attempts)) < len(attempts)
    except layout.BrokenLineage:
        return True  # and is told of when its objects are looked at


def finalize(storage: Storage, run_id: str, *, num_rows: int | None = None, head: str | None = None) -> int:
    """Write the run's rows once more, sorted for reading: one `final` object a table. Returns how many are new.

    Args:
        num_rows: how many rows the run wrote to all tables; StoreError is raised unless each is there once.
        head: the attempt that `num_rows` is known of; nothing is written if it is no longer the newest.
    """
    attempt_keys = list_keys(storage, f"attempts/{run_id}/")
    newest = max(layout.parse_attempts(attempt_keys)[run_id])
    if head not in (None, newest):
        return 0
    data_keys = list_series_keys(storage, run_id)
    objects = {table.name: layout.visible(attempt_keys, data_keys, table.name) for table in SERIES.values()}
    todo = [name for name, items in objects.items() if items and not is_final(items, newest)]
    if not todo and (any(objects.values()) or not num_rows):
        return 0
    names = todo if num_rows is None else objects
    rows = {name: read_rows(storage, objects[name], SERIES[name], lossless=True) for name in names}
    if num_rows is not None:
        _check_complete(run_id, storage.url, rows, num_rows)
    for name in todo:
        _write_final(storage, SERIES[name], run_id, newest, max(item.end for item in objects[name]), rows[name])
    return len(todo)


def _check_complete(run: str, url: str, rows: dict[str, pa.Table], num_rows: int) -> None:
    """Each number below `num_rows` must have come up once: `seq` counts over all tables together."""
    seqs = pa.chunked_array([chunk for table in rows.values() for chunk in table["seq"].chunks], pa.int64())
    distinct = pc.count_distinct(seqs).as_py()
    if not len(seqs) == distinct == num_rows:
        raise StoreError(
            f"run {run}: {num_rows - distinct} of its {num_rows} rows are missing from {url} and "
            f"{len(seqs) - distinct} are double; restore live/ from a backup, or run it again"
        )


def _write_final(storage: Storage, table: Table, run: str, head: str, hi: int, rows: pa.Table) -> None:
    """Two processes, perhaps with different encoders, may write twins: every reader takes the same of them."""
    data = encode(sort_for_reading(rows, table), table, final=True)
    storage.put(layout.final_key(table.name, run, head, hi, digest(data)), data)
