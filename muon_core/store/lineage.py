"""Lineage: which rows of which objects make up a run that several attempts have written.

The head of a run is its newest attempt, the one with the greatest id. It owns the rows from the `seq` it resumed at;
below that its parent's count, and so on back to an attempt that started from nothing. All else is invisible: attempts
that are no ancestors of the head, and what an ancestor wrote beyond the point where its child resumed. So each row
counts once, whatever was written twice.

Attempt 1 writes 100 rows and dies; 2 resumes from its checkpoint after 60 of them, and 3 from one after 80:

    attempts/r/00001.aa--00000.0--000000000000.json
    attempts/r/00002.bb--00001.aa--000000000060.json
    attempts/r/00003.cc--00001.aa--000000000080.json
    live/table=val/run=r/00001.aa.000000000000-000000000100.parquet        rows 0 to 79 count
    live/table=val/run=r/00002.bb.000000000060-000000000120.parquet        invisible, 2 is no ancestor of 3
    live/table=val/run=r/00003.cc.000000000080-000000000150.parquet        rows 80 to 149 count
    final/table=val/run=r/00003.cc.000000000150-<digest>.parquet           holds just these 150 rows

A process that was cut off and declared dead may still be running. Such a zombie need not be stopped: what it writes
carries its own id, and is hidden from the moment the next attempt has its start record. That is why no lock or
conditional write is asked of the store; the lease (`muon_core.lease`) saves time and money, rows do not rest on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from muon_core.store.keys import END, ROOT, Attempt, ObjectSlice, Pack, parse_attempts, parse_finals, parse_live

Problems = dict[str, str]
"""What is wrong with a run, by run. A function that is given one records there what it would raise, and goes on."""


class BrokenLineage(ValueError):
    """An attempt names a parent whose start record is gone: rows would be missing in silence."""


def lineage(attempts: dict[str, Attempt], head: str | None = None) -> list[tuple[Attempt, int | None]]:
    """`head` (default: the newest attempt) and its ancestors, newest first, each with the first seq no longer its own.

    That seq is None for the head. Empty if `head` is gone.
    Raises BrokenLineage if an ancestor's start record is missing.
    """
    chain: list[tuple[Attempt, int | None]] = []
    id_, bound = head or max(attempts, default=ROOT), None
    while id_ != ROOT:
        if id_ not in attempts:
            if not chain:
                return []
            child = chain[-1][0]
            raise BrokenLineage(
                f"run {child.run}: attempt {child.id} continues {id_}, whose start record is missing from "
                f"attempts/{child.run}/; restore it, or remove {child.key} to fall back to the attempts before"
            )
        attempt = attempts[id_]
        chain.append((attempt, bound))
        # A child may go back behind where its parent began, so the tightest bound of all descendants counts.
        bound = attempt.resume_seq if bound is None else min(bound, attempt.resume_seq)
        id_ = attempt.parent
    return chain


def visible_slices(
    attempt_keys: Iterable[str],
    data_keys: Iterable[str],
    table: str,
    packs: Iterable[Pack] = (),
    problems: Problems | None = None,
) -> list[ObjectSlice]:
    """The objects of `table` that make up each run's rows, each row once; `data_keys` lists live/ and final/ keys.

    Raises BrokenLineage unless there are `problems` to record it in.
    """
    keys = list(data_keys)
    live, finals = parse_live(keys, table), parse_finals(keys, table)
    for pack in sorted(packs, key=precedence):  # after the finals: of those that hold the same, the last is read
        for run, attempt, hi in pack.runs:
            size = len(pack.runs)
            finals[run].append(ObjectSlice(pack.key, run, attempt, final=True, hi=hi, num_runs=size))
    chosen: list[ObjectSlice] = []
    for run, attempts in parse_attempts(attempt_keys).items():
        try:
            chosen += _visible_of_run(attempts, live.get(run, {}), finals.get(run, []))
        except BrokenLineage as error:
            if problems is None:
                raise
            problems[run] = str(error)
    return chosen


def has_gap(live_keys: Iterable[str], table: str) -> bool:
    """Whether two live objects of one attempt have rows between them in none: segments follow each other without."""
    for by_attempt in parse_live(live_keys, table).values():
        for objects in by_attempt.values():
            reached = objects[0].start
            for item in objects:  # sorted by key, and so by their first row
                if item.start > reached:
                    return True
                reached = max(reached, item.hi)
    return False


def precedence(pack: Pack) -> tuple[int, str]:
    """Sorts packs: what two of them hold is read from the one that comes later, so the other can go."""
    return len(pack.runs), pack.key


def coverage(final: ObjectSlice, attempts: dict[str, Attempt]) -> dict[str, int]:
    """For each attempt in the lineage of `final`: below which seq the object holds that attempt's lineage.

    In the example above, the final of 3 covers 3 below 150 and 1 below 80. Empty if a start record is missing.
    """
    try:
        chain = lineage(attempts, final.attempt)
    except BrokenLineage:
        return {}
    return {attempt.id: final.hi if bound is None else min(final.hi, bound) for attempt, bound in chain}


def _visible_of_run(
    attempts: dict[str, Attempt], live: dict[str, list[ObjectSlice]], finals: list[ObjectSlice]
) -> list[ObjectSlice]:
    if len(attempts) == 1 and not live:
        (only,) = attempts.values()
        if only.parent == ROOT and only.resume_seq == 0:
            # Nearly every run that has ended. What follows says the same, and of thousands it takes as long as to read.
            own = [final for final in reversed(finals) if final.attempt == only.id and final.hi > 0]
            return [max(own, key=lambda final: final.hi)] if own else []
    covers = [(final, coverage(final, attempts)) for final in finals]
    chosen: list[ObjectSlice] = []
    for attempt, bound in lineage(attempts):
        end = END if bound is None else bound
        covered, final = 0, None
        for candidate, cover in covers:  # that of a branch will do where it shares this attempt's rows with the head
            if min(cover.get(attempt.id, 0), end) >= max(covered, 1):
                covered, final = min(cover[attempt.id], end), candidate
        chosen += _segments(live.get(attempt.id, []), max(covered, attempt.resume_seq), end)
        if final and covered > attempt.resume_seq:  # a final with rows of an attempt has all of its ancestors' too
            chosen.append(final._replace(bound=covered if covered < final.hi else None))
            break
    return chosen


def _segments(objects: list[ObjectSlice], start: int, end: int) -> list[ObjectSlice]:
    """The objects that hold one attempt's rows with `start <= seq < end`; where two hold the same, one counts."""
    chosen: list[ObjectSlice] = []
    # Each version of a segment repeats the one before from the same start, so the longest comes first and is enough.
    for item in sorted(objects, key=lambda item: (item.start, -item.hi)):
        if item.hi > start and item.start < end and start < end:
            first = start if item.start < start else 0
            chosen.append(item._replace(start=first, bound=end if item.hi > end else None))
            start = item.hi
    return chosen
