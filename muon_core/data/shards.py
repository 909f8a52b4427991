"""Token shards: the byte-level BPE trained on a corpus, and the memory-mapped token ids it makes. Imports no torch.

A prepared folder is named after all that decides its content: text, split, vocabulary, and the tokenizers release. It
is built aside and renamed into place, so processes that race do the work twice and end with one folder, and nobody ever
sees half of one. The tokenizer learns from training documents only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from muon_core.config.base import canonical_json
from muon_core.config.run import DataConfig
from muon_core.data.bpe import train_bpe
from muon_core.data.corpus import (
    END_OF_TEXT,
    SPLIT_RULE,
    Document,
    corpus_sha256,
    default_cache,
    documents,
    documents_sha256,
    is_validation,
)
from muon_core.data.prepared import is_prepared, local_copy
from muon_core.data.windows import num_windows, validation_windows
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 1  # of a prepared folder; raised when its files change their meaning
TRAIN, VALIDATION, TOKENIZER, INDEX = "train.npy", "validation.npy", "tokenizer.json", "index.json"
_ENCODED_AT_ONCE = 64  # documents; bounds the tokenizer's memory, about 100 bytes a token


def prepare(data: DataConfig, vocab_size: int, cache: Path | None = None) -> Path:
    """Folder with `train.npy`, `validation.npy`, `tokenizer.json` and `index.json`, made on first use.

    Of a data set that was prepared before, the folder that `prepared.local_copy` finds. Else the tokenizer is trained
    on the training documents; each document ends with one end-of-text token. Processes may race: the folder appears
    whole, under a name that its content decides.

    Raises: ValueError as `documents` does, if the text is no longer what `data.corpus_sha256` says, or if a side of the
    split is too small; StoreError if the cache cannot be written.
    """
    if is_prepared(data.corpus):
        return local_copy(data, vocab_size)
    root = cache or default_cache()
    digest = data.corpus_sha256 or corpus_sha256(data.corpus, root)
    folder = root / _folder_name(digest, data.validation_share, vocab_size)
    if not is_complete(folder):
        texts = documents(data.corpus)
        if (found := documents_sha256(texts)) != digest:
            raise ValueError(
                f"corpus {data.corpus!r} has changed: sha256 {found[:12]}, planned {digest[:12]}; plan the runs again"
            )
        _build(folder, texts, digest, data.validation_share, vocab_size)
    _check_sizes(read_index(folder), data)
    return folder


def read_index(folder: Path) -> dict[str, Any]:
    """`index.json` of a prepared folder: shards with token counts and sha256, split, versions, `data_hash`."""
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return index


def _folder_name(corpus_hash: str, share: float, vocab_size: int) -> str:
    version = importlib.metadata.version("tokenizers")
    content = [FORMAT, corpus_hash, SPLIT_RULE, share, vocab_size, version]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds all that a prepared one does."""
    return all((folder / name).is_file() for name in (TRAIN, VALIDATION, TOKENIZER, INDEX))


def _build(folder: Path, texts: list[Document], corpus_hash: str, share: float, vocab_size: int) -> None:
    sides: dict[str, list[str]] = {TRAIN: [], VALIDATION: []}
    for text in texts:
        sides[VALIDATION if is_validation(text.path, share) else TRAIN].append(text.data.decode(errors="replace"))
    tokenizer = train_bpe(sides[TRAIN], vocab_size)
    model = tokenizer.to_str().encode()
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    aside = Folder(folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp"))
    content: dict[str, Any] = {
        "tokenizer_sha256": hashlib.sha256(model).hexdigest(),
        "split": {"rule": SPLIT_RULE, "validation_share": share},
        "shards": {name: _put_shard(aside, name, _encode(tokenizer, side, dtype)) for name, side in sides.items()},
    }
    facts = {
        "format": FORMAT,
        "data_hash": content_hash(content),
        "corpus_sha256": corpus_hash,
        "documents": {name: len(side) for name, side in sides.items()},
        "vocab_size": vocab_size,
        "end_of_text": tokenizer.token_to_id(END_OF_TEXT),
        "versions": {name: importlib.metadata.version(name) for name in ("tokenizers", "numpy")},
    }
    aside.put(TOKENIZER, model)
    aside.put(INDEX, json.dumps(facts | content, indent=2).encode())
    _publish(aside.root, folder)


def content_hash(content: Mapping[str, Any]) -> str:
    """The `data_hash` of an index: sha256 over `tokenizer_sha256`, `split` and `shards`."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _encode(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Tokens of all texts in one array, each text followed by end-of-text."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces = [
        np.array([*encoding.ids, end], dtype)
        for start in range(0, len(texts), _ENCODED_AT_ONCE)
        for encoding in tokenizer.encode_batch_fast(texts[start : start + _ENCODED_AT_ONCE])
    ]
    return np.concatenate([np.empty(0, dtype), *pieces])


def _put_shard(aside: Folder, name: str, tokens: npt.NDArray[Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    aside.put(name, buffer.getvalue())
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    return {"tokens": len(tokens), "dtype": str(tokens.dtype), "sha256": sha256}


def _publish(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError as error:
        shutil.rmtree(aside)
        if not is_complete(folder):  # else another process was first, with the same content
            raise StoreError(f"{folder} is damaged ({error.strerror}); remove it and start again") from error


def _check_sizes(index: dict[str, Any], data: DataConfig) -> None:
    train, held_out = (index["shards"][name]["tokens"] for name in (TRAIN, VALIDATION))
    if not num_windows(train, data.seq_len):
        raise ValueError(
            f"corpus {data.corpus!r}: {train} training tokens, data.seq_len {data.seq_len} needs "
            f"{data.seq_len + 1}; give more text or lower data.seq_len"
        )
    needed = validation_windows(data)
    if num_windows(held_out, data.seq_len) < needed:
        raise ValueError(
            f"corpus {data.corpus!r}: {held_out} tokens in {index['documents'][VALIDATION]} validation documents, "
            f"data.validation_tokens {data.validation_tokens} needs {needed * data.seq_len + 1}; give more documents "
            f"(files, or parts of a file between {END_OF_TEXT} marks), raise data.validation_share "
            f"({data.validation_share:g}) or lower data.validation_tokens"
        )
