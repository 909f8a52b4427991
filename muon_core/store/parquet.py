"""Rows to Parquet bytes and back, and how an object shows that it holds what was written.

The encoding is what was measured best for metrics: small, and quick to read in part. Three marks show damage: Parquet's
own at both ends, which a cut object lacks; a checksum on each page, which only our decoder compares, Polars does not;
and for finals and packs the digest of all bytes in their name. The footer holds the version of the schema, so that an
object copied from a newer release's store is refused instead of misread.
"""

from __future__ import annotations

import hashlib
import io
import re
from array import array
from collections.abc import Iterable, Sequence, Sized
from datetime import UTC, datetime, timedelta
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muon_core.store.keys import digest_in
from muon_core.store.storage import StoreError
from muon_core.tables import SCHEMA_VERSION, Table

SERIES_ROW_GROUP = 5_280  # rows: one layer and projection of a long run reads 4x faster than from one group
DIGEST_LENGTH = 16  # hexadecimal digits
THREADS_BYTES = 1 << 20
MAGIC = b"PAR1"  # begins and ends an object; before the last one stands the length of the footer, 4 bytes
PACK_ROW_GROUP = 1 << 19  # rows: a question over all runs wants few and large reads, each a request to a bucket

Row = dict[str, Any]
_SCHEMA = re.compile(rb"muon_schema\x18[\x01-\x09](\d+)")  # key and value, as Parquet spells metadata


class Damaged(StoreError):
    """An object does not hold what was written."""


def encode(
    rows: list[Row] | pa.Table, table: Table, *, final: bool = False, row_group: int = SERIES_ROW_GROUP
) -> bytes:
    """Parquet bytes in `table`'s schema: zstd, byte-stream-split floats, dictionaries for text only."""
    data = rows if isinstance(rows, pa.Table) else to_arrow(rows, table)
    floats = [name for name, (dtype, _) in table.columns.items() if pa.types.is_floating(dtype)]
    texts = [name for name, (dtype, _) in table.columns.items() if pa.types.is_string(dtype)]
    sink = io.BytesIO()  # whole in memory first: a stream cut by an exception would publish a truncated table
    pq.write_table(
        data,
        sink,
        compression="zstd",
        compression_level=3 if final else 1,
        use_dictionary=texts,
        use_byte_stream_split=floats,
        row_group_size=row_group,
        write_page_checksum=True,  # most flipped bits would read as other numbers
    )
    return sink.getvalue()


def decode(data: bytes) -> pa.Table:
    """Inverse of `encode`; checksums are compared where there are some."""
    # pq.read_table can abort the interpreter at exit. Threads cost more than they save on a small object.
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    return file.read(use_threads=len(data) > THREADS_BYTES)


def decode_named(data: bytes, uri: str) -> pa.Table:
    """`decode` of an object after `check`. Raises as that does, and Damaged for a checksum that differs."""
    check(data, uri)
    try:
        return decode(data)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(uri, f"{len(data)} bytes, not whole") from error


def check(data: bytes, uri: str) -> None:
    """`check_ends`, and that the digest in the object's name is its content's. Raises Damaged otherwise."""
    if digest_in(uri) not in (None, digest(data)):
        raise _damaged(uri, f"{len(data)} bytes, not those it is named after")
    check_ends(data, uri)


def check_ends(data: bytes, uri: str) -> None:
    """Check the two ends of an object: Parquet's marks and, in the footer, the version of the schema.

    Args:
        data: the object, with or without what lies between its first mark and the footer.
    Raises: Damaged, or StoreError if a newer release wrote it in a way this one would misread; both name the object.
    """
    if not (data.startswith(MAGIC) and data.endswith(MAGIC)):
        raise _damaged(uri, f"{len(data)} bytes, not whole")
    written = _SCHEMA.match(data, data.rfind(b"muon_schema"))
    if written and int(written[1]) > SCHEMA_VERSION:
        raise newer_schema(uri, int(written[1]))


