"""Records are streamed the same from any position on, and what cannot be read says where."""

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.prepared import documents, write_jsonl

from muon_core.data import records
from muon_core.data.records import Position, Record, read_records
from muon_core.data.sources import find_source

TEXTS = documents(30)


def read(path: Path, start: Position = records.BEGIN, column: str = "text") -> list[Record]:
    return [record for record, _ in read_records(find_source([str(path)]).files, column, start)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the same text in every form."""
    folder = tmp_path / "texts"
    plain = write_jsonl(folder / "a.jsonl", TEXTS).read_bytes()
    half = len(plain) // 2
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(plain[:half]) + zstandard.compress(plain[half:]))
    pq.write_table(pa.table({"id": range(30), "text": TEXTS}), folder / "d.parquet", row_group_size=7)
    (folder / "e.txt").write_text("<|endoftext|>".join(TEXTS))
    (folder / "f.txt.gz").write_bytes(gzip.compress("<|endoftext|>".join(TEXTS).encode()))
    return folder


def test_any_position_is_followed_by_the_same_records(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "CHUNK", 100)
    everything = read(files)
    assert len(everything) == 6 * 30
    for at in range(0, len(everything), 7):
        assert read(files, everything[at].end) == everything[at + 1 :]


def test_all_forms_hold_the_same_text(files: Path) -> None:
    for name in ("d.parquet", "e.txt", "f.txt.gz"):
        assert [(record.data or b"").decode() for record in read(files / name)] == TEXTS
    lines = [record.data for record in read(files / "a.jsonl")]
    for name in ("b.jsonl.gz", "c.jsonl.zst"):
        assert [record.data for record in read(files / name)] == lines


@pytest.mark.parametrize("name", ["b.jsonl.gz", "c.jsonl.zst"])
def test_a_file_that_breaks_off_is_an_error_not_the_end(files: Path, name: str) -> None:
    whole = (files / name).read_bytes()
    (files / name).write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=rf"cannot read .*{name}: .*; restore it or leave it out"):
        read(files / name)


def test_text_that_is_no_zstandard_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.zst").write_bytes(b"plain text")
    with pytest.raises(ValueError, match=r"cannot read .*x\.jsonl\.zst: "):
        read(tmp_path / "x.jsonl.zst")


def test_a_long_text_is_cut_after_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST", 1000)
    text = "".join(f"line {i} of a long text, é\n" for i in range(200))
    (tmp_path / "x.txt").write_text(text + "<|endoftext|>short")
    found = read(tmp_path / "x.txt")
    assert b"".join(record.data or b"" for record in found).decode() == text + "short"
    assert all(record.cut and (record.data or b"").endswith(b"\n") for record in found[:-2])
    assert [record.cut for record in found[-2:]] == [False, False]
    assert max(len(record.data or b"") for record in found) <= 1000


def test_a_long_line_is_cut_between_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST", 101)
    (tmp_path / "x.txt").write_text("é" * 300)
    assert "".join((record.data or b"").decode() for record in read(tmp_path / "x.txt")) == "é" * 300


def test_a_column_that_does_not_exist_is_answered_with_those_there_are(files: Path) -> None:
    with pytest.raises(ValueError, match=r"d\.parquet: no column 'body'; its columns are id, text; choose by --column"):
        read(files / "d.parquet", column="body")
    with pytest.raises(ValueError, match=r"d\.parquet: column 'id' is int64, not text; text would be"):
        read(files / "d.parquet", column="id")


def test_binary_files_and_endless_lines_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(ValueError, match=r"x\.png is a binary file; give text, JSONL or Parquet"):
        read(tmp_path / "x.png")
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: this is no Parquet that can be read"):
        read(tmp_path / "x.parquet")
    monkeypatch.setattr(records, "LONGEST_LINE", 64)
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' + "x" * 100)
    with pytest.raises(ValueError, match=r"x\.jsonl: the line at byte 14 has more than"):
        read(tmp_path / "x.jsonl")


def test_a_stream_is_unpacked_in_pieces() -> None:
    """A megabyte of zeros is some bytes when packed, and comes in the pieces asked for."""
    packed = io.BytesIO(zstandard.compress(bytes(1 << 20)))
    stream = records._unpacked(packed, "zstd")
    assert len(stream.read(1000)) == 1000
    assert len(stream.read()) == (1 << 20) - 1000
