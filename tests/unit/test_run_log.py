"""The log of a run in the store: its bound, what a reader sees of it while it grows, and a store that is away."""

from pathlib import Path

import pytest

from muon_core.store.folder import Folder
from muon_core.store.keys import LogPart, next_start, parse_logs, start_time
from muon_core.store.reader import list_keys
from muon_core.store.run_log import HEAD, SEGMENT_BYTES, TAIL, LogReader, RunLog
from muon_core.store.storage import StoreUnavailable

START, LATER = "20260101T120000000000.aa", "20260101T120000000001.00"


def texts(reader: LogReader) -> list[tuple[str, int, int, bytes]]:
    return [tuple(piece) for piece in reader.read()]  # type: ignore[misc]


def test_a_key_says_what_it_was_made_of_and_starts_sort_by_time() -> None:
    part = LogPart("muon-s1", START, 3, 0, 12)
    assert parse_logs([part.key, "logs/muon-s1/other.txt", "sweeps/a/00001.aa.json"]) == [part]
    assert start_time(START).isoformat() == "2026-01-01T12:00:00+00:00"
    one, other = next_start(), next_start()
    assert one.split(".")[0] <= other.split(".")[0]
    assert one != other


def test_what_is_printed_is_read_once_and_in_order(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    first, second, later = (RunLog(storage, "r", s, rank) for s, rank in ((START, 0), (START, 1), (LATER, 0)))
    reader, other = LogReader(storage, "r"), LogReader(storage, "r", rank=1)
    assert texts(reader) == []
    for log, text in ((later, b"c"), (second, b"b"), (first, b"a\n")):
        log.write(text)
        log.flush()
    assert texts(reader) == [(START, 0, 0, b"a\n"), (START, 1, 0, b"b"), (LATER, 0, 0, b"c")]
    assert texts(reader) == []
    first.write(b"more\n")
    first.flush()
    assert texts(reader) == [(START, 0, 0, b"more\n")]
    assert texts(other) == [(START, 1, 0, b"b")]
    assert len(list_keys(storage, "logs/r/")) == 3  # the shorter version is gone


def test_a_run_that_prints_nothing_leaves_nothing(tmp_path: Path) -> None:
    log = RunLog(Folder(tmp_path), "r", START, 0)
    log.write(b"")
    log.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pieces", [1, 7, 40], ids=lambda pieces: f"{pieces} flushes")
def test_the_head_and_the_newest_tail_of_a_long_text_are_kept(tmp_path: Path, pieces: int) -> None:
    storage = Folder(tmp_path)
    log = RunLog(storage, "r", START, 0)
    text = b"".join(b"%07d\n" % number for number in range(40 * SEGMENT_BYTES // 8 + 11))
    size = len(text) // pieces + 1
    for begin in range(0, len(text), size):
        log.write(text[begin : begin + size])
        log.flush()
    stored = sum(size for _, size in storage.list("logs/r/"))
    assert stored <= (HEAD + TAIL) * SEGMENT_BYTES == 1 << 20
    found = LogReader(storage, "r").read()
    head = b"".join(piece.data for piece in found[:HEAD])
    tail = b"".join(piece.data for piece in found[HEAD:])
    assert head == text[: len(head)]
    assert tail == text[-len(tail) :]
    assert [piece.left_out for piece in found if piece.left_out] == [len(text) - len(head) - len(tail)]
    assert min(len(head), len(tail)) > (TAIL - 1) * SEGMENT_BYTES


class Away(Folder):
    """A folder that does not answer while it `is_away`."""

    is_away = False

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._answer()
        super().put(key, data)

    def delete(self, keys: object) -> None:
        self._answer()
        super().delete(keys)  # type: ignore[arg-type]

    def _answer(self) -> None:
        if self.is_away:
            raise StoreUnavailable("away")


def test_a_store_that_is_away_gets_all_of_it_when_it_is_back(tmp_path: Path) -> None:
    storage = Away(tmp_path)
    log = RunLog(storage, "r", START, 0)
    log.write(b"one ")
    log.flush()
    storage.is_away = True
    log.write(b"two ")
    log.flush()
    log.write(b"three")
    log.flush()
    assert texts(LogReader(storage, "r")) == [(START, 0, 0, b"one ")]
    storage.is_away = False
    log.flush()
    assert texts(LogReader(storage, "r")) == [(START, 0, 0, b"one two three")]
    assert len(list_keys(storage, "logs/r/")) == 1


def test_two_versions_of_a_part_are_read_as_one(tmp_path: Path) -> None:
    """As a process leaves them that is killed before it removes the shorter."""
    storage = Folder(tmp_path)
    storage.put(LogPart("r", START, 0, 0, 3).key, b"one")
    storage.put(LogPart("r", START, 0, 0, 7).key, b"one two")
    assert texts(LogReader(storage, "r")) == [(START, 0, 0, b"one two")]
