"""Rewrites what finished runs wrote into few objects that read fast, and removes what these replace.

Nothing here needs to be alone: it may run twice, be killed, or run beside readers, writers and itself. New objects
carry a digest of their content in their name, so nothing is overwritten; old ones go only once the new ones were read
back and hold every one of their rows, and after a time in which readers that listed them can finish.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from muon_core import layout
from muon_core.layout import Attempt, Visible
from muon_core.packs import pack_table, redundant_pack_objects
from muon_core.parquet import decode_named, digest, encode, same_rows, sort_for_reading
from muon_core.snapshot import fit, list_keys, list_series_keys, read_attempts, read_ends, read_rows, relisting
from muon_core.storage import Listed, Storage, StoreError, store_time
from muon_core.tables import RUNS, SERIES, Table

READER_GRACE_S = 600.0  # an object stays this long after another took its place
_CHECKPOINT = re.compile(r"/\d{9}\.(\d{5}\.[0-9a-f]+)\.(\d{12})\.")  # <step>.<attempt>.<seq>. in its name
FINISHED = ("done", "diverged")  # nobody goes on with such a run


@dataclass(slots=True)
class Compaction:
    """What `compact` did; `problems` maps a run or table it left as it was to the reason."""

    finals: int = 0
    packs: int = 0
    removed: int = 0
    removed_bytes: int = 0
    problems: dict[str, str] = field(default_factory=dict)


def compact(storage: Storage, runs: Iterable[str] | None = None, *, grace_s: float = READER_GRACE_S) -> Compaction:
    """Write finals of the runs that have ended (of `runs`, or all), packs over all runs, and remove what these replace.

    Rows of an abandoned branch go only with the run finished and no checkpoint left that continues it.
    """
    done = Compaction()
    attempts = read_attempts(storage)
    wanted = attempts.keys() if runs is None else attempts.keys() & set(runs)
    ends = relisting(lambda: read_ends(storage, [max(attempts[run].values()) for run in sorted(wanted)]))
    now = store_time(storage)
    for run, status in zip(ends["run_id"].to_pylist(), ends["status"].to_pylist(), strict=True):
        try:
            done.finals += relisting(partial(finalize, storage, run, complete=status in FINISHED))
            relisting(partial(_clean_run, storage, run, status, now - grace_s, done))
        except (StoreError, layout.BrokenLineage) as error:
            done.problems[run] = str(error)
    for table in (*SERIES.values(), RUNS):
        try:
            done.packs += relisting(partial(pack_table, storage, table))
            _remove(storage, relisting(partial(redundant_pack_objects, storage, table, now - grace_s)), done)
        except (StoreError, layout.BrokenLineage) as error:
            done.problems[table.name] = str(error)
    return done


def finalize(storage: Storage, run_id: str, *, complete: bool = False) -> int:
    """Write the run's rows once more, sorted for reading: one `final` object a table. Returns how many are new.

    With `complete` raises StoreError if a row is missing that the run must have written.
    """
    attempt_keys = list_keys(storage, f"attempts/{run_id}/")
    head = max(layout.parse_attempts(attempt_keys)[run_id])
    data_keys = list_series_keys(storage, run_id)
    objects = {table.name: layout.visible(attempt_keys, data_keys, table.name) for table in SERIES.values()}
    todo = [name for name, items in objects.items() if items and not _is_final(items, head)]
    if not todo:
        return 0
    names = objects if complete else todo
    rows = {name: read_rows(storage, objects[name], SERIES[name], lossless=True) for name in names}
    if complete:
        _check_complete(run_id, storage.url, rows)
    for name in todo:
        _write_final(storage, SERIES[name], run_id, head, max(item.end for item in objects[name]), rows[name])
    return len(todo)


def _is_final(items: list[Visible], head: str) -> bool:
    return len(items) == 1 and items[0].final and items[0].attempt == head


def _check_complete(run: str, url: str, rows: dict[str, pa.Table]) -> None:
    """Every number below the highest must have come up once: `seq` counts over all tables together."""
    seqs = pa.chunked_array([chunk for table in rows.values() for chunk in table["seq"].chunks], pa.int64())
    top = (pc.max(seqs).as_py() if len(seqs) else -1) + 1
    if len(seqs) != top or pc.count_distinct(seqs).as_py() != top:
        raise StoreError(
            f"run {run}: {top - pc.count_distinct(seqs).as_py()} of its {top} rows are missing from {url} and "
            f"{len(seqs) - pc.count_distinct(seqs).as_py()} are double; restore live/ from a backup, or run it again"
        )


def _write_final(storage: Storage, table: Table, run: str, head: str, hi: int, rows: pa.Table) -> None:
    data = encode(sort_for_reading(rows, table), table, final=True)
    key = layout.final_key(table.name, run, head, hi, digest(data))
    storage.put(key, data)
    # Another process, perhaps with another encoder, may have done the same: both see both now and keep the same one.
    prefix = key.rsplit("-", 1)[0]
    twins = [name for name in list_keys(storage, f"final/table={table.name}/run={run}/") if name.startswith(prefix)]
    storage.delete(sorted(twins)[:-1])


def _remove(storage: Storage, objects: list[Listed], done: Compaction) -> None:
    storage.delete([item.key for item in objects])
    done.removed += len(objects)
    done.removed_bytes += sum(item.size for item in objects)


def _clean_run(storage: Storage, run: str, status: str, before: float, done: Compaction) -> None:
    """Remove the objects that finals written `before` that time stand for, verified against them."""
    attempts = read_attempts(storage, run)[run]
    chain = layout.lineage(attempts)
    branches = status in FINISHED and _nobody_resumes_a_branch(storage, run, chain)
    old: list[Listed] = []
    for table in SERIES.values():
        listed = {
            item.key: item
            for kind in ("live", "final")
            for item in storage.stat(f"{kind}/table={table.name}/run={run}/")
        }
        final = _settled_final(attempts, listed, table, before)
        if final:
            held = _held_by(storage, final, attempts, listed, table, branches=branches)
            old += [listed[item.key] for item in held]
        branches = branches and (final is not None or not listed)
    if (
        branches
    ):  # first the records: whoever comes with such a checkpoint after all is refused, not given half its rows
        alive = {attempt.id for attempt, _ in chain}
        storage.delete([attempt.key for attempt in attempts.values() if attempt.id not in alive])
    _remove(storage, old, done)


def _nobody_resumes_a_branch(storage: Storage, run: str, chain: list[tuple[Attempt, int | None]]) -> bool:
    """Whether every checkpoint of the run continues rows that its head still shows."""
    shown = {attempt.id: layout.END if bound is None else bound for attempt, bound in chain}
    for key in list_keys(storage, f"checkpoints/{run}/"):
        point = _CHECKPOINT.search(key)
        if point and int(point[2]) > shown.get(point[1], -1):
            return False
        if not point and not key.endswith("/config.json"):
            return False  # what it continues is unknown
    return True


def _settled_final(
    attempts: dict[str, Attempt], listed: dict[str, Listed], table: Table, before: float
) -> Visible | None:
    """The final that alone makes up the run's rows, if no reader may still be on what was there before it."""
    items = layout.visible([attempt.key for attempt in attempts.values()], listed, table.name)
    if _is_final(items, max(attempts)) and listed[items[0].key].modified <= before:
        return items[0]
    return None


