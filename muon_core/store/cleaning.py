"""Removes what finals stand for: the objects they were written from, older finals, and branches nobody goes on with.

Attempt 1 writes 100 rows and dies. 2 resumes from its checkpoint after 60 and fails at 120; a compaction writes its
final. 3 resumes from the checkpoint of 1 after 80 and is done at 150. Each table then has these objects, by attempt and
rows:

    live/  1: 0-100     rows 0 to 79 count
    live/  3: 80-150    all count
    final/ 2: -120      0 to 59 of 1, 60 to 119 of 2
    final/ 3: -150      0 to 79 of 1, 80 to 149 of 3, which is what counts

Three things may go, each once what replaces it is older than the grace, because readers may still have it open:

1. `live/ 3: 80-150`: the newest final holds each of its rows; they are compared first.
2. `final/ 2: -120`: final/ should hold one lineage, so that plain Polars finds each row once. But a checkpoint of 2 may
   still be resumed, and its rows 60 to 119 are nowhere else. This tail is first written again as `live/ 2: 60-120`.
3. The branches: `live/ 1: 0-100`, the tail, and the start record of 2. They go all at once, and only if the run is done
   or diverged and no checkpoint is left that continues rows which 3 does not show, as one of 1 after 100 rows would.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from muon_core.store.final import is_final
from muon_core.store.keys import END, Attempt, ObjectSlice, live_key, parse_checkpoint, parse_finals, parse_live
from muon_core.store.lineage import coverage, lineage, visible_slices
from muon_core.store.parquet import decode_named, encode, same_rows
from muon_core.store.reader import fit, list_keys, read_attempts, read_rows
from muon_core.store.storage import Listed, Storage, StoreError
from muon_core.tables import RUNS, SERIES, Table

Attempts = dict[str, Attempt]


def clean_run(storage: Storage, head: Attempt, *, finished: bool, before: float) -> list[Listed]:
    """Remove what the finals of a run have stood for since `before`, once it was compared with them.

    Args:
        head: the attempt that is known to have ended; nothing is done if it is no longer the newest.
        finished: nobody goes on with the run, so branches that no checkpoint continues go too.
    Returns: what was removed. Raises StoreError, before anything is, if a final does not hold a row it stands for.
    """
    attempts = read_attempts(storage, head.run).get(head.run, {})
    if max(attempts, default="") != head.id:
        return []  # the run is being tried again
    tables = [_TableOfRun(storage, attempts, table, before) for table in SERIES.values()]
    # All tables or none: a branch that lost its rows in one could be resumed into a run with a hole.
    branches = (
        finished
        and all(table.settled for table in tables)
        and all(end.modified <= before for end in storage.stat(f"final/table={RUNS.name}/run={head.run}/"))
        and _nobody_resumes_a_branch(storage, attempts)
    )
    if not branches:
        for table in tables:
            table.keep_tails()
    old = [item for table in tables for item in table.replaced(branches=branches)]
    if branches:
        ancestors = {attempt.id for attempt, _ in lineage(attempts)}
        abandoned = [attempt.key for attempt in attempts.values() if attempt.id not in ancestors]
        if abandoned and read_attempts(storage, head.run).get(head.run) != attempts:
            return []  # one began meanwhile, perhaps from such a branch
        # First: a checkpoint of theirs that turns up after all is refused then, instead of finding half of its rows.
        storage.delete(abandoned)
    storage.delete([item.key for item in old])
    return old


def _nobody_resumes_a_branch(storage: Storage, attempts: Attempts) -> bool:
    """Whether every checkpoint of the run continues rows that its head still shows."""
    chain = lineage(attempts)
    shown = {attempt.id: END if bound is None else bound for attempt, bound in chain}
    for key in list_keys(storage, f"checkpoints/{chain[0][0].run}/"):
        point = parse_checkpoint(key)
        if point and point.seq > shown.get(point.attempt, -1):
            return False
        if not point and not key.endswith("/config.json"):
            return False  # what it continues is unknown
    return True


class _TableOfRun:
    """One table of one run: its objects, and the final that stands for them.

    `settled` if that final is older than the grace, so that no reader is on what was there before it, or if the run
    shows no row of the table.
    """

    def __init__(self, storage: Storage, attempts: Attempts, table: Table, before: float) -> None:
        self._storage, self._attempts, self._table, self._before = storage, attempts, table, before
        self._head = max(attempts.values())
        self._list()
        shown = visible_slices([attempt.key for attempt in attempts.values()], self._listed, table.name)
        alone = is_final(shown, self._head.id) and self._listed[shown[0].key].modified <= before
        self._final = shown[0] if alone else None
        self._cover = coverage(shown[0], attempts) if alone else {}
        self.settled = alone or not shown

    def _list(self) -> None:
        folders = [f"{kind}/table={self._table.name}/run={self._head.run}/" for kind in ("live", "final")]
        self._listed = {item.key: item for folder in folders for item in self._storage.stat(folder)}

    def keep_tails(self) -> None:
        """Write the rows that an older final has and the newest has not as live objects of the attempts they are of."""
        missing = [
            (final, name, tail)
            for final in self._older_finals()
            for name, tail in self._tails(final).items()
            if name not in self._listed
        ]
        for final, name, tail in missing:
            self._storage.put(name, encode(self._read(final, tail).sort_by("seq"), self._table))
        if missing:
            self._list()

    def replaced(self, *, branches: bool) -> list[Listed]:
        """What the final stands for, with `branches` also what is off its lineage. Raises StoreError if rows differ."""
        if not self.settled:
            return []
        removable = [item for item in self._others() if branches or item.hi <= self._cover.get(item.attempt, 0)]
        if not branches:
            removable += [final for final in self._older_finals() if self._has_settled_tails(final)]
        self._compare([item for item in removable if item.attempt in self._cover or self._is_older(item)])
        return [self._listed[item.key] for item in removable]

    def _others(self) -> list[ObjectSlice]:
        """All objects but the final, of attempts up to the head."""
        name = self._table.name
        live = [many for by_attempt in parse_live(self._listed, name).values() for many in by_attempt.values()]
        objects = [item for many in (*live, *parse_finals(self._listed, name).values()) for item in many]
        own = self._final.key if self._final else ""
        return [item for item in objects if item.key != own and item.attempt <= self._head.id]

    def _older_finals(self) -> list[ObjectSlice]:
        return [item for item in self._others() if self.settled and self._is_older(item)]

    def _is_older(self, item: ObjectSlice) -> bool:
        """Whether this is a final that went its own way from some point of the newest lineage on."""
        own_way = item.hi > self._cover.get(item.attempt, 0)
        return item.final and own_way and bool(coverage(item, self._attempts))

    def _tails(self, old: ObjectSlice) -> dict[str, range]:
        """The rows of `old` that the final has not: key of the live object they belong into -> their seqs."""
        tails = {}
        for id_, end in coverage(old, self._attempts).items():
            start = max(self._attempts[id_].resume_seq, self._cover.get(id_, 0))
            if start < end:
                tails[live_key(self._table.name, old.run, id_, start, end)] = range(start, end)
        return tails

    def _has_settled_tails(self, old: ObjectSlice) -> bool:
        tails = [self._listed.get(name) for name in self._tails(old)]
        return all(tail is not None and tail.modified <= self._before for tail in tails)

    def _compare(self, objects: list[ObjectSlice]) -> None:
        """Raise StoreError if the final lacks a row that one of `objects` shares with it."""
        final = self._final
        if final is None or not objects:
            return
        # What was stored is compared, not what was meant to be: the final is read back.
        uri = self._storage.uri(final.key)
        rows = fit(decode_named(self._storage.get(final.key), uri), self._table)
        for item in objects:
            own = self._shared(item)
            if not same_rows(own, rows.filter(pc.is_in(rows["seq"], own["seq"].combine_chunks())), self._table):
                raise StoreError(
                    f"{uri} does not hold the rows of {item.key}; nothing was removed, "
                    "delete the final object and compact again"
                )

    def _shared(self, item: ObjectSlice) -> pa.Table:
        """The rows of `item` that the final must hold."""
        if not item.final:
            return self._read(item, range(self._cover[item.attempt]))
        rows = self._read(item)
        for tail in self._tails(item).values():
            rows = rows.filter((pc.field("seq") < tail.start) | (pc.field("seq") >= tail.stop))
        return rows

    def _read(self, item: ObjectSlice, seqs: range = range(END)) -> pa.Table:
        cut = item._replace(start=seqs.start, bound=seqs.stop)
        return read_rows(self._storage, [cut], self._table, lossless=True)
