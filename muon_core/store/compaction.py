"""Rewrites what ended runs wrote into few objects that read fast, and removes what these replace.

Each run that has ended gets its finals (`muon_core.store.final`) and loses what they stand for (`cleaning`); then small
finals of all runs are copied into packs (`packs`). Each step may be killed, run twice, or run beside readers, writers
and itself. New objects carry a digest of their content in their name, so nothing is overwritten; old ones go only once
the new ones were read back and hold every one of their rows, and after a time in which readers that listed them can
finish. What one call did not reach, the next one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from muon_core.statuses import FINISHED
from muon_core.store.cleaning import clean_run
from muon_core.store.final import finalize
from muon_core.store.keys import Attempt, parse_ends, parse_finals, parse_live
from muon_core.store.lineage import BrokenLineage, Problems, lineage
from muon_core.store.packs import repack
from muon_core.store.reader import list_keys, mark_version, read_attempts, read_ends, relisting
from muon_core.store.removal import clear_removed
from muon_core.store.storage import READER_GRACE_S, Listed, Storage, StoreError, store_time
from muon_core.tables import RUNS, SERIES


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
    result = Compaction()
    attempts = read_attempts(storage)
    wanted = attempts.keys() if runs is None else attempts.keys() & set(runs)
    heads = {run: max(attempts[run].values()) for run in sorted(wanted)}
    ends = relisting(lambda: read_ends(storage, heads.values(), result.problems))
    statuses = dict(zip(ends["run_id"].to_pylist(), ends["status"].to_pylist(), strict=True))
    # Without grace even what this call replaces goes, and its finals are younger than any time asked for here.
    before = store_time(storage) - grace_s if grace_s > 0 else math.inf
    # Finished runs alone are held to the number of rows in their end record. One that failed may have been cut off
    # anywhere, so its finals hold what there is.
    num_rows = {
        run: end.hi
        for (run, attempt), end in parse_ends(list_keys(storage, f"final/table={RUNS.name}/")).items()
        if statuses.get(run) in FINISHED and attempt == heads[run].id
    }
    result.count_removed(clear_removed(storage, before))
    for run in sorted(_untidy_runs(storage, attempts, num_rows) & statuses.keys()):
        head, finished = heads[run], statuses[run] in FINISHED
        try:
            result.finals += relisting(partial(finalize, storage, run, num_rows=num_rows.get(run), head=head.id))
            result.count_removed(relisting(partial(clean_run, storage, head, finished=finished, before=before)))
        except (StoreError, BrokenLineage) as error:
            result.problems[run] = str(error)
    for table in (*SERIES.values(), RUNS):
        try:
            new, old = relisting(partial(repack, storage, table, before, result.problems))
        except StoreError as error:
            result.problems[table.name] = str(error)
        else:
            result.packs += new
            storage.delete([item.key for item in old])
            result.count_removed(old)
    return result


def _untidy_runs(storage: Storage, attempts: dict[str, dict[str, Attempt]], num_rows: dict[str, int]) -> set[str]:
    """Runs whose rows lie in more than one final a table, of their newest attempt, or that have abandoned branches.

    Of the finished ones, whose `num_rows` are known, also those without a trace of their rows. All others need no
    request of their own.
    """
    keys = [*list_keys(storage, "live/"), *list_keys(storage, "final/")]
    untidy = {run for run in num_rows if len(attempts[run]) > 1 and _has_branches(attempts[run])}
    found: set[str] = set()
    for table in SERIES:
        untidy |= parse_live(keys, table).keys()
        for run, finals in parse_finals(keys, table).items():
            found.add(run)
            if len(finals) > 1 or finals[0].attempt != max(attempts.get(run, ()), default=""):
                untidy.add(run)
    return untidy | {run for run, rows in num_rows.items() if rows and run not in found}


def _has_branches(attempts: dict[str, Attempt]) -> bool:
    try:
        return len(lineage(attempts)) < len(attempts)
    except BrokenLineage:
        return True  # the error is reported when its objects are looked at
