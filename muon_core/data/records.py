"""Records of input files, streamed: documents of text, lines of JSON, rows of Parquet, each with where it ends.

A position is a file's number and an offset in it: of bytes once they are unpacked, or of rows. Whoever was killed asks
for what follows a position and gets the records that would have come. No more than a record is held. Imports no torch.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from muon_core.data.corpus import END_OF_TEXT
from muon_core.data.sources import InputFile
from muon_core.spelling import did_you_mean

CHUNK = 1 << 20
LONGEST = 4 << 20
"""Bytes of text in one document; a longer one is cut into several, at ends of lines where there are any."""
LONGEST_LINE = 64 << 20  # bytes of JSON
ZSTD_READ = 32 << 10  # packed bytes at once: repetitive text is a thousand times as long
ROWS = 64  # of Parquet, taken at once
_MARK = END_OF_TEXT.encode()


class Position(NamedTuple):
    """Where reading stands: records before it are done."""

    file: int = 0
    offset: int = 0


class Record(NamedTuple):
    """What may become a document; `data` is a line of JSON or the text itself, None for a null."""

    file: int
    number: int
    """Line or row, counted from 1; of text the byte it begins at."""
    data: bytes | None
    is_json: bool
    cut: bool
    """Whether the document goes on in the next record."""
    end: Position


BEGIN = Position()


def read_records(files: Sequence[InputFile], column: str, start: Position = BEGIN) -> Iterator[tuple[Record, int]]:
    """The records of `files` from `start` on, each with how many bytes of the current file have been read for it.

    Raises: ValueError, with file and line, for what cannot be read; StoreError.
    """
    for index in range(start.file, len(files)):
        file, offset = files[index], start.offset if index == start.file else 0
        try:
            with file.open() as raw:
                if file.kind == "parquet":
                    yield from _rows(raw, index, file.name, column, offset)
                    continue
                unpacked = _unpacked(raw, file.compression)
                _skip(unpacked, offset)
                records = _lines if file.kind == "jsonl" else _texts
                for record in records(unpacked, index, file.name, offset):
                    yield record, raw.tell()
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot read {file.name}: {reason}; restore it or leave it out") from error


def _unpacked(raw: BinaryIO, compression: str | None) -> BinaryIO:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    return io.BufferedReader(_Zstd(raw), CHUNK) if compression == "zstd" else raw


class _Zstd(io.RawIOBase):
    """The bytes of Zstandard frames, one or several; the library's own reader is silent where one breaks off."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._left = raw, memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._left:
            packed = self._raw.read(ZSTD_READ)
            if not packed:
                if self._frame is not None:
                    raise EOFError("it breaks off in the middle of a Zstandard frame")
                return 0
            self._left = memoryview(self._unpack(packed))
        size = min(len(target), len(self._left))
        target[:size], self._left = self._left[:size], self._left[size:]
        return size

    def _unpack(self, packed: bytes) -> bytes:
        import zstandard

        pieces = []
        try:
            while packed:
                if self._frame is None:
                    self._frame = zstandard.ZstdDecompressor().decompressobj()
                pieces.append(self._frame.decompress(packed))
                packed = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = None
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        return b"".join(pieces)


def _skip(stream: BinaryIO, offset: int) -> None:
    """Go to the byte `offset`, at once where the stream can."""
    if offset and stream.seekable() and not isinstance(stream, gzip.GzipFile):
        stream.seek(offset)
        return
    while offset > 0:
        skipped = len(stream.read(min(CHUNK, offset)))
        if not skipped:
            raise EOFError("it has become shorter")
        offset -= skipped


def _lines(stream: BinaryIO, index: int, name: str, offset: int) -> Iterator[Record]:
    while line := stream.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"{name}: the line at byte {offset} has more than {LONGEST_LINE >> 20} MiB; cut it")
        begin, offset = offset, offset + len(line)
        if line.strip():
            yield Record(index, begin, line, True, False, Position(index, offset))


def _texts(stream: BinaryIO, index: int, name: str, offset: int) -> Iterator[Record]:
    """Parts of text between `<|endoftext|>` marks, long ones cut."""
    held, is_last = b"", False
    while not is_last:
        more = stream.read(CHUNK)
        held, is_last = held + more, not more
        if b"\0" in more:
            raise ValueError(f"{name} is a binary file; give text, JSONL or Parquet, or leave it out")
        while (at := held.find(_MARK)) >= 0 or len(held) > LONGEST or is_last:
            cut = (at < 0 and len(held) > LONGEST) or at > LONGEST
            size = cut_size(held) if cut else at if at >= 0 else len(held)
            part, held = held[:size], held[size if cut or at < 0 else size + len(_MARK) :]
            begin, offset = offset, offset + size + (0 if cut or at < 0 else len(_MARK))
            if part.strip():
                yield Record(index, begin, part, False, cut, Position(index, offset))
            if not held:
                break


def cut_size(held: bytes) -> int:
    """Bytes of the first part of a document of more than `LONGEST`: it ends after a line, else before a letter."""
    if (end := held.rfind(b"\n", LONGEST // 2, LONGEST)) >= 0:
        return end + 1
    size = LONGEST
    while held[size] & 0xC0 == 0x80:  # inside a letter of several bytes
        size -= 1
    return size


def _rows(raw: BinaryIO, index: int, name: str, column: str, offset: int) -> Iterator[tuple[Record, int]]:
    """Values of a text column, a row group after another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(raw, buffer_size=CHUNK, pre_buffer=False)
        kind = _text_type(file.schema_arrow, column, name, pa)
        row = 0
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row + count <= offset:
                row += count
                continue
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
                for value in batch.column(0).cast(kind).to_pylist():
                    row += 1
                    if row > offset:
                        yield Record(index, row, value, False, False, Position(index, row)), raw.tell()
    except pa.ArrowException as error:
        raise ValueError(f"{name}: this is no Parquet that can be read ({error})") from error


def _text_type(schema: Any, column: str, name: str, pa: Any) -> Any:
    """Binary type that the text column is read as. Raises ValueError if there is none, or it holds no text."""
    if column not in schema.names:
        near = did_you_mean(column, schema.names)
        raise ValueError(
            f"{name}: no column {column!r}{near}; its columns are {', '.join(schema.names)}; choose by --column"
        )
    found = schema.field(column).type
    if pa.types.is_dictionary(found):
        found = found.value_type
    if not (pa.types.is_string(found) or pa.types.is_large_string(found)):
        texts = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        raise ValueError(f"{name}: column {column!r} is {found}, not text; {', '.join(texts) or 'none'} would be")
    return pa.large_binary() if pa.types.is_large_string(found) else pa.binary()
