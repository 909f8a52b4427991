"""From records to token ids: what the processes of `muon data prepare` do, each with a tokenizer of its own.

A document is hashed and tokenized as it stands, with one separator behind it. What spells a special token in a text
stays text. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from muon_core.data.records import LONGEST, Record, cut_size
from muon_core.spelling import did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DIGEST = 16  # bytes: two of 1e12 different documents are alike with a probability of 1e-15
PIECE = 256 << 10  # characters encoded at once: the tokenizer takes about 100 bytes a token


class BadRecord(Exception):
    """A record that is no document: (file, number, what is wrong)."""


class Encoded(NamedTuple):
    """Documents of a block, in order."""

    digests: list[bytes]
    lengths: list[int]
    """Token ids of each, its separator among them."""
    tokens: npt.NDArray[Any]
    """Of all documents, one after another."""
    text_bytes: int
    empty: int
    cut: int


def texts(records: Sequence[Record], column: str) -> Iterator[tuple[str, bool]]:
    """The text of each record that has one, in parts if it is long; True beside those that go on in the next part.

    Raises BadRecord.
    """
    for record in records:
        data = _json_text(record, column) if record.is_json else record.data or b""
        while len(data) > LONGEST:
            size = cut_size(data)
            yield data[:size].decode(errors="replace"), True
            data = data[size:]
        yield data.decode(errors="replace"), record.cut


def _json_text(record: Record, column: str) -> bytes:
    try:
        fields = json.loads(record.data or b"")
    except ValueError as error:
        raise BadRecord(record.file, record.number, f"no line of JSON ({error})") from None
    if not isinstance(fields, dict):
        raise BadRecord(record.file, record.number, 'a line is an object such as {"text": "..."}')
    if column not in fields:
        near, there = did_you_mean(column, fields), ", ".join(fields)
        raise BadRecord(
            record.file, record.number, f"no column {column!r}{near}; its columns are {there}; choose by --column"
        )
    text = fields[column]
    if text is not None and not isinstance(text, str):
        raise BadRecord(record.file, record.number, f"column {column!r} is {type(text).__name__}, not text")
    return (text or "").encode(errors="replace")  # JSON can spell halves of letters, which no tokenizer takes


def digest(text: bytes) -> bytes:
    """What equal documents have in common."""
    return hashlib.sha256(text).digest()[:DIGEST]


class Encoder:
    """Makes token ids of records."""

    def __init__(self, tokenizer: bytes, separator_id: int, dtype: str, column: str) -> None:
        self._tokenizer = load(tokenizer)
        self._separator, self._dtype, self._column = separator_id, np.dtype(dtype), column

    def __call__(self, records: Sequence[Record]) -> Encoded:
        """The documents of `records`. Raises BadRecord."""
        digests, lengths, pieces = [], [], [np.empty(0, self._dtype)]
        text_bytes = empty = cut = 0
        for text, goes_on in texts(records, self._column):
            cut += goes_on
            if not text.strip():
                empty += 1
                continue
            ids = [*self._ids(text), np.array([self._separator], self._dtype)]
            pieces += ids
            data = text.encode()
            digests.append(digest(data))
            lengths.append(sum(map(len, ids)))
            text_bytes += len(data)
        return Encoded(digests, lengths, np.concatenate(pieces), text_bytes, empty, cut)

    def _ids(self, text: str) -> Iterator[npt.NDArray[Any]]:
        start = 0
        while start < len(text):
            end = start + PIECE
            if end < len(text):
                end = text.rfind("\n", start, end) + 1 or end
            (encoding,) = self._tokenizer.encode_batch_fast([text[start:end]], add_special_tokens=False)
            yield np.array(encoding.ids, self._dtype)
            start = end


def load(tokenizer: bytes) -> Tokenizer:
    """The tokenizer that `tokenizer.json` describes, without what would cut or fill up a text."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(tokenizer.decode())
    found.no_truncation()
    found.no_padding()
    found.encode_special_tokens = True
    return found
