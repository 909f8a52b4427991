"""Key names of the results store: how they are made, and what they say without the object being opened.

    attempts/<run>/<id>--<parent id | 00000.0>--<resume_seq>.json        start record of an attempt
    live/table=<table>/run=<run>/<id>.<seq_lo>-<seq_hi>.parquet          rows [seq_lo, seq_hi), written while training
    final/table=<table>/run=<run>/<id>.<seq_hi>-<digest>.parquet         rows below seq_hi in <id>'s lineage, sorted
    final/table=runs/run=<run>/<id>.<seq_hi>-<digest>.parquet            how attempt <id> ended, after <seq_hi> rows
    packs/table=<table>/<digest>.parquet, .json                          finals of many runs copied into one, and whose
    ledger/<run>/<id>.json                                               who trains an attempt, see `ledger.py`
    sweeps/<sweep>/<id>.json                                             what was asked
    stops/<sweep>/<id>.json                                              a wish that who runs the sweep ends it
    checkpoints/<run>/<name>/<step>.<id>.<seq>.<digest>.pt               a run's state after <seq> rows, by attempt <id>
    code/<diff hash>.diff                                                uncommitted changes that a job was sent with
    code/<sha256>.py                                                     a file whose optimizer runs were planned with
    logs/<run>/<start>.r<rank>.<lo>-<hi>.txt                             bytes [lo, hi) of what a rank printed
    removed/<run>/<id>.json                                              which objects of a removed run are to go
    data/<data_hash>/<file>/<part>                                       tokens that a cluster's nodes fetch
    schema/<version>.json                                                marks what release may read it
    clock/<nonce>                                                        written and removed to learn the store's time

An id is `<n>.<nonce>`: attempts of a run, and records and stops of a sweep, are numbered from 1, and the nonce keeps
two apart that took one number at the same time. `seq` numbers the rows that a run emits, over all its tables, from 0. A
start is a time (UTC, to the microsecond) and a nonce: what a process prints is kept from before its attempt has an id.

A name holds all that decides whether an object is read: whose rows it has, which of them, and the digest of a content
that others may write too. So a listing is enough to choose by (`muon_core.store.lineage` does), and there is no index
that could disagree with the objects. Objects never change under their name, but for the ledger's: two processes that
write a final at once write two names if their bytes differ, and one object twice if they do not.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

ROOT = "00000.0"  # the parent of an attempt that starts from nothing
_VERSION = re.compile(r"schema/(\d{5})\.json")
END = 10**12  # above every seq
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ID = r"\d{5}\.[0-9a-f]+"
_ATTEMPT = re.compile(rf"attempts/([^/]+)/({_ID})--({_ID})--(\d{{12}})\.json")
_LIVE = re.compile(rf"live/table=([^/]+)/run=([^/]+)/({_ID})\.(\d{{12}})-(\d{{12}})\.parquet")
_FINAL = re.compile(rf"final/table=([^/]+)/run=([^/]+)/({_ID})\.(\d{{12}})-[0-9a-f]{{16}}\.parquet")
_PACK = re.compile(r"packs/table=([^/]+)/([0-9a-f]{16})\.json")
_DIGEST = re.compile(r"[-/]([0-9a-f]{16})\.parquet$")
_SWEEP = re.compile(rf"sweeps/([^/]+)/({_ID})\.json")
_STOP = re.compile(rf"stops/([^/]+)/({_ID})\.json")
_START_FORMAT = "%Y%m%dT%H%M%S%f"
_LOG = re.compile(r"logs/([^/]+)/(\d{8}T\d{12}\.[0-9a-f]+)\.r(\d{5})\.(\d{12})-(\d{12})\.txt")
_CHECKPOINT = re.compile(rf"checkpoints/([^/]+)/([^/]+)/(\d{{9}})\.({_ID})\.(\d{{12}})\.([0-9a-f]{{16}})\.pt")


class Attempt(NamedTuple):
    """One try at a run: rows from `resume_seq` on are its own, those below are its parent's."""

    id: str
    parent: str
    resume_seq: int
    run: str

    @property
    def number(self) -> int:
        """Counts tries from 1."""
        return int(self.id[:5])

    @property
    def key(self) -> str:
        """Where its start record lies."""
        return f"attempts/{self.run}/{self.id}--{self.parent}--{self.resume_seq:012d}.json"