def _held_by(
    storage: Storage,
    final: Visible,
    attempts: dict[str, Attempt],
    listed: dict[str, Listed],
    table: Table,
    *,
    branches: bool,
) -> list[Visible]:
    """Objects `final` stands for, with `branches` also those off its lineage. Raises StoreError if a row differs."""
    cover = layout.covers(final, attempts)
    live = [many for by_attempt in layout.parse_live(listed, table.name).values() for many in by_attempt.values()]
    objects = [item for many in (*live, *layout.parse_finals(listed, table.name).values()) for item in many]
    others = [item for item in objects if item.key != final.key and item.attempt <= final.attempt]
    held = [item for item in others if branches or item.hi <= cover.get(item.attempt, 0)]
    inside = [replace(item, start=0, bound=cover[item.attempt]) for item in held if item.attempt in cover]
    if inside:
        _verify(storage, final, inside, table)
    return held


def _verify(storage: Storage, final: Visible, replaced: list[Visible], table: Table) -> None:
    data = storage.get(final.key)
    if final.hi != layout.END and digest(data) not in final.key:
        raise StoreError(
            f"{storage.uri(final.key)} is damaged, its content differs from its name; delete it and compact"
        )
    rows = fit(decode_named(data, storage.uri(final.key)), table)
    for item in replaced:
        own = read_rows(storage, [item], table, lossless=True)
        if not same_rows(own, rows.filter(pc.is_in(rows["seq"], own["seq"].combine_chunks())), table):
            raise StoreError(
                f"{storage.uri(final.key)} does not hold the rows of {item.key}; nothing was removed, "
                "delete the final object and compact again"
            )