def newer_schema(uri: str, version: int, known: int = SCHEMA_VERSION) -> StoreError:
    """The error for a store or object of a schema above the newest `known`, this release's."""
    return StoreError(
        f"{uri} was written with schema {version}, this release reads up to {known}; update muon-jobs to read it"
    )


def _damaged(uri: str, how: str) -> Damaged:
    return Damaged(f"{uri} is damaged ({how}); delete it to read the rest, or restore it from a backup")


def digest(data: bytes) -> str:
    """Short name of a content: 64 bits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_LENGTH]


def sort_for_reading(rows: pa.Table, table: Table) -> pa.Table:
    """By run, then the table's key with the step last: a series of one layer and projection lies in one place."""
    order = ["run_id", *(name for name in table.key if name != "step"), "step", "seq"]
    return rows.sort_by([(name, "ascending") for name in order if name in table.columns])


def to_arrow(rows: Sequence[Row], table: Table) -> pa.Table:
    """Rows in `table`'s schema; what a row lacks is null. Raises pa.ArrowInvalid for a value that fits no column.

    As `pa.Table.from_pylist`, which loads pandas to ask whether it was given some of that: a second of each process.
    """
    columns = []
    for name, (dtype, _) in table.columns.items():
        try:
            columns.append(column([row.get(name) for row in rows], dtype))
        except (TypeError, AttributeError, OverflowError) as error:
            raise pa.ArrowInvalid(f"column {name} of {table.name} holds {dtype}: {error}") from error
    return pa.Table.from_arrays(columns, schema=table.schema)


def texts(values: Iterable[str]) -> pa.StringArray:
    """An Arrow array of texts, without loading pandas either."""
    return column([*values], pa.string())


_CODES = {pa.int32(): "i", pa.int64(): "q", pa.float32(): "f", pa.float64(): "d"}
"""Python's own arrays, which refuse what is no number, or no whole one, as Arrow does."""
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


def column(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """An array of one of the tables' types; None is null. Raises TypeError, AttributeError or OverflowError."""
    present = [value is not None for value in values]
    buffers, children = [None if all(present) else _bits(present)], []
    if pa.types.is_string(dtype):
        pieces = [b"" if value is None else value.encode() for value in values]
        buffers += [_offsets(pieces), pa.py_buffer(b"".join(pieces))]
    elif pa.types.is_list(dtype):
        lists = [() if value is None else value for value in values]
        buffers.append(_offsets(lists))
        children.append(column([*chain.from_iterable(lists)], dtype.value_type))
    elif pa.types.is_timestamp(dtype):
        buffers.append(_numbers([value and (value - _EPOCH) // _MICROSECOND for value in values], pa.int64()))
    elif pa.types.is_boolean(dtype):
        buffers.append(_bits([value is not None and _truth(value) for value in values]))
    else:
        buffers.append(_numbers(values, dtype))
    return pa.Array.from_buffers(dtype, len(values), buffers, children=children)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{value!r} is neither true nor false")
    return bool(value)


def _numbers(values: Iterable[Any], dtype: pa.DataType) -> pa.Buffer:
    return pa.py_buffer(array(_CODES[dtype], [0 if value is None else value for value in values]).tobytes())


def _offsets(pieces: Iterable[Sized]) -> pa.Buffer:
    """Where each begins in what they are together, and the end."""
    return pa.py_buffer(array("i", accumulate(map(len, pieces), initial=0)).tobytes())


def _bits(values: Sequence[bool]) -> pa.Buffer:
    """A bit each, the first the lowest of the first byte."""
    return pa.py_buffer(np.packbits(np.array(values, bool), bitorder="little").tobytes())


def same_rows(left: pa.Table, right: pa.Table, table: Table) -> bool:
    """Whether both hold equal rows, whatever their order. NaN equals NaN."""
    if left.num_rows != right.num_rows:
        return False
    # Encoded alike, equal rows are equal bytes; Arrow's own comparison would call two NaN different.
    first, second = (encode(rows.combine_chunks().sort_by("seq"), table) for rows in (left, right))
    return first == second
