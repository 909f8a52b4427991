"""LINEAGE"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from muon_core.store.keys import END, ROOT, Attempt, Pack, Visible, parse_attempts, parse_finals, parse_live

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
        bound = attempt.resume_seq if bound is None else min(bound, attempt.resume_seq)
        id_ = attempt.parent
    return chain


def visible(
    attempt_keys: Iterable[str],
    data_keys: Iterable[str],
    table: str,
    packs: Iterable[Pack] = (),
    problems: Problems | None = None,
) -> list[Visible]:
    """The objects of `table` that make up each run's rows, each row once; `data_keys` lists live/ and final/ keys.

    Raises BrokenLineage unless there are `problems` to record it in.
    """
    keys = list(data_keys)
    live, finals = parse_live(keys, table), parse_finals(keys, table)
    for pack in sorted(packs, key=rank):  # of finals that hold the same, the last is taken
        for run, attempt, hi in pack.members:
            size = len(pack.members)
            finals[run].append(Visible(pack.key, run, attempt, None, final=True, hi=hi, members=size))
    chosen: list[Visible] = []
    for run, attempts in parse_attempts(attempt_keys).items():
        try:
            chosen += _visible_of_run(attempts, live.get(run, {}), finals.get(run, []))
        except BrokenLineage as error:
            if problems is None:
                raise
            problems[run] = str(error)
    return chosen


def rank(pack: Pack) -> tuple[int, str]:
    """Readers take what two packs hold from the one of higher rank, so the other can go."""
    return len(pack.members), pack.key


def covers(final: Visible, attempts: dict[str, Attempt]) -> dict[str, int]:
    """For each attempt in the lineage of `final`: below which seq the object holds that attempt's lineage."""
    try:
        chain = lineage(attempts, final.attempt)
    except BrokenLineage:
        return {}
    return {attempt.id: final.hi if bound is None else min(final.hi, bound) for attempt, bound in chain}


def _visible_of_run(
    attempts: dict[str, Attempt], live: dict[str, list[Visible]], finals: list[Visible]
) -> list[Visible]:
    held = [(final, covers(final, attempts)) for final in finals]
    chosen: list[Visible] = []
    for attempt, bound in lineage(attempts):
        end = END if bound is None else bound
        covered, final = 0, None
        for candidate, cover in held:
            if min(cover.get(attempt.id, 0), end) >= max(covered, 1):
                covered, final = min(cover[attempt.id], end), candidate
        chosen += _segments(live.get(attempt.id, []), max(covered, attempt.resume_seq), end)
        if final and covered > attempt.resume_seq:  # holds the ancestors' rows too
            chosen.append(replace(final, bound=covered if covered < final.hi else None))
            break
    return chosen


def _segments(objects: list[Visible], start: int, end: int) -> list[Visible]:
    """The objects that hold one attempt's rows with `start <= seq < end`; where two hold the same, one counts."""
    chosen: list[Visible] = []
    for item in sorted(objects, key=lambda item: (item.start, -item.hi)):
        if item.hi > start and item.start < end and start < end:
            first = start if item.start < start else 0
            chosen.append(replace(item, start=first, bound=end if item.hi > end else None))
            start = item.hi
    return chosen