class ObjectSlice(NamedTuple):
    """The rows of one run in one object: those with `start <= seq`, and `seq < bound` unless that is None.

    As parsed from a key it is all rows of the object; the lineage cuts it down to those that count.
    """

    key: str
    run: str
    attempt: str
    final: bool
    start: int = 0
    hi: int = END
    """The first seq beyond the object."""
    bound: int | None = None
    num_runs: int = 1
    """How many runs the object holds: more than one for a pack."""

    @property
    def end(self) -> int:
        """The first seq beyond the slice."""
        return self.hi if self.bound is None else min(self.bound, self.hi)


class PackedRun(NamedTuple):
    """What a pack holds of one run: the rows with seq below `hi` in the lineage of `attempt`."""

    run: str
    attempt: str
    hi: int


@dataclass(frozen=True, slots=True)
class Pack:
    """One object with the rows of many runs; `key` is that of its Parquet object."""

    key: str
    runs: tuple[PackedRun, ...]

    @property
    def manifest(self) -> str:
        """Key of the list of its runs, written last: without it the pack does not exist."""
        return f"{self.key.removesuffix('.parquet')}.json"


class Checkpoint(NamedTuple):
    """What the key of a checkpoint says: it holds the run's state after the first `seq` rows in `attempt`'s lineage."""

    run: str
    name: str
    step: int
    attempt: str
    seq: int
    digest: str


class LogPart(NamedTuple):
    """What the key of a part of a log says: bytes [lo, hi) of what one rank printed since `start`."""

    run: str
    start: str
    rank: int
    lo: int
    hi: int

    @property
    def key(self) -> str:
        return f"logs/{self.run}/{self.start}.r{self.rank:05d}.{self.lo:012d}-{self.hi:012d}.txt"


def check_name(name: str) -> str:
    """`name` if it may stand in a key; raises ValueError otherwise (hive paths break on `=`, `[`, `*` and spaces)."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a run or sweep: use letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def next_id(existing: Iterable[str]) -> str:
    """An id after all of `existing`; the nonce keeps two writers that pick the same number apart."""
    return f"{max((int(i[:5]) for i in existing), default=0) + 1:05d}.{secrets.token_hex(6)}"


def next_start() -> str:
    """Names this moment in the keys of a log, apart from any other process that begins in it."""
    return f"{datetime.now(UTC).strftime(_START_FORMAT)}.{secrets.token_hex(6)}"


def start_time(start: str) -> datetime:
    """When that was, by the clock of the machine that named it."""
    return datetime.strptime(start.partition(".")[0], _START_FORMAT).replace(tzinfo=UTC)


def live_key(table: str, run: str, attempt: str, lo: int, hi: int) -> str:
    """Key of the rows of `attempt` with seq in [lo, hi)."""
    return f"live/table={table}/run={run}/{attempt}.{lo:012d}-{hi:012d}.parquet"


def final_key(table: str, run: str, attempt: str, hi: int, digest: str) -> str:
    """Key of a run's rows below seq `hi` in the lineage of `attempt`, or of how it ended there (table `runs`)."""
    return f"final/table={table}/run={run}/{attempt}.{hi:012d}-{digest}.parquet"


def pack_key(table: str, digest: str) -> str:
    """Key of the rows of many runs."""
    return f"packs/table={table}/{digest}.parquet"


def digest_in(name: str) -> str | None:
    """The digest of its content that a final or pack has in its name, a key, path or URI; None for other objects."""
    match = _DIGEST.search(name)
    return match[1] if match else None


def sweep_key(sweep: str, record: str) -> str:
    """Key of a sweep record."""
    return f"sweeps/{sweep}/{record}.json"


