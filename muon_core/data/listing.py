"""Which prepared data sets there are at a place, and whether one is sound. Imports no torch."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from muon_core.data.manifest import MANIFEST, TOKENIZER, Manifest, Shard, parse_manifest
from muon_core.data.prepared import is_remote, read_manifest
from muon_core.store.open import open_storage
from muon_core.store.storage import Storage

DEPTH = 3  # folders below a place that are looked into


class Found(NamedTuple):
    """A data set; `wrong` says why its manifest cannot be read."""

    place: str
    manifest: Manifest | None
    wrong: str = ""


def find_sets(place: str) -> Iterator[Found]:
    """The data set at `place`, or those below it. Raises ValueError if there is no such folder, StoreError."""
    if not is_remote(place) and not os.path.isdir(place):
        raise ValueError(f"{place} is no folder; give one, or s3://bucket/prefix")
    for found in _on_s3(place) if is_remote(place) else _below(Path(place), DEPTH):
        try:
            yield Found(found, read_manifest(found))
        except ValueError as error:
            yield Found(found, None, str(error))


def _below(folder: Path, depth: int) -> Iterator[str]:
    if (folder / MANIFEST).is_file():
        yield str(folder)
    elif depth:
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.name.startswith(".") and os.access(entry, os.R_OK | os.X_OK):
                yield from _below(entry, depth - 1)


def _on_s3(place: str) -> Iterator[str]:
    for key, _ in open_storage(place).list(""):
        folder, _, name = key.rpartition("/")
        if name == MANIFEST:
            yield f"{place.rstrip('/')}/{folder}".rstrip("/")


def verify(place: str, report: Callable[[str], object]) -> list[str]:
    """What is wrong with the data set at `place`, a line for each file; all of it is read.

    A file must be there, have its sha256, and shards the values that the manifest counts, below the vocabulary.

    Args:
        report: called with the name of each file before it is read.
    Raises: ValueError if there is no data set, StoreError.
    """
    storage = open_storage(place)
    manifest = parse_manifest(_got(storage, MANIFEST, place), place)
    report(TOKENIZER)
    wrong = [] if _sha256(storage, TOKENIZER) == manifest.tokenizer.sha256 else [f"{TOKENIZER}: is another one"]
    for shard in manifest.all_shards:
        report(shard.name)
        if text := _look_over(storage, shard, manifest):
            wrong.append(f"{shard.name}: {text}")
    return wrong


def _got(storage: Storage, name: str, place: str) -> bytes:
    try:
        return storage.get(name)
    except FileNotFoundError:
        raise ValueError(f"{place} holds no prepared data set: {name} is missing") from None


def _sha256(storage: Storage, name: str) -> str | None:
    try:
        return hashlib.sha256(storage.get(name)).hexdigest()
    except FileNotFoundError:
        return None


def _look_over(storage: Storage, shard: Shard, manifest: Manifest) -> str | None:
    try:
        content = storage.get(shard.name)
    except FileNotFoundError:
        return "is missing"
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        return "is damaged (sha256 differs)"
    tokens = np.load(io.BytesIO(content))
    if tokens.shape != (shard.tokens,) or str(tokens.dtype) != manifest.dtype:
        return f"holds {tokens.shape} {tokens.dtype}, not ({shard.tokens},) {manifest.dtype}"
    if int(tokens.max()) >= manifest.tokenizer.vocab_size:
        return f"holds a token {int(tokens.max())} of a vocabulary of {manifest.tokenizer.vocab_size}"
    return None