def stop_key(sweep: str, request: str) -> str:
    """Key of a wish that a sweep ends."""
    return f"stops/{sweep}/{request}.json"


def changes_key(diff_hash: str) -> str:
    """Key of the uncommitted changes that the runs of a job were trained with."""
    return f"code/{diff_hash}.diff"


def source_key(sha256: str) -> str:
    """Key of the source of an optimizer that is named by a file."""
    return f"code/{sha256}.py"


def parse_stops(keys: Iterable[str]) -> dict[str, str]:
    """Wishes that a sweep ends among `keys`, as key -> id, in order."""
    return {match[0]: match[2] for match in map(_STOP.fullmatch, sorted(keys)) if match}


def parse_checkpoint(key: str) -> Checkpoint | None:
    """What the key of a checkpoint says; None for another key."""
    match = _CHECKPOINT.fullmatch(key)
    return Checkpoint(match[1], match[2], int(match[3]), match[4], int(match[5]), match[6]) if match else None


def version_key(version: int) -> str:
    """Key that marks a store as written with a schema of its tables and names."""
    return f"schema/{version:05d}.json"


def parse_version(key: str) -> int | None:
    """Inverse of `version_key`; None for another key."""
    match = _VERSION.fullmatch(key)
    return int(match[1]) if match else None


def parse_attempts(keys: Iterable[str]) -> dict[str, dict[str, Attempt]]:
    """Start records among `keys`, as run -> id -> Attempt; other keys are ignored."""
    runs: dict[str, dict[str, Attempt]] = defaultdict(dict)
    for key in keys:
        if match := _ATTEMPT.fullmatch(key):
            run, id_, parent, seq = match.groups()
            runs[run][id_] = Attempt(id_, parent, int(seq), run)
    return dict(runs)


def parse_sweeps(keys: Iterable[str]) -> dict[str, str]:
    """Newest record of each sweep among `keys`, as name -> key."""
    newest: dict[str, str] = {}
    for key in sorted(keys):
        if match := _SWEEP.fullmatch(key):
            newest[match[1]] = key
    return newest


def parse_manifests(keys: Iterable[str]) -> list[str]:
    """Manifests of packs among `keys`."""
    return [key for key in keys if _PACK.fullmatch(key)]


def parse_live(keys: Iterable[str], table: str) -> dict[str, dict[str, list[ObjectSlice]]]:
    """Live objects of `table` among `keys`, as run -> attempt id -> objects in order of their rows."""
    found: dict[str, dict[str, list[ObjectSlice]]] = defaultdict(lambda: defaultdict(list))
    for key in sorted(keys):
        if (match := _LIVE.fullmatch(key)) and match[1] == table:
            lo, hi = int(match[4]), int(match[5])
            found[match[2]][match[3]].append(ObjectSlice(key, match[2], match[3], final=False, start=lo, hi=hi))
    return found


def parse_finals(keys: Iterable[str], table: str) -> dict[str, list[ObjectSlice]]:
    """Final objects of `table` among `keys`, by run."""
    found: dict[str, list[ObjectSlice]] = defaultdict(list)
    for key in sorted(keys):
        if (match := _FINAL.fullmatch(key)) and match[1] == table:
            found[match[2]].append(ObjectSlice(key, match[2], match[3], final=True, hi=int(match[4])))
    return found


def parse_logs(keys: Iterable[str]) -> list[LogPart]:
    """Parts of logs among `keys`, in order of their starts, ranks and bytes."""
    matches = filter(None, map(_LOG.fullmatch, keys))
    return sorted(LogPart(match[1], match[2], *(int(number) for number in match.groups()[2:])) for match in matches)


def parse_ends(keys: Iterable[str]) -> dict[tuple[str, str], ObjectSlice]:
    """End records among `keys` by run and attempt: where two were written at once, all readers take the same one."""
    # Of several the last assignment stays, so the smallest name: any rule would do that needs the names alone.
    ends = [item for items in parse_finals(keys, "runs").values() for item in items]
    return {(item.run, item.attempt): item for item in sorted(ends, key=lambda item: item.key, reverse=True)}
